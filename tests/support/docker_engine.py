"""A Docker engine of the tests' own, and containers on it that go when their test ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest
from support.postgres import require
from support.warden import unmount_below

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.outcome import Context, LimitReached

IMAGE = "busybox-of-the-tests"
APPLETS = (
    "cat",
    "date",
    "echo",
    "head",
    "httpd",
    "mkdir",
    "nc",
    "seq",
    "sh",
    "sleep",
    "touch",
    "tr",
    "yes",
)
START_SECONDS = 60

RunContainer = Callable[..., str]


class Engine:
    """A running engine, driven by the real command line."""

    def __init__(self, host: str) -> None:
        self.host = host

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run a docker command that must succeed and return what it printed."""
        finished = subprocess.run(
            ["docker", "--host", self.host, *arguments], input=stdin, capture_output=True
        )
        assert finished.returncode == 0, finished.stderr.decode()
        return finished.stdout.decode()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]["State"]
        return found

    def answers(self) -> bool:
        command = ["docker", "--host", self.host, "version"]
        return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine that all tests share: TEST_DOCKER_HOST, or a dockerd of the tests' own."""
    host = os.environ.get("TEST_DOCKER_HOST")
    if host:
        require(shutil.which("docker"), "needs the docker command")
        shared = Engine(host)
        import_busybox(shared)
        yield shared
        return
    with own_engine() as started:
        yield started


@pytest.fixture
def passing_engine() -> Iterator[Engine]:
    """An engine that may be stopped."""
    with own_engine() as started:
        yield started


@contextmanager
def own_engine() -> Iterator[Engine]:
    """Start a dockerd that shares nothing with another on the machine, and stop it at the end."""
    found = shutil.which("dockerd") and shutil.which("docker")
    require(found and os.geteuid() == 0, "needs dockerd, its command line, and to be root")
    folder = Path(tempfile.mkdtemp(prefix="docker-"))
    started = Engine(f"unix://{folder}/docker.sock")
    process = start_dockerd(folder, started)
    try:
        import_busybox(started)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
        unmount_below(folder)
        shutil.rmtree(folder)


def start_dockerd(folder: Path, engine: Engine) -> subprocess.Popen[bytes]:
    options = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root", "pidfile")]
    options += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    # In the control group that the warden removes.
    options += ["--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{folder.parent.name}"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            ["dockerd", f"--host={engine.host}", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(lambda: engine.answers() or process.poll() is not None)
    assert process.poll() is None, (folder / "log").read_text()[-2000:]
    return process


def wait_for(true: Callable[[], object]) -> None:
    """Wait until it is true; what never is ends by the suite's own time limit."""
    while not true():
        time.sleep(0.05)


def import_busybox(engine: Engine) -> None:
    """Make the image that the tests' containers run: one static program under a few names."""
    busybox = shutil.which("busybox")
    require(busybox, "needs busybox-static")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(os.path.realpath(str(busybox)), "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for folder in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(entry)
    engine.docker("import", "-", IMAGE, stdin=packed.getvalue())


@pytest.fixture
def run_container(engine: Engine) -> Iterator[RunContainer]:
    """Return a function that starts a container and returns its id; they are removed at the end."""
    started: list[str] = []

    def run(
        name: str,
        script: str = "exec sleep 1000",
        *options: str,
        command: str = "run",
        network: str = "none",
    ) -> str:
        # The first process of a container does not heed TERM by itself; these need not wait for it.
        given = [f"--network={network}", "--stop-signal=KILL", "--name", name, *options]
        arguments = [*given, IMAGE, "/bin/sh", "-c", script]
        detached = ["--detach"] if command == "run" else []
        started.append(engine.docker(command, *detached, *arguments).strip())
        return started[-1]

    yield run
    for container in started:
        subprocess.run(
            ["docker", "--host", engine.host, "rm", "--force", "--volumes", container],
            capture_output=True,
        )


def settings_for(engine: Engine | str, **variables: str) -> program_settings.Settings:
    """Return the default settings, but for this engine and these variables."""
    host = engine if isinstance(engine, str) else engine.host
    return program_settings.load({"DOCKER_HOST": host, **variables})


def no_database(statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    raise AssertionError("this task needs no database")


def context(settings: program_settings.Settings, seconds: float = 60) -> Context:
    """Return what a task gets that big_bro asked for and that may take so long."""
    return Context(
        settings=settings,
        message_id=1,
        requester="big_bro",
        reason="a test",
        deadline=time.monotonic() + seconds,
        query=no_database,
    )


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise LimitReached after so many seconds, as `execute` does around a task."""

    def ring(number: int, frame: object) -> None:
        raise LimitReached

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class UnixServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def pretended_engine(
    folder: Path, answers: dict[str, Any], asked: list[str] | None = None
) -> Iterator[str]:
    """Serve fixed answers as an engine's API does, for what no real engine can be brought to say.

    The keys are ends of paths; a status other than 200 is given as a tuple with the answer. Every
    path that was asked for is added to `asked`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            (asked if asked is not None else []).append(self.path)
            path = self.path.partition("?")[0]
            known = {"/_ping": "OK", "/version": {"ApiVersion": "1.41", "Version": "20.10.24"}}
            found = next(
                (answer for end, answer in {**known, **answers}.items() if path.endswith(end)),
                (404, {"message": "page not found"}),
            )
            status, answer = found if isinstance(found, tuple) else (200, found)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("API-Version", "1.41")
            self.send_header("OSType", "linux")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: the test's output is not this server's log."""

        def address_string(self) -> str:
            return "a unix socket has no address"

    path = folder / "engine.sock"
    with UnixServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


@contextmanager
def silent_engine(folder: Path) -> Iterator[str]:
    """Open a socket that accepts every connection and never answers."""
    path = folder / "silent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(16)
        yield f"unix://{path}"

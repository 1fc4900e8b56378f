"""Whatever the tests start ends with them, and their folder goes, however they end.

The process that was started becomes the first of three: it waits for the second, the warden, which
waits for the third, which goes on with the tests. Orphans of the tests fall to the warden, or to
the first where the warden was killed, and are killed; the kernel tells the warden when the first
dies. So one of them is left to clean up, whichever of them somebody kills.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

SET_PARENT_DEATH_SIGNAL = 1
ENDING = (signal.SIGTERM, signal.SIGHUP)
SET_CHILD_SUBREAPER = 36
CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMORY = "/dev/shm"


def enclose() -> None:
    """Return in a process whose leftovers are removed, and whose temporary folder is its own."""
    folders = [new_folder(tempfile.gettempdir())]
    if os.access(MEMORY, os.W_OK):
        folders.append(new_folder(MEMORY))
    first = os.getpid()
    group = os.getpgrp()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until each is ready for them
    if child := os.fork():
        guard(child, folders)
    signal_at_end_of_parent(signal.SIGTERM)
    if os.getppid() != first:
        sweep(folders)
        os._exit(1)
    os.setpgid(0, 0)  # so that who kills the whole group spares the warden
    if child := os.fork():
        guard(child, folders)
    signal_at_end_of_parent(signal.SIGKILL)
    os.setpgid(0, group)  # so that Ctrl-C reaches the tests
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folders[0])
    os.environ["TESTS_MEMORY"] = str(folders[-1])


def new_folder(parent: str) -> Path:
    """Make a folder where the database's user gets in, and a socket's path stays short."""
    folder = Path(tempfile.mkdtemp(prefix="tests-", dir=parent))
    folder.chmod(0o755)
    return folder


def guard(child: int, folders: Sequence[Path]) -> NoReturn:
    """Wait for the child, end what it left, and end as it did."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    status = 1

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' own affair
    for number in ENDING:
        signal.signal(number, end)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        status = exit_status(child)
    except SystemExit as ended:
        status = int(str(ended.code))
    finally:
        sweep(folders)
        os._exit(status)


def exit_status(child: int) -> int:
    """Wait for the child, and for every orphan that ends meanwhile; return how the child ended."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def sweep(folders: Sequence[Path]) -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    end_children()
    for folder in folders:
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
        remove_control_groups(folder.name)


def end_children() -> None:
    """Kill the children; theirs become ours and are killed in turn."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with suppress(ChildProcessError):
        while True:
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.wait()


def unmount_below(folder: Path) -> None:
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", point], check=False)


def remove_control_groups(name: str) -> None:
    """Remove the groups of this name, of any kind, from the innermost on."""
    for top in (*CONTROL_GROUPS.glob(name), *CONTROL_GROUPS.glob(f"*/{name}")):
        for inner in (*sorted(top.rglob("*/"), reverse=True), top):
            if inner.is_dir():
                with suppress(OSError):
                    inner.rmdir()


def signal_at_end_of_parent(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, number)

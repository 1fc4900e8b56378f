"""Heartbeats without the start of Python and its imports: a process that has them forks each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import pytest
from support.postgres import PROGRAM_FOLDER

# Cron's environment, but for the settings.
BARE = {"HOME": "/root", "PATH": "/usr/bin:/bin"}


class Heartbeat:
    """A running heartbeat, with what the tests use of subprocess.Popen."""

    def __init__(self, status: socket.socket, stdout: IO[str], stderr: IO[str]) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self.pid = int(status.recv(16))

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        if self.returncode is None:
            self.status.setblocking(False)
            try:
                self.returncode = int(self.status.recv(16))
            except BlockingIOError:
                return None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended, be it in this very moment."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return how it ended and what it printed."""
        with self.status, self.stdout, self.stderr:
            log = self.stderr.read()
            if self.returncode is None:
                self.status.setblocking(True)
                self.returncode = int(self.status.recv(16))
            self.stdout.seek(0)
            return subprocess.CompletedProcess([], self.returncode, self.stdout.read(), log)


class Nursery:
    """The process that forks heartbeats; see steps.py for its other half."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-I", PROGRAM_FOLDER / "tests/support/steps.py"),
                    str(theirs.fileno()),
                ],
                env=BARE,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def start(
        self,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (),
        step: str = "",
        action: str = "",
        constants: Sequence[str] = (),
    ) -> Heartbeat:
        """Start a heartbeat; see steps.py for what may happen to it at a step."""
        order = {
            "environment": {**BARE, **environment},
            "folder": os.getcwd(),
            "arguments": arguments,
            "step": step,
            "action": action,
            "constants": constants,
        }
        stdout = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - the heartbeat has it
        reading, writing = os.pipe()
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [stdout.fileno(), writing, theirs.fileno()]
            socket.send_fds(self.orders, [json.dumps(order).encode()], descriptors)
        os.close(writing)
        return Heartbeat(status, stdout, open(reading, encoding="utf-8"))

    def close(self) -> None:
        self.orders.close()
        self.process.wait()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def heartbeat(
    nursery: Nursery, environment: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a heartbeat, as cron would, with these settings."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return nursery.start({**environment, **variables}, arguments).end()

    return run

"""Commands without a shell: a session and an environment of their own, capped output, a limit."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from catalyst_heartbeat.outcome import Context, LimitReached, TaskFailed

COMMAND_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "TZ": "UTC",
}
# Of each stream the first and the last so many bytes are kept; a report shows far less.
KEPT_BYTES = 256 * 1024
# How long a finished command's pipes may stay open in the hands of a child that it left behind.
DRAIN_SECONDS = 0.5


class TimeOver(TaskFailed):
    """The command's time was over before it had finished."""


@dataclass
class CappedBytes:
    """The first and the last bytes of a stream, however long it is."""

    most_head: int
    most_tail: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0

    def write(self, chunk: bytes) -> None:
        room = self.most_head - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        excess = len(self.tail) - self.most_tail
        if excess > 0:
            del self.tail[:excess]
            self.dropped += excess

    def text(self) -> str:
        if not self.dropped:
            return bytes(self.head + self.tail).decode(errors="replace")
        # Whole lines only: what was cut may be half a secret, which nobody would know again.
        head = self.head[: self.head.rfind(b"\n") + 1]
        tail = self.tail.partition(b"\n")[2]
        left_out = self.dropped + len(self.head) - len(head) + len(self.tail) - len(tail)
        gap = b"... %d bytes left out ...\n" % left_out
        return bytes(head + gap + tail).decode(errors="replace")


@dataclass(frozen=True)
class Command:
    """A finished command: its exit code (negative: ended by that signal) and its two streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return "\n".join(stream.rstrip("\n") for stream in (self.stdout, self.stderr) if stream)


def run_command(
    argv: Sequence[str],
    deadline: float,
    *,
    kept: tuple[int, int] = (KEPT_BYTES, KEPT_BYTES),
    stdin: int = subprocess.DEVNULL,
    before: Callable[[], None] | None = None,
) -> Command:
    """Run a command without a shell, in a session and an environment of its own.

    `deadline` is on the clock of `time.monotonic()`; then the whole process group is killed and
    TimeOver raised; a missing program is TaskFailed. `kept` is how much of each stream's start
    and end is kept. `before` runs in the child.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=COMMAND_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            preexec_fn=before,
        )
    except OSError as error:
        raise TaskFailed(f"cannot run {argv[0]}: {error.strerror}") from error
    streams = (CappedBytes(*kept), CappedBytes(*kept))
    try:
        with process:
            try:
                finished = read_streams(process, streams, deadline)
            finally:
                end_group(process)
    except LimitReached:
        finished = False
    command = Command(process.returncode, streams[0].text(), streams[1].text())
    if not finished:
        raise TimeOver(f"{os.path.basename(argv[0])} did not finish in time", command.output)
    return command


def read_streams(
    process: subprocess.Popen[bytes], streams: tuple[CappedBytes, CappedBytes], deadline: float
) -> bool:
    """Read both pipes until they end or the time is over; return whether the command finished."""
    with selectors.DefaultSelector() as selector:
        for pipe, kept in zip((process.stdout, process.stderr), streams, strict=True):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, kept)
        exited_at: float | None = None
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return False
            if exited_at is None and process.poll() is not None:
                exited_at = now
            if exited_at is not None and now - exited_at > DRAIN_SECONDS:
                return True
            for key, _ in selector.select(min(0.1, deadline - now)):
                chunk = os.read(key.fd, 65536)
                if chunk:
                    key.data.write(chunk)
                else:
                    selector.unregister(key.fileobj)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the command's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def checked_output(argv: Sequence[str], context: Context) -> str:
    """Run a command that must succeed and return what it printed; raise TaskFailed otherwise."""
    command = run_command(argv, context.deadline)
    if command.code != 0:
        tool = os.path.basename(argv[0])
        raise TaskFailed(f"{tool} ended with exit code {command.code}", command.output)
    return command.stdout

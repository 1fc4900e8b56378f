"""What all categories of tasks share: the shape of a task, its errors, its outcome, commands."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from settings import Settings

Verdict = Literal["success", "failed", "rejected", "escalated", "denied", "expired", "unknown"]

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


class TaskRejected(Exception):
    """The request is not acceptable and nothing ran; the message says what would be right."""


class TaskFailed(Exception):
    """The task ran and the world said no.

    `output` is what there was to see until then, `value` the structured part of it.
    """

    def __init__(self, message: str, output: str = "", value: Any = None) -> None:
        super().__init__(message)
        self.output = output
        self.value = value


class LimitReached(BaseException):
    """The task's time is over. Not an Exception: no library's `except Exception` may swallow it."""


@dataclass(frozen=True)
class Change:
    """What a file task changed: a unified diff, the backup's path, whether the changelog has it."""

    diff: str
    backup: str
    changelog_updated: bool


@dataclass(frozen=True)
class Result:
    """What a task that succeeded returns: text for people, a JSON value for programs."""

    text: str
    value: Any = None
    change: Change | None = None


@dataclass(frozen=True)
class Outcome:
    """How a request ended. `error` is empty for a success, `text` is its result or its output."""

    verdict: Verdict
    text: str = ""
    error: str = ""
    value: Any = None
    change: Change | None = None


def no_database(statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Stand in for Context.query where a task runs by hand."""
    raise TaskFailed("this task reads the database; send it as a message")


@dataclass(frozen=True)
class Context:
    """What a task may know besides its parameters.

    `reason` and `requester` are cleaned, one line each. `deadline` is on the clock of
    `time.monotonic()`. `query` runs one fixed SELECT read-only and returns its rows; it raises
    TaskFailed where there is no database.
    """

    settings: Settings
    message_id: int
    requester: str
    reason: str
    deadline: float
    query: Callable[[str, dict[str, Any]], list[tuple[Any, ...]]] = no_database
    # A person agreed to exactly this request.
    approved: bool = False

    def remaining(self) -> float:
        """Return the seconds left; raise LimitReached when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise LimitReached
        return seconds


class Params(BaseModel):
    """The parameters of a task: nothing is converted, nothing unknown is let in."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class NoParams(Params):
    """A task without parameters."""


@dataclass(frozen=True)
class OneOf:
    """Annotates a parameter that must be, whole, one of the values that a setting lists.

    Models are validated with `context=settings`. A number may also come as its digits. The
    JSON Schema says {"enum": "<setting>"}; `task_executor.input_schema` puts the values there.
    """

    setting: Literal["trading_services", "log_services", "system_units", "health_ports"]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": self.setting}

    def check(self, value: Any, info: ValidationInfo) -> Any:
        for allowed in getattr(info.context, self.setting):
            if type(value) in (int, str) and value in (allowed, str(allowed)):
                return allowed
        known = ", ".join(str(item) for item in getattr(info.context, self.setting))
        raise PydanticCustomError("one_of", "not one of: {known}", {"known": known})


@dataclass(frozen=True)
class Task:
    """A whitelist entry. The description of the task is the docstring of `run`.

    `timeout` is in seconds. `changes` says that it must never run twice. `investigate` finds out,
    after an interruption, whether it happened: it gets the time of the claim in seconds since
    1970 on this host's clock and returns None where the truth cannot be known. `approval` says
    why these parameters need a person, or None. `preview` returns the diff that a run would make.
    """

    category: str
    params: type[Params]
    run: Callable[[Any, Context], Result]
    timeout: int
    changes: bool = False
    investigate: Callable[[Any, Context, float], Outcome | None] | None = None
    approval: Callable[[Any, Settings], str | None] | None = None
    preview: Callable[[Any, Context], str] | None = None


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return aligned columns, one line a row whatever the cells hold; None is shown as "-"."""
    lines = [list(header), *([cell_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cell_text(cell: Any) -> str:
    return "-" if cell is None else " ".join(str(cell).split())


def end_time_limit() -> None:
    """Switch the alarm of the running task off: from here on it must not be torn apart."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass
class CappedBytes:
    """The first and the last bytes of a stream, however long it is."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0

    def write(self, chunk: bytes) -> None:
        room = KEPT_BYTES - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        excess = len(self.tail) - KEPT_BYTES
        if excess > 0:
            del self.tail[:excess]
            self.dropped += excess

    def text(self) -> str:
        gap = b"\n... %d bytes left out ...\n" % self.dropped if self.dropped else b""
        return bytes(self.head + gap + self.tail).decode(errors="replace")


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
    stdin: int = subprocess.DEVNULL,
    before: Callable[[], None] | None = None,
) -> Command:
    """Run a command without a shell, in a session and an environment of its own.

    `deadline` is on the clock of `time.monotonic()`; then the whole process group is killed and
    TaskFailed raised, as it is when the program is missing. `before` runs in the child.
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
    streams = (CappedBytes(), CappedBytes())
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
        raise TaskFailed(f"{os.path.basename(argv[0])} did not finish in time", command.output)
    return command


def read_streams(
    process: subprocess.Popen[bytes], streams: tuple[CappedBytes, CappedBytes], deadline: float
) -> bool:
    """Read both pipes until they end or the time is over; return whether the command finished."""
    with selectors.DefaultSelector() as selector:
        pipes: tuple[IO[bytes] | None, IO[bytes] | None] = (process.stdout, process.stderr)
        for pipe, kept in zip(pipes, streams, strict=True):
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

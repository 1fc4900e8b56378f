"""How a request ends, and what a task may know: the ground that tasks, files and host stand on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from catalyst_heartbeat.redaction import LONGEST_SECRET
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import without_end

Verdict = Literal["success", "failed", "rejected", "escalated", "denied", "expired", "unknown"]


class Quote(NamedTuple):
    """A sender's words within a sentence of the program, whole: they are cut once redacted."""

    text: str
    limit: int

    def shown(self, secrets: tuple[str, ...]) -> str:
        return without_end(self.text[: self.limit + LONGEST_SECRET], self.limit, secrets)


class TaskRejected(Exception):
    """The request is not acceptable and nothing ran; the message says what would be right."""

    def __init__(self, *parts: str | Quote) -> None:
        self.parts = parts
        super().__init__(self.told(()))

    def told(self, secrets: tuple[str, ...]) -> str:
        """Return the message as it may leave the program."""
        shown = (part.shown(secrets) if isinstance(part, Quote) else part for part in self.parts)
        return "".join(shown)


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
    """Stand in for Context.query where there is no database."""
    raise TaskFailed("this task reads the database; it needs RESEARCH_DATABASE_URL")


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
    # What the person who agreed to exactly this request saw change; None where nobody was asked.
    approved_diff: str | None = None
    # What list_tasks lists: the shape of a task stands above this floor.
    whitelist: Mapping[str, Any] = field(default_factory=dict)

    def remaining(self) -> float:
        """Return the seconds left; raise LimitReached when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise LimitReached
        return seconds


def end_time_limit() -> None:
    """Switch the alarm of the running task off: from here on it must not be torn apart."""
    signal.setitimer(signal.ITIMER_REAL, 0)

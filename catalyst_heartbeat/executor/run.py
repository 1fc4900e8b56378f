"""Runs one job within its time limit; a bug in a task becomes a report."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg2

from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.files.diff import Diff
from catalyst_heartbeat.outcome import (
    Context,
    LimitReached,
    Outcome,
    Result,
    TaskFailed,
    TaskRejected,
    no_database,
)
from catalyst_heartbeat.queue.connection import DatabaseLost, Row, first_line
from catalyst_heartbeat.report import REASON_LIMIT
from catalyst_heartbeat.text import header

log = logging.getLogger("heartbeat")
# The alarm comes a little after the deadline that a task can see for itself.
ALARM_GRACE_SECONDS = 0.25
INVESTIGATION_SECONDS = 30


def context_for(job: Job, agent: Agent, approved_diff: str | None = None) -> Context:
    """Return what a task may know when it runs for a message."""
    settings, message = agent.settings, job.message
    return Context(
        settings,
        message.id,
        header(message.from_agent, REASON_LIMIT, settings.secrets),
        header(job.request.reason, REASON_LIMIT, settings.secrets),
        time.monotonic() + (job.task.timeout if job.task else 0),
        partial(query, agent) if settings.research_database_url else no_database,
        approved_diff=approved_diff,
        whitelist=agent.whitelist,
    )


def query(agent: Agent, statement: str, params: dict[str, Any]) -> list[Row]:
    """Read for a task from the agent's database; raise TaskFailed where it does not answer."""
    try:
        return agent.database.query(statement, params)
    except (DatabaseLost, psycopg2.Error) as error:
        raise TaskFailed(f"the database did not answer: {first_line(error)}") from error


def execute(job: Job, context: Context) -> Outcome:
    """Run a validated job and return how it ended; never raises."""
    if job.task is None:
        return Outcome("failed", error=f"approved, but this agent has no task named {job.name}")
    result: Result | None = None
    try:
        with time_limit(job.task.timeout):
            result = job.task.run(job.params, context)
    except TaskFailed as error:
        return Outcome("failed", error.output, str(error), error.value)
    except LimitReached:
        pass
    except Exception as error:  # the one place where a bug becomes a report
        log.exception("#%d %s: unexpected error", context.message_id, job.name)
        return Outcome("failed", error=f"unexpected {type(error).__name__}; the log has the trace")
    if result is None:
        return Outcome("failed", error=f"did not finish within {job.task.timeout} s")
    return Outcome("success", result.text, value=result.value, change=result.change)


def investigate(job: Job, context: Context, claimed_at: float) -> Outcome | None:
    """Find out whether an interrupted job happened; None where that cannot be known."""
    if job.task is None or job.task.investigate is None:
        return None
    try:
        with time_limit(INVESTIGATION_SECONDS):
            return job.task.investigate(job.params, context, claimed_at)
    except (TaskFailed, LimitReached) as error:
        log.warning("#%d %s: cannot find out: %s", context.message_id, job.name, error)
    except Exception:
        log.exception("#%d %s: cannot find out", context.message_id, job.name)
    return None


def preview(job: Job, agent: Agent) -> Diff:
    """Return the diff that a job would make, an empty one where it changes no file.

    Raises TaskRejected where the job would fail.
    """
    if job.task is None or job.task.preview is None:
        return Diff()
    try:
        with time_limit(job.task.timeout):
            return job.task.preview(job.params, context_for(job, agent))
    except TaskFailed as error:
        raise TaskRejected(f"it would fail: {error}") from error
    except LimitReached:
        raise TaskRejected(f"its preview did not finish within {job.task.timeout} s") from None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise LimitReached in the main thread after so many seconds, and each second after that."""

    def on_alarm(number: int, frame: object) -> None:
        raise LimitReached

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_GRACE_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

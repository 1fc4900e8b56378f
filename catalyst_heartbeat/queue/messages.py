"""Every transition of claude_messages and claude_state, one function each.

Each function is one transaction: statements that are sent in one string commit together. No
session state is used, so a pooler in transaction mode may sit in between. Every statement on a
message may be sent twice, because each transition is guarded by the status, and by the claim's
token, that it starts from. Only `observe` and the error count of `rest` then count twice.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2

from catalyst_heartbeat.approvals import statements as approval_sql
from catalyst_heartbeat.queue import inspection_statements as inspection_sql
from catalyst_heartbeat.queue import statements as sql
from catalyst_heartbeat.queue.connection import Database

if TYPE_CHECKING:
    from catalyst_heartbeat.report import Report

LEASE_GRACE_SECONDS = 30
BODY_LIMIT_BYTES = 1024 * 1024
ONE_FINAL_REPORT = "idx_one_final_report"
NEEDED_COLUMNS = {
    "claude_messages": (
        "id", "from_agent", "to_agent", "msg_type", "priority", "subject", "body", "data",
        "reply_to_id", "thread_id", "status", "created_at", "read_at", "processed_at",
        "expires_at", "requires_response",
    ),
    "claude_state": (
        "agent_id", "current_mode", "last_wake_at", "last_action_at", "last_poll_at",
        "status_message", "error_count_today", "last_error", "last_error_at", "updated_at",
    ),
    "claude_observations": (
        "id", "agent_id", "observation_type", "subject", "content", "created_at",
    ),
}  # fmt: skip


class Work(NamedTuple):
    """Whether there is any, by kind: the first look of a cycle."""

    pending: bool
    processing: bool
    decided: bool
    receipts: bool


class Claim(NamedTuple):
    """A task message that this process holds, as it read when the claim was written.

    Times are text as the database writes it, or seconds since 1970 by the database's clock;
    `sent_at` is when the claim was sent, on the clock of `time.monotonic()`.
    `body` is None when it is NULL or over BODY_LIMIT_BYTES; `body_bytes` tells which.
    """

    sent_at: float
    token: str
    id: int
    from_agent: str
    subject: str | None
    body: str | None
    body_bytes: int | None
    created_at: str | None
    expires_at: str | None
    too_late: bool
    attempt: int
    reported: bool
    claimed_at: float | None
    now: float
    escalation_id: int | None


class Ending(NamedTuple):
    """How a claimed task ends: whose claim it is, the status that it gets, its final report."""

    id: int
    token: str
    status: str
    report: Report


class AtWork(NamedTuple):
    """A task being processed; what its claim says is text that anybody may have written."""

    id: int
    token: str | None
    host: str | None
    pid: str | None
    lease_until: str | None
    now: float
    fence: str | None
    since: str | None


class Waiting(NamedTuple):
    """A task that waits for the approver, and its escalation; None where that is gone."""

    id: int
    escalation_id: int | None
    escalation_status: str | None
    in_time: bool | None
    subject: str | None
    body_start: str | None
    receipt: str | None
    attempt: int


class Escalation(NamedTuple):
    """An escalation whose task waits; times in seconds, `left` until it expires."""

    id: int
    subject: str | None
    status: str | None
    age: float | None
    left: float | None


class State(NamedTuple):
    """An agent's row of claude_state; times are how many seconds ago."""

    mode: str | None
    summary: str | None
    errors_today: int
    last_error: str | None
    polled: float | None
    failed: float | None


class Approval(NamedTuple):
    """What an escalation asked for, and whether it still shows what it showed at first."""

    data: Any
    unaltered: bool
    body: str


def wake(database: Database) -> str:
    """Write that the agent is awake and return its mode, which may also be paused or retired."""
    return str(database.fetch(sql.WAKE, {"agent": database.agent})[0][0])


def look(database: Database, approver: str) -> Work:
    return Work(*database.fetch(sql.LOOK, {"agent": database.agent, "approver": approver})[0])


def check_schema(database: Database) -> None:
    """Raise psycopg2.errors.UndefinedColumn that names what the tables lack."""
    missing = missing_columns(database)
    if missing:
        raise psycopg2.errors.UndefinedColumn(f"missing {', '.join(missing)}")


def missing_columns(database: Database) -> list[str]:
    """Return the columns that the program needs and the database has not, as table.column."""
    there = {f"{table}.{column}" for table, column in database.fetch(sql.COLUMNS)}
    needed = (
        f"{table}.{column}" for table, columns in NEEDED_COLUMNS.items() for column in columns
    )
    return [name for name in needed if name not in there]


def count_pending(database: Database) -> int:
    return int(database.fetch(sql.COUNT_PENDING, {"agent": database.agent})[0][0])


def rest(database: Database, summary: str, *, acted: bool, error: str | None) -> None:
    """Write what the cycle did; an error is counted, and its text and time stand together."""
    params = {"agent": database.agent, "summary": summary, "acted": acted, "error": error}
    database.fetch(sql.REST, params)


def observe(database: Database, subject: str, content: str) -> None:
    database.fetch(sql.OBSERVE, {"agent": database.agent, "subject": subject, "content": content})


def claim_next(database: Database, expiry_hours: int, timeouts: dict[str, int]) -> Claim | None:
    """Claim the next pending task; None when there is none or another one is being processed."""
    which = {"expiry_hours": expiry_hours, "finished": None}
    return claim(database, sql.CLAIM_PENDING, timeouts, which)


def claim_approved(database: Database, waiting: Waiting, timeouts: dict[str, int]) -> Claim | None:
    """Use an approval; None when it is not there any more or another task is being processed."""
    which = {"id": waiting.id, "escalation_id": waiting.escalation_id, "expiry_hours": None}
    statement = sql.LOCK + sql.NEXT_APPROVED + sql.TAKE + sql.TAKEN
    return claim(database, statement, timeouts, which)


def claim(
    database: Database, statement: str, timeouts: dict[str, int], which: dict[str, Any]
) -> Claim | None:
    token = os.urandom(16).hex()
    params = {
        "agent": database.agent,
        "new_token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "timeouts": json.dumps(timeouts),
        "longest": max(timeouts.values()),
        "grace": LEASE_GRACE_SECONDS,
        "body_limit": BODY_LIMIT_BYTES,
        **which,
    }
    sent_at = time.monotonic()
    connection = database.conn
    rows = database.fetch(statement, params)
    if not rows and database.conn is not connection:
        sent_at = time.monotonic()
        rows = database.fetch(sql.LOCK + sql.NEXT_OWN + sql.TAKE + sql.TAKEN, params)
    return Claim(sent_at, token, *rows[0]) if rows else None


def claim_interrupted(database: Database, found: AtWork, seconds: int) -> Claim | None:
    """Take an interrupted task over for `seconds`; None when its claim has changed meanwhile.

    What the claim says of its host, process and attempt stays as it was.
    """
    token = os.urandom(16).hex()
    params = {
        "agent": database.agent,
        "new_token": token,
        "id": found.id,
        "fence": found.fence,
        "seconds": seconds,
        "body_limit": BODY_LIMIT_BYTES,
    }
    sent_at = time.monotonic()
    rows = database.fetch(sql.NEXT_INTERRUPTED + sql.TAKE_OVER + sql.TAKEN, params)
    return Claim(sent_at, token, *rows[0]) if rows else None


def at_work(database: Database) -> list[AtWork]:
    """Return the tasks of this agent that are being processed."""
    return [AtWork(*row) for row in database.fetch(sql.AT_WORK, {"agent": database.agent})]


def finish(database: Database, ending: Ending) -> bool:
    """Store the final report and end the claim; False when the claim was lost.

    A task that somebody gave a final report already is closed without a second one.
    """
    try:
        rows = database.fetch(sql.FINISH + sql.ANSWER, ended(database, ending))
    except psycopg2.errors.UniqueViolation as error:
        if error.diag.constraint_name != ONE_FINAL_REPORT:
            raise  # as when the table's sequence of ids lags behind
        return close(database, ending.id, ending.token)
    return bool(rows) or was_ours(database, ending.id, ending.token)


def finish_and_claim_next(
    database: Database, ending: Ending, expiry_hours: int, timeouts: dict[str, int]
) -> tuple[bool, Claim | None]:
    """Do what `finish` and then `claim_next` would, in one transaction, and return their results.

    Where the database refuses that, the report is stored alone: a claim must not hold it up.
    """
    which = ended(database, ending) | {"expiry_hours": expiry_hours, "finished": ending.id}
    try:
        following = claim(database, sql.FINISH_AND_CLAIM, timeouts, which)
    except psycopg2.Error:
        return finish(database, ending), None
    return following is not None or was_ours(database, ending.id, ending.token), following


def close(database: Database, task_id: int, token: str) -> bool:
    """End the claim of a task that has its final report; False when the claim was lost."""
    rows = database.fetch(sql.CLOSE, fence(database, task_id, token))
    return bool(rows) or was_ours(database, task_id, token)


def release(database: Database, task_id: int, token: str) -> bool:
    """Give an interrupted task back to the queue; False when the claim was lost."""
    return bool(database.fetch(sql.RELEASE, fence(database, task_id, token)))


def was_ours(database: Database, task_id: int, token: str) -> bool:
    """Tell whether a statement that changed nothing had been sent, and had worked, before."""
    return bool(database.fetch(sql.FATE, fence(database, task_id, token))[0][0])


def oversized(database: Database) -> tuple[int, str | None, str | None, str] | None:
    """Return id, subject, start of the body and status of a task too large to be claimed."""
    rows = database.fetch(sql.OVERSIZED, {"agent": database.agent})
    return (rows[0][0], rows[0][1], rows[0][2], rows[0][3]) if rows else None


def end_oversized(database: Database, task_id: int, seen: str, report: Report) -> bool:
    """Store the final report on a task too large to be claimed; False when it changed."""
    params = columns(report) | {"agent": database.agent, "id": task_id, "seen": seen}
    return bool(database.fetch(sql.END_OVERSIZED + sql.ANSWER, params))


def open_escalations(database: Database, task: str, params: str) -> tuple[int, int | None]:
    """Return how many requests wait for the approver, and the message id of an identical one."""
    which = {"agent": database.agent, "task": task, "params": params}
    count, identical = database.fetch(approval_sql.OPEN_ESCALATIONS, which)[0]
    return count, identical


def escalate(
    database: Database, held: Claim, approver: str, card: Report, until: float, interim: Report
) -> bool:
    """Store the request to the approver and the interim report; False when the claim was lost."""
    params = (
        fence(database, held.id, held.token)
        | columns(interim)
        | {
            "approver": approver,
            "card_subject": card.subject,
            "card_body": card.body,
            "card_data": json.dumps(card.data),
            "shown": shown_hash(card.subject, card.body),
            "until": until,
        }
    )
    rows = database.fetch(approval_sql.ESCALATE + sql.ANSWER, params)
    return bool(rows) or was_ours(database, held.id, held.token)


def waiting(database: Database, approver: str) -> list[Waiting]:
    """Return the tasks that wait for the approver, the oldest request first."""
    rows = database.fetch(approval_sql.WAITING, {"agent": database.agent, "approver": approver})
    return [Waiting(*row) for row in rows]


def approval(database: Database, held: Claim) -> Approval:
    """Return the escalation whose approval was used for this claim."""
    params = {"id": held.id, "escalation_id": held.escalation_id, "body_limit": BODY_LIMIT_BYTES}
    data, subject, body, shown = database.fetch(approval_sql.APPROVAL, params)[0]
    return Approval(data, shown == shown_hash(subject, body), body or "")


def refuse(database: Database, task: Waiting, status: str, decision: str, report: Report) -> bool:
    """End a task that waited without running it, and its escalation; False when it changed.

    `status` is what both rows get.
    """
    params = columns(report) | {
        "agent": database.agent,
        "id": task.id,
        "status": status,
        "escalation_id": task.escalation_id,
        "decision": decision,
        "seen": task.escalation_status,
    }
    return bool(database.fetch(approval_sql.REFUSE + sql.ANSWER, params))


def mark_receipts(database: Database, approver: str) -> int:
    """Mark the approver's receipts for this agent's escalations processed; return how many."""
    return len(
        database.fetch(approval_sql.RECEIPTS, {"agent": database.agent, "approver": approver})
    )


def withdraw_escalations(database: Database, approver: str) -> list[int]:
    """Expire the escalations for which no task waits, as when somebody closed it by hand."""
    rows = database.fetch(approval_sql.WITHDRAW, {"agent": database.agent, "approver": approver})
    return [id for (id,) in rows]


def server(database: Database) -> tuple[str, float]:
    """Return the server's version and its clock, in seconds since 1970."""
    version, clock = database.fetch(inspection_sql.SERVER)[0]
    return version, clock


def indexes(database: Database) -> set[str]:
    """Return the names of the indexes on claude_messages that can be used."""
    return {name for (name,) in database.fetch(inspection_sql.INDEXES)}


def identity(database: Database) -> tuple[str, bool, bool]:
    """Return the login, whether row-level security holds for it, and whether it may create."""
    login, held, creates = database.fetch(inspection_sql.IDENTITY)[0]
    return login, held, creates


def state(database: Database) -> State | None:
    """Return the agent's state, None before its first cycle."""
    rows = database.fetch(inspection_sql.STATE, {"agent": database.agent})
    return State(*rows[0]) if rows else None


def queue(database: Database) -> list[tuple[str | None, int, float | None]]:
    """Return priority, number of pending tasks and the oldest one's age, in the claim's order."""
    return [
        (row[0], row[1], row[2])
        for row in database.fetch(inspection_sql.QUEUE, {"agent": database.agent})
    ]


def escalations(database: Database) -> list[Escalation]:
    """Return the escalations of the tasks that wait for the approver, the oldest first."""
    return [
        Escalation(*row)
        for row in database.fetch(inspection_sql.ESCALATIONS, {"agent": database.agent})
    ]


def pending_ids(database: Database) -> list[int]:
    """Return the ids of the tasks that would be claimed next, in that order."""
    rows = database.fetch(inspection_sql.PENDING_IDS, {"agent": database.agent})
    return [task_id for (task_id,) in rows]


def foresee(
    database: Database, task_id: int, expiry_hours: int, escalation_id: int | None = None
) -> Claim | None:
    """Return what a claim of this task would hold, without a token; None when it is gone."""
    params = {
        "agent": database.agent,
        "id": task_id,
        "expiry_hours": expiry_hours,
        "escalation_id": escalation_id,
        "body_limit": BODY_LIMIT_BYTES,
    }
    rows = database.fetch(inspection_sql.FORESEEN, params)
    return Claim(time.monotonic(), "", *rows[0]) if rows else None


def fence(database: Database, task_id: int, token: str) -> dict[str, Any]:
    return {"agent": database.agent, "id": task_id, "token": token}


def ended(database: Database, ending: Ending) -> dict[str, Any]:
    held = fence(database, ending.id, ending.token)
    return held | columns(ending.report) | {"status": ending.status}


def columns(report: Report) -> dict[str, Any]:
    return {"subject": report.subject, "body": report.body, "data": json.dumps(report.data)}


def shown_hash(subject: str | None, body: str | None) -> str:
    """Return the SHA-256 of what an escalation shows, kept in its task's data."""
    import hashlib  # an idle cycle never needs it

    return hashlib.sha256(f"{subject}\n{body}".encode()).hexdigest()

"""A task message's life from its claim to its final report, one function a transition.

Statements that are sent in one string are one transaction. No session state is used, so a pooler
in transaction mode may sit in between. Every statement may be sent twice, because each transition
is guarded by the status, and by the claim's token, that it starts from.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2

from catalyst_heartbeat.queue.connection import Database

if TYPE_CHECKING:
    from catalyst_heartbeat.report import Report

LEASE_GRACE_SECONDS = 30
BODY_LIMIT_BYTES = 1024 * 1024
# What a sender put into a row's data is read, and kept, up to this size.
DATA_LIMIT_BYTES = 64 * 1024
ONE_FINAL_REPORT = "idx_one_final_report"

LOCK = """
-- Held until this transaction's end, so the next statement sees every earlier claim. Nobody but
-- this agent may lock its row.
SELECT FROM claude_state WHERE agent_id = %(agent)s FOR NO KEY UPDATE;
"""

CLAIM_PENDING = """
-- With statistics from before a burst the planner would sort the queue for each claim.
SET LOCAL enable_sort = off;
-- pending -> processing: the next task of a known sender, unless another task of this agent is at
-- work or the agent was paused; skips a row that somebody else holds. A row with more data than is
-- read is left to REFUSABLE, by its size alone: first as it is stored, then as it really is.
WITH next AS (
    SELECT first.id
      FROM unnest(%(senders)s) AS sender
     CROSS JOIN LATERAL (
           SELECT id, created_at,
                  CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                                WHEN 'low' THEN 3 ELSE 4 END AS rank
             FROM claude_messages
            WHERE msg_type = 'task' AND to_agent = %(agent)s AND from_agent = sender
              AND status = 'pending' AND id <> ALL(%(passed_over)s)
              AND CASE WHEN data IS NULL THEN true
                       WHEN pg_column_size(data) > %(data_limit)s THEN false
                       ELSE pg_column_size(data #> '{}') <= %(data_limit)s END
            ORDER BY CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                                   WHEN 'low' THEN 3 ELSE 4 END, created_at, id
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
           ) AS first
     WHERE NOT EXISTS (SELECT FROM claude_messages WHERE msg_type = 'task'
                          AND to_agent = %(agent)s AND status = 'processing'
                          -- What only waits for its report to be taken is at work no more.
                          AND NOT CASE WHEN id = ANY(%(unsent)s)
                                        AND pg_column_size(data) <= 2 * %(data_limit)s
                                       THEN COALESCE(data #>> '{claim,token}'
                                                     = ANY(%(unsent_tokens)s), false)
                                       ELSE false END)
       AND EXISTS (SELECT FROM claude_state WHERE agent_id = %(agent)s
                      AND current_mode IS DISTINCT FROM 'paused'
                      AND current_mode IS DISTINCT FROM 'retired')
       -- Without its report there is no further claim.
       AND (%(finished)s IS NULL
         OR EXISTS (SELECT FROM claude_messages
                     WHERE id = %(finished)s AND xmin = pg_current_xact_id()::xid))
     ORDER BY first.rank, first.created_at, first.id
     LIMIT 1
)
UPDATE claude_messages AS task
   SET status = 'processing', read_at = now(),
       data = CASE WHEN jsonb_typeof(task.data) = 'object' THEN task.data
                   WHEN task.data IS NULL THEN '{}'
                   ELSE jsonb_build_object('data', task.data) END
              || jsonb_build_object('claim', jsonb_build_object(
                     'token', %(new_token)s, 'host', %(host)s, 'pid', %(pid)s,
                     'attempt', 1 + CASE
                         WHEN task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
                         THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END,
                     'lease_until', clock_timestamp() + make_interval(secs => %(grace)s + COALESCE(
                         (%(timeouts)s::jsonb ->> substring(
                             left(task.body, 200)
                             FROM '^[[:space:]]*TASK:[[:blank:]]*([a-z0-9_]+)'))::integer,
                         %(longest)s))))
 WHERE task.id = (SELECT id FROM next)
-- The columns of READ, which need not look for the row again.
RETURNING id, from_agent, subject,
          CASE WHEN octet_length(body) <= %(body_limit)s THEN body END, octet_length(body),
          false, created_at::text, expires_at::text,
          CASE WHEN expires_at IS NOT NULL THEN expires_at <= now()
               ELSE created_at IS NULL
                 OR created_at <= now() - make_interval(hours => %(expiry_hours)s) END,
          (data #>> '{claim,attempt}')::integer,
          EXISTS (SELECT FROM claude_messages AS report
                   WHERE report.reply_to_id = task.id AND report.from_agent || '' = %(agent)s
                     AND report.msg_type = 'response' AND report.data ->> 'final' = 'true'
                  OFFSET 0),  -- or a second plan is made, for all reports at once
          EXTRACT(EPOCH FROM read_at)::float8, EXTRACT(EPOCH FROM now())::float8
"""

CLAIM_APPROVED = """
-- escalated -> processing, and approved -> processed: uses an approval, once and in time.
WITH used AS (
    UPDATE claude_messages AS card
       SET status = 'processed', processed_at = now(),
           data = CASE WHEN pg_column_size(card.data) <= %(data_limit)s
                        AND jsonb_typeof(card.data) = 'object' THEN card.data ELSE '{}' END
                  || jsonb_build_object('decision', 'approved', 'used_by', %(new_token)s)
     WHERE card.id = %(card_id)s AND card.status = 'approved' AND card.expires_at > now()
       AND EXISTS (SELECT FROM claude_messages AS task
                    WHERE task.id = %(id)s AND task.status = 'escalated')
       AND NOT EXISTS (SELECT FROM claude_messages WHERE msg_type = 'task'
                          AND to_agent = %(agent)s AND status = 'processing'
                          -- What only waits for its report to be taken is at work no more.
                          AND NOT CASE WHEN id = ANY(%(unsent)s)
                                        AND pg_column_size(data) <= 2 * %(data_limit)s
                                       THEN COALESCE(data #>> '{claim,token}'
                                                     = ANY(%(unsent_tokens)s), false)
                                       ELSE false END)
       AND EXISTS (SELECT FROM claude_state WHERE agent_id = %(agent)s
                      AND current_mode IS DISTINCT FROM 'paused'
                      AND current_mode IS DISTINCT FROM 'retired')
    RETURNING card.id
)
UPDATE claude_messages AS task
   SET status = 'processing', read_at = now(),
       data = task.data || jsonb_build_object('claim', jsonb_build_object(
                  'token', %(new_token)s, 'host', %(host)s, 'pid', %(pid)s,
                  'attempt', 1 + CASE
                      WHEN task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
                      THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END,
                  'lease_until', clock_timestamp() + make_interval(secs => %(grace)s + COALESCE(
                      (%(timeouts)s::jsonb ->> substring(
                          left(task.body, 200)
                          FROM '^[[:space:]]*TASK:[[:blank:]]*([a-z0-9_]+)'))::integer,
                      %(longest)s))))
  FROM used
 WHERE task.id = %(id)s AND task.status = 'escalated';
"""

TAKE_OVER = """
-- processing -> processing: the claim of a task that was interrupted, unless it changed meanwhile.
-- What the claim says of its host, process and attempt stays as it was.
UPDATE claude_messages
   SET data = CASE WHEN jsonb_typeof(data) = 'object' THEN data
                   WHEN data IS NULL THEN '{}'
                   ELSE jsonb_build_object('data', data) END
              || jsonb_build_object('claim',
                     CASE jsonb_typeof(data -> 'claim') WHEN 'object' THEN data -> 'claim'
                                                        ELSE '{}' END
                     || jsonb_build_object(
                            'token', %(new_token)s,
                            'lease_until', clock_timestamp() + make_interval(secs => %(seconds)s)))
 WHERE id = %(id)s AND status = 'processing'
   AND CASE WHEN pg_column_size(data) <= 2 * %(data_limit)s
            THEN md5((data -> 'claim')::text) END IS NOT DISTINCT FROM %(fence)s;
"""

READ = """
-- A task as it is decided on: the one of this id, or the one that this token has claimed.
SELECT id, from_agent, subject,
       CASE WHEN octet_length(body) <= %(body_limit)s THEN body END, octet_length(body),
       -- What was claimed or escalated before holds our own notes as well.
       CASE WHEN data IS NULL THEN false
            WHEN pg_column_size(data) > 2 * %(data_limit)s THEN true
            ELSE pg_column_size(data #> '{}')
                 > CASE status WHEN 'pending' THEN 1 ELSE 2 END * %(data_limit)s END,
       created_at::text, expires_at::text,
       CASE WHEN expires_at IS NOT NULL THEN expires_at <= now()
            ELSE created_at IS NULL
              OR created_at <= now() - make_interval(hours => %(expiry_hours)s) END,
       CASE WHEN pg_column_size(data) <= 2 * %(data_limit)s
             AND data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
            THEN (data #>> '{claim,attempt}')::integer ELSE 0 END,
       -- || '': with the bare column idx_msg_from may be chosen, and all its reports read.
       EXISTS (SELECT FROM claude_messages AS report
                WHERE report.reply_to_id = task.id AND report.from_agent || '' = %(agent)s
                  AND report.msg_type = 'response' AND report.data ->> 'final' = 'true'),
       EXTRACT(EPOCH FROM read_at)::float8, EXTRACT(EPOCH FROM now())::float8
  FROM claude_messages AS task
 WHERE msg_type = 'task' AND to_agent = %(agent)s
   AND (id = %(read_id)s
     OR status = 'processing' AND CASE WHEN pg_column_size(data) <= 2 * %(data_limit)s
                                       THEN data #>> '{claim,token}' END = %(new_token)s)
"""

FINISH = """
-- processing -> processed or expired: the claim's end, with its report in one transaction. Who
-- takes a task back while it runs comes too late: it ran, and that is told.
UPDATE claude_messages
   SET status = %(status)s, processed_at = now()
 WHERE id = %(id)s AND status IN ('processing', 'cancelled')
   AND data #>> '{claim,token}' = %(token)s;
"""

REFUSE = """
-- pending or processing -> processed: without a claim, and without reading its data.
UPDATE claude_messages
   SET status = 'processed', processed_at = now()
 WHERE id = %(id)s AND status = %(seen)s;
"""

ANSWER = """
-- The report on the task that this transaction has just moved on. Where a trigger drops it without
-- an error, the cast of this text makes one: a task never ends without its report.
WITH task AS (
    SELECT id, from_agent, priority, thread_id
      FROM claude_messages
     WHERE id = %(id)s AND xmin = pg_current_xact_id()::xid
), report AS (
    INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body, data,
                                 reply_to_id, thread_id, status, expires_at, requires_response)
    SELECT %(agent)s, from_agent, 'response',
           CASE WHEN priority IN ('urgent', 'high', 'normal', 'low') THEN priority
                ELSE 'normal' END,
           %(subject)s, %(body)s, %(data)s::jsonb, id, COALESCE(thread_id, id), 'pending', NULL,
           false
      FROM task
    RETURNING id
)
SELECT COALESCE(report.id,
                ('report on #' || task.id || ' not stored, a trigger dropped it')::bigint)
  FROM task LEFT JOIN report ON true;
"""

CLOSE = """
-- processing -> processed: a task that has its final report already gets no second one.
UPDATE claude_messages
   SET status = 'processed', processed_at = now()
 WHERE id = %(id)s AND status = 'processing' AND data #>> '{claim,token}' = %(token)s
RETURNING id
"""

RELEASE = """
-- processing -> pending: an interrupted task that changes nothing may run again.
UPDATE claude_messages
   SET status = 'pending'
 WHERE id = %(id)s AND status = 'processing' AND data #>> '{claim,token}' = %(token)s
RETURNING id
"""

FATE = """
-- After a statement that changed nothing: was it ours, sent twice, or was the claim lost? Others
-- change statuses too, so a status alone does not tell that the report is there.
SELECT EXISTS (SELECT FROM claude_messages AS task
                WHERE id = %(id)s AND data #>> '{claim,token}' = %(token)s
                  AND (status = 'escalated'
                    OR status <> 'processing'
                   AND EXISTS (SELECT FROM claude_messages AS report
                                WHERE report.reply_to_id = task.id
                                  AND report.from_agent = %(agent)s
                                  AND report.msg_type = 'response'
                                  AND report.data ->> 'final' = 'true')))
"""


class Message(NamedTuple):
    """A task message as it is decided on.

    Times are text as the database writes it, or seconds since 1970 by the database's clock.
    `body` is None when it is NULL or over BODY_LIMIT_BYTES; `body_bytes` tells which. `card_id` is
    that of the escalation whose approval this claim has used.
    """

    id: int
    from_agent: str = ""
    subject: str | None = None
    body: str | None = None
    body_bytes: int | None = None
    large_data: bool = False
    created_at: str | None = None
    expires_at: str | None = None
    too_late: bool = False
    attempt: int = 1
    reported: bool = False
    claimed_at: float | None = None
    now: float = 0.0
    card_id: int | None = None


class Claim(NamedTuple):
    """A task message that this process holds; `sent_at` is on the clock of `time.monotonic()`."""

    token: str
    sent_at: float
    message: Message

    @property
    def id(self) -> int:
        return self.message.id


class Ending(NamedTuple):
    """How a claimed task ends: whose claim it is, the status that it gets, its final report."""

    id: int
    token: str
    status: str
    report: Report


class Terms(NamedTuple):
    """Whose tasks may be claimed, when they are too late, and each task's time limit in seconds.

    `passed_over` are the ids of tasks that this cycle leaves alone, `unsent` the tokens of those
    that are over and whose reports wait in the outbox.
    """

    senders: tuple[str, ...]
    expiry_hours: int
    timeouts: dict[str, int]
    passed_over: list[int]
    unsent: dict[int, str]


def claim_next(database: Database, terms: Terms) -> Claim | None:
    """Claim the next pending task; None when there is none or another one is being processed."""
    return claim(database, LOCK + CLAIM_PENDING, terms)


def claim_approved(database: Database, terms: Terms, task_id: int, card_id: int) -> Claim | None:
    """Use an approval; None when it is not there any more or another task is being processed."""
    which = {"id": task_id, "card_id": card_id}
    claimed = claim(database, LOCK + CLAIM_APPROVED + READ, terms, which)
    return claimed and claimed._replace(message=claimed.message._replace(card_id=card_id))


def claim_interrupted(
    database: Database, terms: Terms, task_id: int, fence: str | None, seconds: int
) -> Claim | None:
    """Take an interrupted task over for `seconds`; None when its claim has changed meanwhile."""
    which = {"id": task_id, "fence": fence, "seconds": seconds}
    return claim(database, TAKE_OVER + READ, terms, which)


def finish_and_claim_next(
    database: Database, ending: Ending, terms: Terms
) -> tuple[bool, Claim | None]:
    """Do what `finish` and then `claim_next` would, in one transaction, and return their results.

    Where the database refuses that, the report is stored alone: a claim must not hold it up.
    """
    statement = LOCK + FINISH + ANSWER + CLAIM_PENDING
    try:
        claimed = claim(database, statement, terms, ended(database, ending))
    except psycopg2.Error:
        return finish(database, ending), None
    return claimed is not None or was_ours(database, ending.id, ending.token), claimed


def claim(
    database: Database, statement: str, terms: Terms, which: dict[str, Any] | None = None
) -> Claim | None:
    """Send a statement that claims a task, and return what it claimed."""
    token = os.urandom(16).hex()
    params = {
        "finished": None,
        **reading(database, terms, token=token),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "senders": list(terms.senders),
        "passed_over": terms.passed_over,
        "unsent": list(terms.unsent),
        "unsent_tokens": list(terms.unsent.values()),
        "timeouts": json.dumps(terms.timeouts),
        "longest": max(terms.timeouts.values()),
        "grace": LEASE_GRACE_SECONDS,
        **(which or {}),
    }
    sent_at, conn = time.monotonic(), database.conn
    rows = database.fetch(statement, params)
    if not rows and database.conn is not conn:  # it may have been sent twice, and worked before
        rows = database.fetch(READ, params)
    return Claim(token, sent_at, Message(*rows[0])) if rows else None


def read(database: Database, terms: Terms, task_id: int) -> Message | None:
    """Return a task message as a claim of it would; None when it is gone."""
    rows = database.fetch(READ, reading(database, terms, task_id=task_id))
    return Message(*rows[0]) if rows else None


def is_readable(database: Database, terms: Terms, task_id: int) -> bool:
    try:
        return bool(read(database, terms, task_id))
    except psycopg2.Error:
        return False


def reading(
    database: Database, terms: Terms, token: str | None = None, task_id: int | None = None
) -> dict[str, Any]:
    return {
        "agent": database.agent,
        "new_token": token,
        "read_id": task_id,
        "expiry_hours": terms.expiry_hours,
        "body_limit": BODY_LIMIT_BYTES,
        "data_limit": DATA_LIMIT_BYTES,
    }


def finish(database: Database, ending: Ending) -> bool:
    """Store the final report and end the claim; False when the claim was lost.

    A task that somebody gave a final report already is closed without a second one.
    """
    try:
        rows = database.fetch(FINISH + ANSWER, ended(database, ending))
    except psycopg2.errors.UniqueViolation as error:
        if error.diag.constraint_name != ONE_FINAL_REPORT:
            raise  # as when the table's sequence of ids lags behind
        return close(database, ending.id, ending.token)
    return bool(rows) or was_ours(database, ending.id, ending.token)


def refuse(database: Database, task_id: int, seen: str, report: Report) -> bool:
    """Store the final report on a task that was not claimed; False when it has changed."""
    params = columns(report) | {"agent": database.agent, "id": task_id, "seen": seen}
    return bool(database.fetch(REFUSE + ANSWER, params))


def close(database: Database, task_id: int, token: str) -> bool:
    """End the claim of a task that has its final report; False when the claim was lost."""
    rows = database.fetch(CLOSE, fence(database, task_id, token))
    return bool(rows) or was_ours(database, task_id, token)


def release(database: Database, task_id: int, token: str) -> bool:
    """Give a task that did not run back to the queue; False when the claim was lost."""
    return bool(database.fetch(RELEASE, fence(database, task_id, token)))


def was_ours(database: Database, task_id: int, token: str) -> bool:
    """Tell whether a statement that changed nothing had been sent, and had worked, before."""
    return bool(database.fetch(FATE, fence(database, task_id, token))[0][0])


def fence(database: Database, task_id: int, token: str) -> dict[str, Any]:
    return {"agent": database.agent, "id": task_id, "token": token}


def ended(database: Database, ending: Ending) -> dict[str, Any]:
    held = fence(database, ending.id, ending.token)
    return held | columns(ending.report) | {"status": ending.status, "finished": ending.id}


def columns(report: Report) -> dict[str, Any]:
    return {"subject": report.subject, "body": report.body, "data": json.dumps(report.data)}

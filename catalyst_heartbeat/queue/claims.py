"""Claiming a task message: whose turn it is, and what is read of it with the claim.

Statements that are sent in one string are one transaction. No session state is used, so a pooler
in transaction mode may sit in between. Every statement may be sent twice, because each transition
is guarded by the status, and by the claim's token, that it starts from.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple

import psycopg2

from catalyst_heartbeat.queue import endings
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.queue.endings import Ending

LEASE_GRACE_SECONDS = 30
BODY_LIMIT_BYTES = 1024 * 1024
# What a sender put into a row's data is read, and kept, up to this size.
DATA_LIMIT_BYTES = 64 * 1024

LOCK = """
-- Held until this transaction's end, so the next statement sees every earlier claim. Nobody but
-- this agent may lock its row.
SELECT FROM claude_state WHERE agent_id = %(agent)s FOR NO KEY UPDATE;
"""

MAY_CLAIM = """
-- Said to the statement behind it: whether the agent may claim. Not while a task of it is at work,
-- nor while it is paused, nor after an ending without its report.
SELECT set_config('heartbeat.may_claim', (
           NOT EXISTS (SELECT FROM claude_messages
                        WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'processing'
                          -- What only waits for its report to be taken is at work no more.
                          AND NOT CASE WHEN id = ANY(%(unsent)s)
                                        AND pg_column_size(data) <= 2 * %(data_limit)s
                                       THEN COALESCE(data #>> '{claim,token}'
                                                     = ANY(%(unsent_tokens)s), false)
                                       ELSE false END)
           AND EXISTS (SELECT FROM claude_state WHERE agent_id = %(agent)s
                          AND current_mode IS DISTINCT FROM 'paused'
                          AND current_mode IS DISTINCT FROM 'retired')
           AND (%(finished)s IS NULL
             OR current_setting('heartbeat.moved', true) = %(finished)s::text)
       )::text, true);
"""

CLAIM_PENDING = """
-- With statistics from before a burst the planner would sort the queue for each claim.
SET LOCAL enable_sort = off;
-- pending -> processing: the next task of a known sender; skips a row that somebody else holds. A
-- row with more data than is read is left to REFUSABLE, by its size alone: first as it is stored,
-- then as it really is. A claim that a trigger drops is an error, as in all that moves a task on.
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
     WHERE current_setting('heartbeat.may_claim')::boolean
     ORDER BY first.rank, first.created_at, first.id
     LIMIT 1
), moved (id, from_agent, subject, body, body_bytes, large_data, created_at, expires_at, too_late,
          attempt, reported, claimed_at, now) AS (
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
                         'lease_until', clock_timestamp()
                             + make_interval(secs => %(grace)s + COALESCE(
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
)
SELECT moved.*
  FROM next LEFT JOIN moved ON true
 WHERE COALESCE(moved.id, ('claim of #' || next.id || ' not stored, a trigger dropped it')::bigint)
       IS NOT NULL
"""

CLAIM_APPROVED = """
-- escalated -> processing, and approved -> processed: uses an approval, once and in time. Rows that
-- somebody holds are left for a later cycle.
WITH task AS (
    SELECT id
      FROM claude_messages
     WHERE id = %(id)s AND status = 'escalated'
       AND current_setting('heartbeat.may_claim')::boolean
       FOR NO KEY UPDATE SKIP LOCKED
), card AS (
    SELECT card.id
      FROM claude_messages AS card
     WHERE card.id = %(card_id)s AND card.status = 'approved' AND card.expires_at > now()
       AND EXISTS (SELECT FROM task)
       FOR NO KEY UPDATE SKIP LOCKED
), used AS (
    UPDATE claude_messages AS message
       SET status = 'processed', processed_at = now(),
           data = CASE WHEN pg_column_size(message.data) <= %(data_limit)s
                        AND jsonb_typeof(message.data) = 'object' THEN message.data ELSE '{}' END
                  || jsonb_build_object('decision', 'approved', 'used_by', %(new_token)s)
      FROM card
     WHERE message.id = card.id
    RETURNING message.id
), moved AS (
    UPDATE claude_messages AS message
       SET status = 'processing', read_at = now(),
           data = message.data || jsonb_build_object('claim', jsonb_build_object(
                      'token', %(new_token)s, 'host', %(host)s, 'pid', %(pid)s,
                      'attempt', 1 + CASE
                          WHEN message.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
                          THEN (message.data #>> '{claim,attempt}')::integer ELSE 0 END,
                      'lease_until', clock_timestamp() + make_interval(secs => %(grace)s + COALESCE(
                          (%(timeouts)s::jsonb ->> substring(
                              left(message.body, 200)
                              FROM '^[[:space:]]*TASK:[[:blank:]]*([a-z0-9_]+)'))::integer,
                          %(longest)s))))
      FROM task CROSS JOIN used
     WHERE message.id = task.id
    RETURNING message.id
)
SELECT COALESCE(moved.id, ('claim of #' || task.id || ' not stored, a trigger dropped it')::bigint)
  FROM task CROSS JOIN card LEFT JOIN moved ON true;
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
            THEN md5((data -> 'claim')::text) END IS NOT DISTINCT FROM %(claim_digest)s;
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
    return claim(database, LOCK + MAY_CLAIM + CLAIM_PENDING, terms)


def claim_approved(database: Database, terms: Terms, task_id: int, card_id: int) -> Claim | None:
    """Use an approval; None when it is not there any more or another task is being processed."""
    which = {"id": task_id, "card_id": card_id}
    claimed = claim(database, LOCK + MAY_CLAIM + CLAIM_APPROVED + READ, terms, which)
    return claimed and claimed._replace(message=claimed.message._replace(card_id=card_id))


def claim_interrupted(
    database: Database, terms: Terms, task_id: int, claim_digest: str | None, seconds: int
) -> Claim | None:
    """Take an interrupted task over for `seconds`; None when its claim has changed meanwhile."""
    which = {"id": task_id, "claim_digest": claim_digest, "seconds": seconds}
    return claim(database, TAKE_OVER + READ, terms, which)


def finish_and_claim_next(
    database: Database, ending: Ending, terms: Terms
) -> tuple[bool, Claim | None]:
    """Do what `finish` and then `claim_next` would, in one transaction, and return their results.

    Where the database refuses that, the report is stored alone: a claim must not hold it up.
    """
    statement = LOCK + endings.FINISH + endings.ANSWER + MAY_CLAIM + CLAIM_PENDING
    try:
        ended = endings.params(database, ending) | {"finished": ending.id}
        claimed = claim(database, statement, terms, ended)
    except psycopg2.Error:
        return endings.finish(database, ending), None
    return claimed is not None or endings.has_ended(database, ending), claimed


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

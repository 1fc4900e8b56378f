"""How a task message ends: its final report and its last status, in one transaction.

Every statement may be sent twice, because each transition is guarded by the status, and by the
claim's token, that it starts from. What it has moved on it says itself to the statements behind
it, as `heartbeat.moved`: the row does not tell, since a trigger may have changed it once more. A
trigger may also keep a row as it was without an error; then the cast of a text makes one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2

from catalyst_heartbeat.queue.connection import Database

if TYPE_CHECKING:
    from catalyst_heartbeat.report import Report

ONE_FINAL_REPORT = "idx_one_final_report"

FINISH = """
-- A sender who waited for its row while the claim was written has it locked from then on.
SET LOCAL lock_timeout = '2s';
-- processing -> processed or expired: the claim's end, with its report in one transaction. Who
-- takes a task back while it runs comes too late: it ran, and that is told.
WITH moved AS (
    UPDATE claude_messages
       SET status = %(status)s, processed_at = now()
     WHERE id = %(id)s AND status IN ('processing', 'cancelled')
       AND data #>> '{claim,token}' = %(token)s
    RETURNING id
)
SELECT set_config('heartbeat.moved', id::text, true) FROM moved;
"""

REFUSE = """
-- pending or processing -> processed: without a claim, and without reading its data. A row that
-- somebody holds is left for a later cycle.
WITH task AS (
    SELECT id
      FROM claude_messages
     WHERE id = %(id)s AND status = %(seen)s
       FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE claude_messages AS message
       SET status = 'processed', processed_at = now()
      FROM task
     WHERE message.id = task.id
    RETURNING message.id
)
SELECT set_config('heartbeat.moved', COALESCE(
           moved.id, ('end of #' || task.id || ' not stored, a trigger dropped it')::bigint
       )::text, true)
  FROM task LEFT JOIN moved ON true;
"""

ANSWER = """
-- The report on the task that this transaction has just moved on: it never ends without one.
WITH task AS (
    SELECT id, from_agent, priority, thread_id
      FROM claude_messages
     WHERE id = %(id)s AND current_setting('heartbeat.moved', true) = %(id)s::text
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
-- change statuses too, so a status alone does not tell that the report is there. Where the task is
-- still as it was, the statement was not taken.
SELECT CASE WHEN status = 'escalated' THEN true
            WHEN status <> 'processing'
             AND EXISTS (SELECT FROM claude_messages AS report
                          WHERE report.reply_to_id = task.id AND report.from_agent = %(agent)s
                            AND report.msg_type = 'response' AND report.data ->> 'final' = 'true')
            THEN true
            WHEN status = ANY(%(seen)s)
            THEN ('end of #' || id || ' not stored, a trigger dropped it')::boolean
            ELSE false END
  FROM claude_messages AS task
 WHERE id = %(id)s AND data #>> '{claim,token}' = %(token)s
"""


class Ending(NamedTuple):
    """How a claimed task ends: whose claim it is, the status that it gets, its final report."""

    id: int
    token: str
    status: str
    report: Report


def finish(database: Database, ending: Ending) -> bool:
    """Store the final report and end the claim; False when the claim was lost.

    A task that somebody gave a final report already is closed without a second one.
    """
    try:
        rows = database.fetch(FINISH + ANSWER, params(database, ending))
    except psycopg2.errors.UniqueViolation as error:
        if error.diag.constraint_name != ONE_FINAL_REPORT:
            raise  # as when the table's sequence of ids lags behind
        return close(database, ending.id, ending.token)
    return bool(rows) or has_ended(database, ending)


def has_ended(database: Database, ending: Ending) -> bool:
    return was_ours(database, ending.id, ending.token, ("processing", "cancelled"))


def refuse(database: Database, task_id: int, seen: str, report: Report) -> bool:
    """Store the final report on a task that was not claimed; False when it has changed.

    So it is when somebody holds its row.
    """
    given = columns(report) | {"agent": database.agent, "id": task_id, "seen": seen}
    return bool(database.fetch(REFUSE + ANSWER, given))


def close(database: Database, task_id: int, token: str) -> bool:
    """End the claim of a task that has its final report; False when the claim was lost."""
    rows = database.fetch(CLOSE, claim_params(database, task_id, token))
    return bool(rows) or was_ours(database, task_id, token)


def release(database: Database, task_id: int, token: str) -> bool:
    """Give a task that did not run back to the queue; False when the claim was lost."""
    rows = database.fetch(RELEASE, claim_params(database, task_id, token))
    return bool(rows) or was_ours(database, task_id, token)


def was_ours(
    database: Database, task_id: int, token: str, seen: Sequence[str] = ("processing",)
) -> bool:
    """Tell whether a statement that changed nothing had been sent, and had worked, before.

    Raises psycopg2.DataError where the task is still ours and has one of the statuses from which it
    starts.
    """
    params = claim_params(database, task_id, token) | {"seen": list(seen)}
    rows = database.fetch(FATE, params)
    return bool(rows and rows[0][0])


def claim_params(database: Database, task_id: int, token: str) -> dict[str, Any]:
    return {"agent": database.agent, "id": task_id, "token": token}


def params(database: Database, ending: Ending) -> dict[str, Any]:
    held = claim_params(database, ending.id, ending.token)
    return held | columns(ending.report) | {"status": ending.status}


def columns(report: Report) -> dict[str, Any]:
    return {"subject": report.subject, "body": report.body, "data": json.dumps(report.data)}

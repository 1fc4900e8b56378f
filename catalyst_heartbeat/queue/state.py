"""The agent's row in claude_state, and what there is to do: waking, looking, resting."""

from __future__ import annotations

import os
from typing import NamedTuple

from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.settings import Settings

WAKE = """
-- The next cycle writes this row anew, so it need not wait for the disk.
SET LOCAL synchronous_commit = off;
-- A paused or retired agent stays so: only its times are written.
INSERT INTO claude_state AS state
    (agent_id, current_mode, last_wake_at, last_poll_at, updated_at)
VALUES (%(agent)s, 'awake', now(), now(), now())
ON CONFLICT (agent_id) DO UPDATE
   SET current_mode = CASE WHEN state.current_mode IN ('paused', 'retired')
                           THEN state.current_mode ELSE 'awake' END,
       last_wake_at = now(), last_poll_at = now(), updated_at = now();
"""

LOOK = """
-- The mode, and what there is to do; a request that still waits for the approver is not.
SELECT state.current_mode,
       EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending')
    OR EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'processing')
       -- A task whose request was decided, is over or is gone.
    OR EXISTS (SELECT FROM claude_messages AS task
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'escalated'
                  AND NOT EXISTS (SELECT FROM claude_messages AS card
                                   WHERE card.reply_to_id = task.id
                                     AND card.from_agent = %(agent)s
                                     AND card.msg_type = 'escalation'
                                     AND card.status = 'pending' AND card.expires_at > now()))
    OR EXISTS (SELECT FROM claude_messages AS card
                WHERE card.from_agent = %(agent)s AND card.msg_type = 'escalation'
                  AND (card.status IN ('approved', 'denied')
                       AND EXISTS (SELECT FROM claude_messages AS task
                                    WHERE task.id = card.reply_to_id AND task.status = 'escalated')
                       -- The sender took the task back.
                    OR card.status = 'pending'
                       AND EXISTS (SELECT FROM claude_messages AS task
                                    WHERE task.id = card.reply_to_id
                                      AND task.status = 'cancelled')))
    OR EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'response' AND to_agent = %(agent)s
                  AND from_agent = %(approver)s AND status = 'pending'
                  AND (subject LIKE 'Approved: Permission #%%'
                    OR subject LIKE 'Denied: Permission #%%'))
  FROM claude_state AS state WHERE state.agent_id = %(agent)s
"""

REST = """
SET LOCAL synchronous_commit = off;
UPDATE claude_state
   SET current_mode = CASE WHEN current_mode IN ('paused', 'retired')
                           THEN current_mode ELSE 'sleeping' END,
       status_message = %(summary)s,
       last_action_at = CASE WHEN %(acted)s THEN now() ELSE last_action_at END,
       error_count_today = CASE WHEN last_error_at < date_trunc('day', now()) THEN 0
                                ELSE COALESCE(error_count_today, 0) END
                           + CASE WHEN %(error)s::text IS NULL THEN 0 ELSE 1 END,
       last_error = COALESCE(%(error)s, last_error),
       last_error_at = CASE WHEN %(error)s::text IS NULL THEN last_error_at ELSE now() END,
       updated_at = now()
 WHERE agent_id = %(agent)s
"""

OBSERVE = """
INSERT INTO claude_observations (agent_id, observation_type, subject, content)
VALUES (%(agent)s, 'system', %(subject)s, %(content)s)
"""

TABLES = """
-- All that is needed of the tables: the server names the first that is missing. No row is read.
SELECT claude_observations.agent_id, claude_observations.observation_type,
       claude_observations.subject, claude_observations.content, claude_observations.created_at
  FROM claude_observations LIMIT 0;
SELECT claude_state.last_action_at, claude_state.status_message, claude_state.error_count_today,
       claude_state.last_error, claude_state.last_error_at
  FROM claude_state LIMIT 0;
SELECT claude_messages.id, claude_messages.from_agent, claude_messages.to_agent,
       claude_messages.msg_type, claude_messages.priority, claude_messages.subject,
       claude_messages.body, claude_messages.data, claude_messages.reply_to_id,
       claude_messages.thread_id, claude_messages.status, claude_messages.created_at,
       claude_messages.read_at, claude_messages.processed_at, claude_messages.expires_at,
       claude_messages.requires_response
  FROM claude_messages LIMIT 0
"""

STATE = """
-- Times are subtracted as numbers: PostgreSQL before 17 refuses to subtract infinite ones.
SELECT current_mode, status_message, COALESCE(error_count_today, 0), last_error,
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM last_poll_at))::float8,
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM last_error_at))::float8
  FROM claude_state
 WHERE agent_id = %(agent)s
"""


class State(NamedTuple):
    """An agent's row of claude_state; times are how many seconds ago."""

    mode: str | None
    summary: str | None
    errors_today: int
    last_error: str | None
    polled: float | None
    failed: float | None


def wake(database: Database, approver: str) -> tuple[str, bool]:
    """Write that the agent is awake; return its mode, which may also be paused or retired, and
    whether there is anything to do."""
    ((mode, work),) = database.fetch(WAKE + LOOK, {"agent": database.agent, "approver": approver})
    return mode, work


def check_tables(database: Database) -> None:
    """Raise psycopg2.errors.UndefinedTable or UndefinedColumn, which name what is missing."""
    database.fetch(TABLES)


def rest(database: Database, summary: str, *, acted: bool, error: str | None) -> None:
    """Write what the cycle did; an error is counted, and its text and time stand together."""
    params = {"agent": database.agent, "summary": summary, "acted": acted, "error": error}
    database.fetch(REST, params)


def observe(database: Database, subject: str, content: str) -> None:
    database.fetch(OBSERVE, {"agent": database.agent, "subject": subject, "content": content})


def state(database: Database) -> State | None:
    """Return the agent's state, None before its first cycle."""
    rows = database.fetch(STATE, {"agent": database.agent})
    return State(*rows[0]) if rows else None


def has_unsent(settings: Settings) -> bool:
    """Tell whether a report may wait in the outbox: `outbox.unsent` finds out."""
    try:
        names = os.listdir(f"{settings.state_dir}/{settings.agent_id}/outbox")
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    return any(name.endswith(".json") for name in names)

"""Which tasks are at work, pending, or only to be refused: nothing here changes a row."""

from __future__ import annotations

from typing import NamedTuple

from catalyst_heartbeat.queue.claims import DATA_LIMIT_BYTES, Terms
from catalyst_heartbeat.queue.connection import Database

REFUSED_AT_ONCE = 100
MOST_AT_WORK = 100

AT_WORK = """
-- The first of the tasks being processed, each with its claim as far as it can be read: where its
-- data is no more than is read, first as it is stored, then as it really is.
SELECT id, left(claim ->> 'token', 100), left(claim ->> 'host', 100), left(claim ->> 'pid', 20),
       left(claim ->> 'lease_until', 50), EXTRACT(EPOCH FROM now())::float8,
       md5(claim::text), read_at::text, large
  FROM (SELECT id, read_at, large, CASE WHEN NOT large THEN data -> 'claim' END AS claim
          FROM (SELECT id, read_at, data,
                       CASE WHEN data IS NULL THEN false
                            WHEN pg_column_size(data) > 2 * %(data_limit)s THEN true
                            ELSE pg_column_size(data #> '{}') > 2 * %(data_limit)s END AS large
                  FROM claude_messages
                 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'processing'
                 ORDER BY id
                 LIMIT %(most)s) AS task
        OFFSET 0) AS task
 ORDER BY id
"""

REFUSABLE = """
-- The pending tasks that are refused without a claim: those with more data than is read, and those
-- of whoever may not send any.
SELECT id
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
   AND id <> ALL(%(passed_over)s)
   AND CASE WHEN from_agent <> ALL(%(senders)s) THEN true
            WHEN data IS NULL THEN false
            WHEN pg_column_size(data) > %(data_limit)s THEN true
            ELSE pg_column_size(data #> '{}') > %(data_limit)s END
 ORDER BY id
 LIMIT %(most)s
"""

PENDING = """
-- The pending tasks in the order in which they are taken.
SELECT id
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
   AND id <> ALL(%(passed_over)s)
 ORDER BY from_agent <> ALL(%(senders)s),
          CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                        WHEN 'low' THEN 3 ELSE 4 END, created_at, id
"""

PENDING_BY_PRIORITY = """
SELECT priority, count(*),
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM min(created_at)))::float8
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
 GROUP BY priority
 ORDER BY min(CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                            WHEN 'low' THEN 3 ELSE 4 END), priority
"""


class AtWork(NamedTuple):
    """A task being processed; what its claim says is text that anybody may have written."""

    id: int
    token: str | None
    host: str | None
    pid: str | None
    lease_until: str | None
    now: float
    claim_digest: str | None
    since: str | None
    large_data: bool = False


def at_work(database: Database) -> list[AtWork]:
    """Return the tasks of this agent that are being processed."""
    params = {"agent": database.agent, "data_limit": DATA_LIMIT_BYTES, "most": MOST_AT_WORK}
    return [AtWork(*row) for row in database.fetch(AT_WORK, params)]


def refusable(database: Database, terms: Terms) -> list[int]:
    """Return the ids of some pending tasks that are refused without a claim."""
    params = {
        "agent": database.agent,
        "senders": list(terms.senders),
        "passed_over": terms.passed_over,
        "data_limit": DATA_LIMIT_BYTES,
        "most": REFUSED_AT_ONCE,
    }
    return [task_id for (task_id,) in database.fetch(REFUSABLE, params)]


def pending(database: Database, terms: Terms) -> list[int]:
    """Return the ids of the pending tasks in the order in which they are taken."""
    params = {
        "agent": database.agent,
        "senders": list(terms.senders),
        "passed_over": terms.passed_over,
    }
    return [task_id for (task_id,) in database.fetch(PENDING, params)]


def pending_by_priority(database: Database) -> list[tuple[str | None, int, float | None]]:
    """Return priority, number of pending tasks and the oldest one's age, in the claim's order."""
    rows = database.fetch(PENDING_BY_PRIORITY, {"agent": database.agent})
    return [(priority, count, oldest) for priority, count, oldest in rows]

"""Database tasks: fixed queries, run read-only; no parameter of a message becomes part of one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from catalyst_heartbeat.outcome import Context, Result
from catalyst_heartbeat.redaction import LONGEST_SECRET
from catalyst_heartbeat.tasks.base import NoParams, Params
from catalyst_heartbeat.text import Cleaned, table, without_end

AGENT_STATUS = """
SELECT agent_id, current_mode,
       to_char(last_wake_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'),
       to_char(last_action_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'),
       COALESCE(error_count_today, 0),
       left(last_error, %(fetched)s), left(status_message, %(fetched)s)
  FROM claude_state
 ORDER BY agent_id
 LIMIT 100
"""

PENDING_MESSAGES = """
SELECT to_agent, count(*), (sum(count(*)) OVER ())::bigint
  FROM claude_messages
 WHERE status = 'pending'
 GROUP BY to_agent
 ORDER BY count(*) DESC, to_agent
 LIMIT 100
"""

RECENT_OBSERVATIONS = """
SELECT id, agent_id, observation_type, subject, left(content, %(fetched)s),
       to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"')
  FROM claude_observations
 ORDER BY id DESC
 LIMIT 5
"""

TASK_HISTORY = """
SELECT task.id, task.from_agent, task.status, report.data ->> 'task',
       report.data ->> 'outcome', task.subject,
       to_char(task.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'),
       to_char(task.processed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"')
  FROM (SELECT id, from_agent, status, created_at, processed_at,
               left(subject, %(fetched)s) AS subject
          FROM claude_messages
         WHERE msg_type = 'task' AND to_agent = %(agent)s
         ORDER BY id DESC
         LIMIT 100) AS task
  LEFT JOIN claude_messages AS report
    ON report.reply_to_id = task.id AND report.from_agent = %(agent)s
   AND report.msg_type = 'response' AND report.data ->> 'final' = 'true'
 ORDER BY task.id DESC
"""


class TaskHistory(Params):
    limit: int = Field(20, ge=1, le=100, description="How many of the last tasks to show")


def db_agent_status(params: NoParams, context: Context) -> Result:
    """Show every agent's state.

    Use it to see which agents are awake, asleep, paused or in trouble. Reads claude_state.
    """
    names = (
        "agent", "mode", "last_wake_at", "last_action_at", "errors_today", "last_error",
        "status_message",
    )  # fmt: skip
    rows = ask(context, AGENT_STATUS, 300)
    return Result(table(names, rows, context.settings.secrets), records(names, rows))


def db_pending_messages(params: NoParams, context: Context) -> Result:
    """Count the pending messages, in all and per agent.

    Use it to see whether somebody's mail piles up. Reads claude_messages.
    """
    rows = ask(context, PENDING_MESSAGES)
    total = rows[0][2] if rows else 0
    agents = [(agent, count) for agent, count, _ in rows]
    counts = table(("agent", "pending"), agents, context.settings.secrets)
    return Result(Cleaned(f"{total} pending\n\n{counts}"), {"total": total, "agents": dict(agents)})


def db_recent_observations(params: NoParams, context: Context) -> Result:
    """Show the last 5 observations.

    Use it to see what the agents noted lately. Reads claude_observations.
    """
    names = ("id", "agent", "type", "subject", "content", "created_at")
    rows = ask(context, RECENT_OBSERVATIONS, 1000)
    return Result(table(names, rows, context.settings.secrets), records(names, rows))


def db_task_history(params: TaskHistory, context: Context) -> Result:
    """Show this agent's last tasks and their outcomes.

    Use it to see what became of requests, also of those whose reports were missed. A task
    without an outcome has no final report yet. Reads claude_messages.
    """
    names = (
        "id", "from", "status", "task", "outcome", "subject", "created_at", "processed_at"
    )  # fmt: skip
    rows = ask(context, TASK_HISTORY, 100)[: params.limit]
    return Result(table(names, rows, context.settings.secrets), records(names, rows))


def ask(context: Context, statement: str, most: int = 100) -> list[tuple[Any, ...]]:
    """Run a fixed query and return its rows, each text redacted by itself, then cut to `most`.

    Raises TaskFailed where the database does not answer.
    """
    settings = context.settings
    params = {"agent": settings.agent_id, "fetched": most + LONGEST_SECRET}
    return [
        tuple(
            without_end(cell, most, settings.secrets) if isinstance(cell, str) else cell
            for cell in row
        )
        for row in context.query(statement, params)
    ]


def records(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]

"""What becomes of a message: it runs, a person is asked, or it is refused.

The cycle, recovery and --dry-run all ask here; nothing is changed by it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import psycopg2
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from catalyst_heartbeat.approvals import card
from catalyst_heartbeat.approvals.card import minute
from catalyst_heartbeat.executor.brakes import frozen_until
from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.outcome import Outcome, Quote, TaskRejected
from catalyst_heartbeat.queue import outbox
from catalyst_heartbeat.queue.claims import DATA_LIMIT_BYTES, Message
from catalyst_heartbeat.queue.connection import DatabaseLost, is_fault_of_a_row
from catalyst_heartbeat.report import MAX_VALUE_BYTES
from catalyst_heartbeat.request import FORMAT, Request, parse
from catalyst_heartbeat.tasks.base import NoParams, Task

log = logging.getLogger("heartbeat")

# So much of a parameter's name and of its value a rejection quotes.
PARAMETER_LIMIT, FOUND_LIMIT = 80, 101
# JSONB takes more room than the text of a report's result, which has a limit of its own.
REPORT_LIMIT_BYTES = 8 * MAX_VALUE_BYTES

CHANGES_RAN = """
-- How many tasks that change something ran within the last hour, on all hosts, by their reports,
-- up to one more than allowed; when there will be fewer than allowed; and the time, since another
-- host's clock may differ. What is larger than any report, stored or as it really is, is none.
SELECT count(*),
       EXTRACT(EPOCH FROM (array_agg(created_at ORDER BY created_at DESC))[%(most)s]
                          + interval '1 hour')::float8,
       EXTRACT(EPOCH FROM now())::float8
  FROM (SELECT created_at
          FROM claude_messages
         WHERE from_agent = %(agent)s AND msg_type = 'response'
           AND created_at > now() - interval '1 hour' AND created_at <= now()
           AND CASE WHEN pg_column_size(data) > %(report_limit)s THEN false
                    WHEN pg_column_size(data #> '{}') > %(report_limit)s THEN false
                    ELSE data ->> 'final' = 'true' AND data ->> 'task' = ANY(%(changing)s)
                     AND data ->> 'outcome' IN ('success', 'failed', 'unknown') END
         ORDER BY created_at DESC
         LIMIT %(most)s + 1) AS report
"""


@dataclass(frozen=True)
class Run:
    """The job runs; `approved_diff` is what a person agreed to, None where nobody was asked."""

    job: Job
    approved_diff: str | None = None


@dataclass(frozen=True)
class Ask:
    """A person must decide, and why."""

    job: Job
    why: str


@dataclass(frozen=True)
class Refuse:
    """Nothing runs, and the outcome says so."""

    outcome: Outcome


Decision = Run | Ask | Refuse


def decide(message: Message, agent: Agent) -> Decision:
    """Say what becomes of a message as it is now."""
    try:
        with bug_as_rejection(message):
            return judge(message, agent)
    except TaskRejected as error:
        return Refuse(Outcome("rejected", error=error.told(agent.settings.secrets)))


@contextlib.contextmanager
def bug_as_rejection(message: Message) -> Iterator[None]:
    """Reject a message over which the program stumbles: it must not block those behind it."""
    try:
        yield
    except (TaskRejected, DatabaseLost):
        raise
    except Exception as error:
        if isinstance(error, psycopg2.Error) and not is_fault_of_a_row(error):
            raise
        log.exception("#%d: unexpected error in validation", message.id)
        kind = type(error).__name__
        raise TaskRejected(f"unexpected {kind} in validation; see the log") from error


def judge(message: Message, agent: Agent) -> Decision:
    settings = agent.settings
    if message.large_data:
        raise TaskRejected(f"the message's data is larger than {DATA_LIMIT_BYTES // 1024} KiB")
    sender, size = message.from_agent, message.body_bytes
    if sender not in settings.senders:
        known = ", ".join(settings.senders)
        raise TaskRejected(f'"{sender}" may not send tasks; those who may: {known}')
    if message.body is None:
        found = "no body" if size is None else f"a body of {size:,} bytes, over 1 MiB"
        raise TaskRejected(f"the message has {found}; the format is {FORMAT}")
    request = parse(message.body)
    approved = message.card_id is not None
    # What was approved has until the approval's end, unless the message itself says otherwise.
    if message.too_late and (message.expires_at or not approved):
        limit = message.expires_at or f"{settings.task_expiry_hours} h after {message.created_at}"
        return Refuse(Outcome("expired", error=f"its deadline was {limit}; nothing ran"))
    job = understand(message, request, agent)
    changes = job.task is None or job.task.changes
    if changes and sender in settings.read_only_senders:
        rule = "is one of READ_ONLY_SENDERS, which may only send what changes nothing"
        raise TaskRejected(f'"{sender}" {rule}')
    if approved:
        return Run(job, card.approved_diff(job, agent))
    held = brakes(agent) if changes and job.task else ()
    why = "; ".join([*reasons_to_ask(job, agent), *held])
    return Ask(job, why) if why else Run(job)


def understand(message: Message, request: Request, agent: Agent) -> Job:
    """Hold a request against the whitelist; raise TaskRejected for bad parameters."""
    task = agent.whitelist.get(request.task)
    if task is None:
        return Job(message, request, None, NoParams())
    try:
        params = task.params.model_validate(request.params, context=agent.settings)
    except ValidationError as error:
        raise TaskRejected(*explain(error, request.task, task)) from None
    return Job(message, request, task, params)


def reasons_to_ask(job: Job, agent: Agent) -> Iterator[str]:
    """Say why a person must decide about this task, whoever asks and whenever."""
    if job.task is None:
        yield f'"{job.name}" is not in the whitelist, so approving it cannot make it run'
        return
    if job.task.approval:
        yield from filter(None, [job.task.approval(job.params, agent.settings)])
    if job.name in agent.settings.tasks_requiring_approval:
        yield "TASKS_REQUIRING_APPROVAL names this task"


def brakes(agent: Agent) -> Iterator[str]:
    """Say which brakes hold now, by the database's clock, for what changes something."""
    changing = [name for name, task in agent.whitelist.items() if task.changes]
    most = agent.settings.max_changes_per_hour
    params = {"agent": agent.database.agent, "changing": changing, "most": most}
    params["report_limit"] = REPORT_LIMIT_BYTES
    ((ran, until, now),) = agent.database.fetch(CHANGES_RAN, params)
    # Reports that the table does not take count as well, whatever they are about.
    ran += len(outbox.unsent(agent.settings))
    ran += sum(name in changing for name in agent.would_run)
    freeze = frozen_until(agent.settings.freeze_windows, datetime.fromtimestamp(now, timezone.utc))
    if freeze:
        yield f'FREEZE_WINDOWS: "{freeze.window}" holds until {minute(freeze.until.timestamp())}'
    if ran >= most:
        end = f": MAX_CHANGES_PER_HOUR holds until {minute(until)}" if until else ""
        yield f"{ran} changes ran within the last hour{end}"


def explain(error: ValidationError, name: str, task: Task) -> Iterator[str | Quote]:
    """Say what is wrong with each parameter and what would be right."""
    details = error.errors(include_url=False, include_context=False)
    known = ", ".join(task.params.model_fields) or "none"
    for number, detail in enumerate(details[:10]):
        yield "; " if number else f"{name}: "
        yield from explain_one(detail, known)


def explain_one(detail: ErrorDetails, known: str) -> tuple[str | Quote, ...]:
    parameter = Quote(".".join(map(str, detail["loc"])), PARAMETER_LIMIT)
    if detail["type"] == "extra_forbidden":
        return 'unknown parameter "', parameter, f'"; known: {known}'
    if detail["type"] == "missing":
        return 'missing parameter "', parameter, '"'
    message = detail["msg"].removeprefix("Value error, ")
    if not parameter.text:
        return (message,)
    found = json.dumps(detail["input"], default=repr)
    return parameter, f": {message}; found ", Quote(found, FOUND_LIMIT)

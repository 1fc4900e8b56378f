"""Requests that a person must decide: what is shown, what it binds, and what a decision does.

Only the escalation row's status lets anything run; a denial that left its receipt holds back even
then. An approval is used by one conditional UPDATE and runs what was shown or nothing: the message,
the escalation's data and its text are all held against what they were when the request went out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from catalyst_heartbeat.executor.decide import Agent, Job
from catalyst_heartbeat.executor.run import context_for, preview
from catalyst_heartbeat.outcome import Outcome, TaskRejected
from catalyst_heartbeat.queue import messages
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.queue.messages import Claim, Waiting
from catalyst_heartbeat.redaction import redact_values
from catalyst_heartbeat.report import Original, Report, report
from catalyst_heartbeat.request import Request, task_name
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import MAX_BYTES, MAX_LINES, clean_line, cut, inert, make_visible

log = logging.getLogger("heartbeat")

# The phone's home card shows 150 characters of a body.
HEADLINE_LIMIT = 145
WORDS_LIMIT = 1000
# A wider run of blanks could push what follows out of sight.
LONGEST_BLANK = 24


def digest(agent: str, message_id: int, task: str, params: Any) -> str:
    """Return the SHA-256 that binds an approval to one request."""
    bound = {"agent": agent, "message_id": message_id, "task": task, "params": as_stored(params)}
    canonical = json.dumps(bound, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def as_stored(value: Any) -> Any:
    """Return a JSON value as JSONB gives it back: 1e22 becomes an integer, -0.0 loses its sign."""
    if isinstance(value, dict):
        return {key: as_stored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_stored(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return json.loads(format(Decimal(repr(value)) + 0, "f"))
    return value


def ask(agent: Agent, held: Claim, request: Request, job: Job) -> bool:
    """Send the request to the approver and a notice to the sender; False when the claim was lost.

    Raises TaskRejected where the approver cannot be asked.
    """
    settings, database = agent.settings, agent.database
    check_room(database, settings, request)
    diff = preview(job, context_for(agent, held, request, job))
    shown, until = card(settings, held, job, request, diff)
    text = f'waits for {settings.approver} as "{shown.subject}" until {minute(until)}'
    original = Original(held.id, held.subject, request.task, held.attempt)
    notice = report(
        original, Outcome("escalated", text), agent=settings.agent_id, secrets=settings.secrets
    )
    return messages.escalate(database, held, settings.approver, shown, until, notice)


def check_room(database: Database, settings: Settings, request: Request) -> None:
    """Raise TaskRejected where the approver has this request, or enough requests, already."""
    params = json.dumps(request.params)
    count, identical = messages.open_escalations(database, request.task, params)
    if identical is not None:
        raise TaskRejected(f"the same request waits for approval already, as message #{identical}")
    if count >= settings.max_open_escalations:
        later = "ask again when some are decided"
        raise TaskRejected(f"{count} requests already wait for approval; {later}")


def card(
    settings: Settings, held: Claim, job: Job, request: Request, diff: str
) -> tuple[Report, float]:
    """Return the escalation's columns, and until when it waits in seconds since 1970.

    Raises TaskRejected where the request is too large to be shown whole: an approval must not
    cover what the approver could not see.
    """
    until = held.now + settings.approval_expiry_hours * 3600
    words = clean_line(request.reason, settings.secrets)
    secrets = as_shown(settings.secrets)
    limit = f" The message itself expires at {held.expires_at}." if held.expires_at else ""
    effect = f"exactly this runs, once, as message #{held.id}." if job.task else "nothing runs."
    body = "\n".join(
        [
            headline(held, job, redact_values(in_short(request, diff), secrets), minute(until)),
            f"\nWhy it needs you: {job.needs_approval}.",
            f"\nParameters:\n{shown_params(request.params, diff)}",
            *([change_section(diff)] if diff else []),
            f"\n{held.from_agent} says (its words, not checked):\n> {cut(words, WORDS_LIMIT)}",
            f"\nApprove: {effect}\nDeny, or no answer until {minute(until)}: nothing runs.{limit}",
        ]
    )
    body = inert(redact_values(body, secrets))
    if len(body.encode()) > MAX_BYTES or body.count("\n") >= MAX_LINES:
        raise TaskRejected(
            f"too large to be shown whole to {settings.approver}, so it cannot be approved; "
            f"at most {MAX_BYTES:,} bytes and {MAX_LINES} lines"
        )
    data = {
        "task": request.task,
        "params": request.params,
        "reason": cut(inert(words), WORDS_LIMIT),
        "requested_by": held.from_agent,
        "message_id": held.id,
        "digest": digest(settings.agent_id, held.id, request.task, request.params),
    }
    return Report(f"Permission #{held.id}: {request.task}", body, data), until


def headline(held: Claim, job: Job, what: str, until: str) -> str:
    """Return the decision in a line that fits a phone's home card, also once it is escaped."""
    begin = f"Run {job.name}" if job.task else f"Unknown task, cannot run: {job.name}"
    end = f"? Asked by {held.from_agent}, until {until}."
    shown = without_middle(what, HEADLINE_LIMIT - len(begin) - len(end) - 1)
    return f"{begin} {shown}".rstrip() + end


def in_short(request: Request, diff: str) -> str:
    """Return in a few words what a request is about: the file and its lines, or the parameters."""
    if diff:
        lines = diff.split("\n")[2:]
        added = sum(line.startswith("+") for line in lines)
        removed = sum(line.startswith("-") for line in lines)
        return exact(f"+{added} -{removed} lines in {request.params.get('filepath')}")
    return exact(json.dumps(request.params)) if request.params else ""


def without_middle(text: str, room: int) -> str:
    """Take out the middle until the rest, HTML-escaped, has at most `room` characters."""
    shown, kept = text, min(len(text), max(room, 0))
    while len(inert(shown)) > room:
        if kept == 0:
            return ""
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}"
    return shown


def as_shown(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the secrets in every way in which a card may write them."""
    written = (form for secret in secrets for form in (secret, json.dumps(secret)[1:-1]))
    return tuple(dict.fromkeys(way for form in written for way in (form, exact(form))))


def shown_params(params: dict[str, Any], diff: str) -> str:
    """Return one line a parameter; a text of many lines is shown by the diff where there is one."""
    lines = []
    for name, value in params.items():
        shown = exact(json.dumps(value))
        if diff and isinstance(value, str) and "\n" in value:
            shown = f"{len(value)} characters, see the change"
        lines.append(f"  {exact(json.dumps(name))}: {shown}")
    return "\n".join(lines) or "  none"


def change_section(diff: str) -> str:
    return f"\nChange:\n{exact(diff)}"


def exact(text: str) -> str:
    """Write what the eye cannot tell apart: look-alikes, invisible characters, wide blanks."""
    ascii_only = (
        make_visible(text.replace("\r", "\\x0d")).encode("ascii", "backslashreplace").decode()
    )
    return re.sub(
        f"[ \t]{{{LONGEST_BLANK},}}", lambda match: f"[{len(match[0])} blanks]", ascii_only
    )


def minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def verify(agent: Agent, held: Claim, request: Request, job: Job) -> None:
    """Raise TaskRejected unless the approval that was used is for exactly this request.

    A change of a file must still be the change that was shown.
    """
    settings, database = agent.settings, agent.database
    approval = messages.approval(database, held)
    data = approval.data if isinstance(approval.data, dict) else {}
    asked = digest(
        settings.agent_id, data.get("message_id", 0), data.get("task", ""), data.get("params")
    )
    wanted = digest(settings.agent_id, held.id, request.task, request.params)
    if not approval.unaltered or data.get("digest") != wanted or asked != wanted:
        raise TaskRejected(
            "the message or its request for approval was changed after it was shown; "
            "send it again as a new message"
        )
    diff = preview(job, context_for(agent, held, request, job))
    section = redact_values(change_section(diff), as_shown(settings.secrets))
    if diff and f"\n{inert(section)}\n" not in approval.body:
        raise TaskRejected(
            "the file was changed after the request was shown, so this would do something else; "
            "send it again as a new message"
        )


def settle(database: Database, settings: Settings) -> tuple[list[Waiting], int]:
    """End what was denied or came too late.

    Returns what may run, the oldest request first, and how many tasks were ended.
    """
    approved, refused = [], 0
    for task in messages.waiting(database, settings.approver):
        if is_denied(task):
            outcome = Outcome("denied", error=denial(settings, task))
            refused += refuse(database, settings, task, outcome, "processed")
        elif not task.in_time:
            outcome = Outcome("expired", error=lateness(task))
            refused += refuse(database, settings, task, outcome, "expired")
        elif task.escalation_status == "approved":
            approved.append(task)
    messages.mark_receipts(database, settings.approver)
    for escalation_id in messages.withdraw_escalations(database, settings.approver):
        log.info("#%d: request withdrawn, no task waits for it", escalation_id)
    return approved, refused


def is_denied(task: Waiting) -> bool:
    """Tell whether it was denied; a denial is final, also where its receipt meets an approval.

    Only the escalation's status approves: a receipt can hold back, never let run.
    """
    approved_after = task.escalation_status == "approved" and task.receipt is not None
    return task.escalation_status == "denied" or approved_after


def denial(settings: Settings, task: Waiting) -> str:
    words = clean_line(task.receipt or "DENIED", settings.secrets)
    said = "" if words == "DENIED" else f", saying: {words}"
    later = "" if task.escalation_status == "denied" else ", which a later approval cannot undo"
    return f"{settings.approver} denied it{later}{said}"


def lateness(task: Waiting) -> str:
    if task.escalation_id is None:
        return "its request for approval is gone; nothing ran"
    if task.escalation_status == "approved":
        return "its approval came too late to be used; nothing ran"
    return "nobody decided in time; nothing ran"


def refuse(
    database: Database, settings: Settings, task: Waiting, outcome: Outcome, status: str
) -> bool:
    """Report a task that will not run; `status` becomes the task's and the escalation's.

    Returns False where the escalation has changed since it was read.
    """
    name = task_name(task.body_start)
    original = Original(task.id, task.subject, name, task.attempt)
    answer = report(original, outcome, agent=settings.agent_id, secrets=settings.secrets)
    refused = messages.refuse(database, task, status, outcome.verdict, answer)
    if refused:
        log.info("#%d %s: %s", task.id, name, outcome.verdict)
    return refused

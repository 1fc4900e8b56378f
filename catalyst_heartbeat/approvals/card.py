"""The card: what a person is shown on his phone, and what his approval is bound to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, NamedTuple

from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.executor.run import preview
from catalyst_heartbeat.files.diff import Diff, common_ends
from catalyst_heartbeat.outcome import TaskRejected
from catalyst_heartbeat.queue.claims import BODY_LIMIT_BYTES
from catalyst_heartbeat.redaction import REDACTED, redact
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import MAX_BYTES, MAX_LINES, clean_line, cut, inert, make_visible

SHOWN = """
-- What the approver was shown when he approved: the escalation as it is now, what its digest was,
-- and what the task itself noted of it.
SELECT card.subject, card.body, EXTRACT(EPOCH FROM card.expires_at)::float8,
       CASE WHEN pg_column_size(card.data) <= %(card_limit)s
             AND jsonb_typeof(card.data) = 'object' THEN card.data ELSE '{}' END,
       task.data #>> '{escalation,digest}', task.data #>> '{escalation,why}'
  FROM claude_messages AS card, claude_messages AS task
 WHERE card.id = %(card_id)s AND task.id = %(id)s
"""

# The phone's home card shows 150 characters of a body.
HEADLINE_LIMIT = 145
WORDS_LIMIT = 1000
# What must not be hidden on a card: it could run, or be the path of what runs.
CODE = re.compile(r"[$`(){}\[\];|&<>/]")
# A wider run of blanks could push what follows out of sight.
LONGEST_BLANK = 24
# A card's data holds the parameters of the message, which fit its body.
CARD_LIMIT_BYTES = 2 * BODY_LIMIT_BYTES


class Card(NamedTuple):
    """An escalation's columns, until when it waits in seconds since 1970, and why it was made.

    The digest in `data` binds an approval to all that was shown and all that will run.
    """

    subject: str
    body: str
    data: dict[str, Any]
    until: float
    why: str


def approved_diff(job: Job, agent: Agent) -> str:
    """Return the diff that was approved for this job, "" where it changes no file.

    Raises TaskRejected unless what was shown is what would be shown now.
    """
    message = job.message
    which = {"id": message.id, "card_id": message.card_id, "card_limit": CARD_LIMIT_BYTES}
    subject, body, until, data, noted, why = agent.database.fetch(SHOWN, which)[0]
    diff = preview(job, agent)
    # The requester's words change nothing that runs: those that were shown count.
    words = str(data.get("reason") or "")
    card = render(job, why or "", words, diff, until or 0, agent.settings)
    # The decision stands in its data as well by now.
    asked = {name: data.get(name) for name in card.data}
    same = (card.subject, card.body, card.data["digest"]) == (subject, body, noted)
    if not (same and stored(card.data) == stored(asked)):
        raise TaskRejected(
            "the message, its request for approval or the file was changed after it was shown; "
            "send it again as a new message"
        )
    return diff.bound


def stored(data: dict[str, Any]) -> Any:
    """Return JSON values that can be compared: JSONB gives 1e22 back as an integer."""
    return json.loads(json.dumps(data), parse_int=float)


def render(job: Job, why: str, words: str, diff: Diff, until: float, settings: Settings) -> Card:
    """Return the card of a job; `words` are the requester's, as `shown_words` returns them.

    Raises TaskRejected where it is too large to be shown whole: an approval must not cover what
    the approver could not see.
    """
    diff = diff._replace(shown=redact(diff.shown, settings.secrets))
    refuse_hidden_code(diff)
    subject = f"Permission #{job.message.id}: {job.name}"
    body = "\n".join(sections(job, why, words, diff, until, settings))
    if len(body.encode()) > MAX_BYTES or body.count("\n") >= MAX_LINES:
        raise TaskRejected(
            f"too large to be shown whole to {settings.approver}, so it cannot be approved; "
            f"at most {MAX_BYTES:,} bytes and {MAX_LINES} lines"
        )
    data = {
        "task": job.name,
        "params": job.request.params,
        "reason": words,
        "requested_by": job.message.from_agent,
        "message_id": job.message.id,
    }
    bound = {
        "agent": settings.agent_id,
        "subject": subject,
        "body": body,
        "diff": diff.bound,
        **data,
    }
    data["digest"] = hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()
    return Card(subject, body, data, until, why)


def sections(
    job: Job, why: str, words: str, diff: Diff, until: float, settings: Settings
) -> Iterator[str]:
    """Yield the parts of a card, each foreign text redacted by itself and made inert."""
    message, params = job.message, job.request.params
    limit = f" The message itself expires at {message.expires_at}." if message.expires_at else ""
    effect = f"exactly this runs, once, as message #{message.id}." if job.task else "nothing runs."
    yield inert(headline(job, in_short(params, diff, settings.secrets), minute(until)))
    yield inert(f"\nWhy it needs you: {why}.")
    yield inert("\nParameters:\n" + shown_params(params, diff, settings.secrets))
    if diff.text:
        yield inert(f"\nChange:\n{exact(diff.shown)}")
    yield f"\n{inert(message.from_agent)} says (its words, not checked):\n&gt; {words}"
    yield f"\nApprove: {effect}\nDeny, or no answer until {minute(until)}: nothing runs.{limit}"


def refuse_hidden_code(diff: Diff) -> None:
    """Raise TaskRejected where an added line hides what a shell or Python may run."""
    for line, shown in zip(diff.text.split("\n"), diff.shown.split("\n"), strict=True):
        head, tail = common_ends(line, shown)
        hidden = line[head : len(line) - tail]
        nothing_shown = shown[1:].strip() == REDACTED
        if line.startswith("+") and (CODE.search(hidden) or nothing_shown):
            raise TaskRejected(
                "what looks like a secret in it would be hidden from who approves it, and could "
                "hide code; put it into the file by hand"
            )


def shown_words(job: Job, settings: Settings) -> str:
    """Return what the requester said, as one inert line."""
    return inert(cut(clean_line(job.request.reason, settings.secrets), WORDS_LIMIT))


def headline(job: Job, what: str, until: str) -> str:
    """Return the decision in a line that fits a phone's home card, also once it is escaped."""
    begin = f"Run {job.name}" if job.task else f"Unknown task, cannot run: {job.name}"
    end = f"? Asked by {job.message.from_agent}, until {until}."
    shown = without_middle(what, HEADLINE_LIMIT - len(begin) - len(end) - 1)
    return f"{begin} {shown}".rstrip() + end


def in_short(params: dict[str, Any], diff: Diff, secrets: tuple[str, ...]) -> str:
    """Return in a few words what a request is about: the file and its lines, or the parameters."""
    if diff.text:
        return exact(f"+{diff.added} -{diff.removed} lines in {params.get('filepath')}")
    return exact(redact(json.dumps(params), secrets)) if params else ""


def without_middle(text: str, room: int) -> str:
    """Take out the middle until the rest, HTML-escaped, has at most `room` characters."""
    shown, kept = text, min(len(text), max(room, 0))
    while len(inert(shown)) > room:
        if kept == 0:
            return ""
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}"
    return shown


def shown_params(params: dict[str, Any], diff: Diff, secrets: tuple[str, ...]) -> str:
    """Return one line a parameter; a text of many lines is shown by the diff where there is one."""
    lines = []
    for name, value in params.items():
        if diff.text and isinstance(value, str) and "\n" in value:
            lines.append(f"  {exact(json.dumps(name))}: {len(value)} characters, see the change")
        else:
            # With its name, since "password" makes a secret of what follows.
            lines.append("  " + exact(redact(json.dumps({name: value})[1:-1], secrets)))
    return "\n".join(lines) or "  none"


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

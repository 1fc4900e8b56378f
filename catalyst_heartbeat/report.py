"""What a report says: its subject and body for people, its data for programs."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

from catalyst_heartbeat.outcome import Outcome, Verdict
from catalyst_heartbeat.redaction import redact
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import (
    HEAD_LIMIT,
    clean_line,
    cut,
    cut_bytes,
    escape_character,
    fenced,
    header,
    inert,
    inert_head,
    one_line,
)

MARKS: dict[Verdict, str] = {
    "success": "✅ SUCCESS",
    "failed": "❌ FAILED",
    "rejected": "⛔ REJECTED",
    "escalated": "⏳ ESCALATED",
    "denied": "🚫 DENIED",
    "expired": "⌛ EXPIRED",
    "unknown": "❓ UNKNOWN",
}
SUBJECT_LIMIT = 180
TASK_NAME_LIMIT = 60
REASON_LIMIT = 300
MAX_VALUE_BYTES = 256 * 1024
NOT_IN_JSONB = re.compile("[\0\ud800-\udfff]")
# What stands in the table in the place of a report that the server refuses.
SHORT_BYTES = 1024
SHORT_SUBJECT_LIMIT = 60
SHORT_HEAD_BYTES = 300


class Report(NamedTuple):
    """The columns of a report that depend on what happened; a page may preview them as HTML."""

    subject: str
    body: str
    data: dict[str, Any]


class Original(NamedTuple):
    """The message that a report is about; `task` is "unreadable" where no name can be read."""

    message_id: int
    subject: str | None
    task: str
    attempt: int


def report(
    original: Original, outcome: Outcome, settings: Settings, seconds: float = 0.0
) -> Report:
    """Return the report of an outcome; `seconds` is how long the task ran."""
    secrets = settings.secrets
    task = header(original.task, TASK_NAME_LIMIT, secrets)
    subject = header(original.subject or "(no subject)", SUBJECT_LIMIT, secrets)
    head = f"{MARKS[outcome.verdict]}\n\n## Task: {task}\n**Original Request:** "
    body = [
        head + cut(subject, HEAD_LIMIT - len(head)),
        *sections(outcome, secrets),
        f"**Executed at:** {datetime.now(timezone.utc).isoformat(timespec='seconds')}\n"
        f"**Executed by:** {settings.agent_id}",
    ]
    data = {
        "task": task,
        "outcome": outcome.verdict,
        "final": outcome.verdict != "escalated",
        "message_id": original.message_id,
        "attempt": original.attempt,
        "duration_ms": round(seconds * 1000),
        "result": stored_value(outcome.value, secrets),
    }
    subject = cut(f"Task Report: {subject}", SUBJECT_LIMIT)
    return Report(subject, inert_head("\n\n".join(body)), data)


def shortened(whole: Report, where: str, why: str, secrets: tuple[str, ...]) -> Report:
    """Return a report of at most SHORT_BYTES in the place of one that could not be stored."""
    head = cut_bytes(whole.body.partition("\n\n### ")[0], SHORT_HEAD_BYTES)
    foot = "**Executed at:**" + whole.body.rpartition("**Executed at:**")[2]
    section = "Result" if whole.data.get("outcome") == "success" else "Error"
    frame = f"{head}\n\n### {section}\n```\n", f"\n```\n\n{foot}"
    # What may be long stands last, where it is cut. A trigger may quote what it was to store.
    why = clean_line(why, secrets)
    said = inert(one_line(f"the whole report {where}; the database refused it:")) + " " + inert(why)
    room = SHORT_BYTES - len("".join(frame).encode())
    subject = cut(whole.subject, SHORT_SUBJECT_LIMIT)
    return Report(subject, cut_bytes(said, room).join(frame), whole.data | {"result": None})


def sections(outcome: Outcome, secrets: tuple[str, ...]) -> list[str]:
    """Return the parts between the head and the foot of a report's body."""
    if outcome.verdict in ("success", "escalated"):
        parts = ["### Result\n" + fenced(outcome.text, secrets)]
    else:
        parts = ["### Error\n" + fenced(outcome.error, secrets)]
        if outcome.text:
            parts.append("### Output\n" + fenced(outcome.text, secrets))
    if outcome.change:
        parts.append("### Change Summary\n" + fenced(outcome.change.diff, secrets, "diff"))
        parts.append(f"**Backup:** {header(outcome.change.backup, 5000, secrets)}")
        if outcome.change.changelog_updated:
            parts.append("*Changelog automatically updated.*")
    return parts


def stored_value(value: Any, secrets: tuple[str, ...]) -> Any:
    """Return a task's JSON value as it is, but for secrets and for what JSONB cannot hold."""
    try:
        stored = storable(value, secrets)
        size = len(json.dumps(stored))
    except (TypeError, ValueError, RecursionError) as error:
        # Whatever a task returns must not keep its report from being stored.
        return {"left_out": f"not a JSON value: {type(error).__name__}"}
    if size > MAX_VALUE_BYTES:
        return {"left_out": f"{size:,} bytes; at most {MAX_VALUE_BYTES:,} are kept"}
    return stored


def storable(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return NOT_IN_JSONB.sub(escape_character, redact(value, secrets))
    if isinstance(value, dict):
        return {storable(str(key), secrets): storable(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, str) and "\n" not in item for item in value):
            # The lines of one text: a private key goes over many of them.
            return storable("\n".join(value), secrets).split("\n")
        return [storable(item, secrets) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""What a report says, and how hostile text is made harmless.

Every text that the program did not write itself passes `clean` (control characters made visible,
secrets redacted), then `cap`, and only then reaches a report. Redaction comes before cutting.
"""

from __future__ import annotations

import html
import json
import math
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

from catalyst_heartbeat.outcome import Outcome, Verdict
from catalyst_heartbeat.redaction import clean, clean_short, redact

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
# big_bro's own heartbeat reads so many characters of a body, and no more.
HEAD_LIMIT = 200
TASK_NAME_LIMIT = 60
REASON_LIMIT = 300
MAX_LINES = 200
MAX_BYTES = 16 * 1024
# Half of a cut text; the rest of MAX_BYTES is for the line that says what is missing.
HALF_BYTES = MAX_BYTES // 2 - 64
MAX_VALUE_BYTES = 256 * 1024
SHORT_TEXT = 500


class Report(NamedTuple):
    """The columns of a report or of an escalation that depend on what happened."""

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
    original: Original,
    outcome: Outcome,
    *,
    agent: str,
    secrets: tuple[str, ...],
    seconds: float = 0.0,
    now: datetime | None = None,
) -> Report:
    """Return the report of an outcome; `seconds` is how long the task ran."""
    task = one_line(original.task, TASK_NAME_LIMIT, secrets)
    head = f"{MARKS[outcome.verdict]}\n\n## Task: {task}\n**Original Request:** "
    subject = one_line(original.subject or "(no subject)", SUBJECT_LIMIT, secrets)
    body = [
        head + one_line(original.subject or "(no subject)", HEAD_LIMIT - len(head), secrets),
        *sections(outcome, secrets),
        f"**Executed at:** {(now or datetime.now(timezone.utc)).isoformat(timespec='seconds')}\n"
        f"**Executed by:** {agent}",
    ]
    data = {
        "task": one_line(original.task, TASK_NAME_LIMIT, secrets),
        "outcome": outcome.verdict,
        "final": outcome.verdict != "escalated",
        "message_id": original.message_id,
        "attempt": original.attempt,
        "duration_ms": round(seconds * 1000),
        "result": shown_value(outcome.value, secrets),
    }
    return Report(cut(f"Task Report: {subject}", SUBJECT_LIMIT), "\n\n".join(body), data)


def sections(outcome: Outcome, secrets: tuple[str, ...]) -> list[str]:
    """Return the parts between the head and the foot of a report's body."""
    if outcome.verdict in ("success", "escalated"):
        parts = ["### Result\n" + block(outcome.text, secrets)]
    else:
        parts = ["### Error\n" + block(outcome.error, secrets)]
        if outcome.text:
            parts.append("### Output\n" + block(outcome.text, secrets))
    if outcome.change:
        parts.append("### Change Summary\n" + block(outcome.change.diff, secrets, "diff"))
        parts.append(f"**Backup:** {one_line(outcome.change.backup, 5000, secrets)}")
        if outcome.change.changelog_updated:
            parts.append("*Changelog automatically updated.*")
    return parts


def block(text: str, secrets: tuple[str, ...], language: str = "") -> str:
    """Return the text cleaned and cut, within a fence longer than any run of backticks in it."""
    shown = cap(clean(text, secrets).rstrip("\n"))
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def cap(text: str) -> str:
    """Return the text within MAX_LINES and MAX_BYTES: its head, what is missing, its tail."""
    lines = text.split("\n")
    size = len(text.encode())
    if len(lines) <= MAX_LINES and size <= MAX_BYTES:
        return text
    head = first_bytes("\n".join(lines[: MAX_LINES // 2]))
    tail = last_bytes("\n".join(lines[-(MAX_LINES // 2 - 1) :]))
    missing = size - len(head.encode()) - len(tail.encode())
    return f"{head}\n... {missing:,} of {size:,} bytes ({len(lines):,} lines) left out ...\n{tail}"


def first_bytes(text: str) -> str:
    return text.encode()[:HALF_BYTES].decode(errors="ignore")


def last_bytes(text: str) -> str:
    return text.encode()[-HALF_BYTES:].decode(errors="ignore")


def one_line(text: str, limit: int, secrets: tuple[str, ...]) -> str:
    """Return the text as one HTML-inert line of at most `limit` characters."""
    return cut(html.escape(plain_line(text, secrets), quote=False), limit)


def plain_line(text: str, secrets: tuple[str, ...]) -> str:
    # Again at the end: joining lines and runs of blanks may have made a secret whole.
    return redact(" ".join(clean(text, secrets).split()), secrets)


def cut(text: str, limit: int) -> str:
    """Shorten an HTML-inert line without splitting an entity such as &amp;."""
    if len(text) <= limit:
        return text
    return re.sub(r"&[a-z]{0,3}\Z", "", text[: limit - 1]) + "…"


def shown_value(value: Any, secrets: tuple[str, ...]) -> Any:
    """Return a task's JSON value with every text in it cleaned; None stays None."""
    try:
        shown = clean_value(value, secrets)
        size = len(json.dumps(shown))
    except (TypeError, ValueError, RecursionError) as error:
        # Whatever a task returns must not keep its report from being stored.
        return {"left_out": f"not a JSON value: {type(error).__name__}"}
    if size > MAX_VALUE_BYTES:
        return {"left_out": f"{size:,} bytes; at most {MAX_VALUE_BYTES:,} are kept"}
    return shown


def clean_value(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return clean_short(value, secrets) if len(value) <= SHORT_TEXT else clean(value, secrets)
    if isinstance(value, dict):
        return {
            clean_value(str(key), secrets): clean_value(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) and "\n" not in item for item in value):
            # The lines of one text: a private key goes over many of them.
            return clean("\n".join(value), secrets).split("\n") if value else []
        return [clean_value(item, secrets) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

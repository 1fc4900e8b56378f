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
from functools import lru_cache
from typing import Any, NamedTuple

from tasks.base import Outcome, Verdict

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

REDACTED = "[redacted]"
# Everything that is invisible or moves the cursor or the reading direction: controls except tab
# and newline, format characters, separators, surrogates, fillers and variation selectors.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Each finds its match, or none, in one pass over a text of any shape: it is hostile.
KEY_NAME = "[A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}"
SECRET_PATTERNS = (
    # A private key: whole, without the end that was not read, without the beginning.
    (re.compile(rf"-----BEGIN ({KEY_NAME})-----.*?(?:-----END \1-----|\Z)", re.S), REDACTED),
    (re.compile(rf"\A.*-----END {KEY_NAME}-----", re.S), REDACTED),
    # user:password@, token@, and passwords that hold an @ themselves.
    (
        re.compile(r"(?<=://)(?:[^\s/:@]*:(?:(?!://)[^\s@])+|[^\s/:@]+)@(?:[^\s/@]*@)*"),
        f"{REDACTED}@",
    ),
    (re.compile(r"(bearer\s+)[\w.~+/=-]{8,}", re.I | re.A), rf"\1{REDACTED}"),
    (re.compile(r"(authorization:\s*basic\s+)[\w+/=]{8,}", re.I | re.A), rf"\1{REDACTED}"),
    (re.compile(r"(?:AKIA|ASIA)[0-9A-Z]{16}"), REDACTED),
    (re.compile(r"(aws_secret_access_key\W{1,5})[\w/+=]{40}", re.I | re.A), rf"\1{REDACTED}"),
)
# Every match of a pattern above has one of these in it, and most texts have none.
SECRET_HINT = re.compile(
    r"://|-----(?:BEGIN|END) |bearer\s|authorization:|AKIA|ASIA|aws_secret_access_key", re.I | re.A
)


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


def clean(text: str, secrets: tuple[str, ...]) -> str:
    """Return the text with invisible characters made visible and with secrets redacted."""
    return redact(make_visible(text), secrets)


@lru_cache(maxsize=1024)
def clean_short(text: str, secrets: tuple[str, ...]) -> str:
    """Do what `clean` does, once for the names and words that come again in every report."""
    return clean(text, secrets)


def make_visible(text: str) -> str:
    """Write every invisible character but tab and newline as its escape, such as \\x1b."""
    if text.isascii() and text.isprintable():
        return text
    return INVISIBLE.sub(escape_character, text.replace("\r\n", "\n"))


def escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def redact(text: str, secrets: tuple[str, ...]) -> str:
    text = redact_values(text, secrets)
    if not SECRET_HINT.search(text):
        return text
    for pattern, replacement in SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(text: str, secrets: tuple[str, ...]) -> str:
    pattern = values_pattern(secrets)
    return pattern.sub(REDACTED, text) if pattern else text


@lru_cache(maxsize=8)
def values_pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return what matches any configured secret as `make_visible` leaves it, the longest first."""
    values = {make_visible(secret) for secret in secrets}
    found = sorted((value for value in values if value not in REDACTED), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


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
    return redact_values(" ".join(clean(text, secrets).split()), secrets)


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

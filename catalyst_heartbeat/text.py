"""Cutting and cleaning of text that the program did not write itself.

Each foreign text is cleaned by itself, then cut, then joined with the program's own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from catalyst_heartbeat.redaction import LONGEST_SECRET, redact

MAX_LINES = 200
MAX_BYTES = 16 * 1024
# Half of a cut text; the rest of MAX_BYTES is for the line that says what is missing.
HALF_BYTES = MAX_BYTES // 2 - 64
# Programs that read a queue preview so many characters of a body: big_bro's heartbeat, and the
# dashboard, which takes them for HTML.
HEAD_LIMIT = 200
TAG_START = re.compile("<(?=[A-Za-z/!?])")
# Everything that is invisible or moves the cursor or the reading direction: controls except tab
# and newline, format characters, separators, surrogates, fillers and variation selectors.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# The columns of `docker ps` are at least so wide, with so many blanks between them.
COLUMN_WIDTH, COLUMN_GAP = 10, 3


class Cleaned(str):
    """A text of which each foreign part was cleaned by itself: none may hide what is beside it."""


def clean(text: str, secrets: tuple[str, ...]) -> str:
    """Return the text with secrets redacted and invisible characters made visible."""
    if isinstance(text, Cleaned):
        return text
    hidden = redact(text, secrets)
    shown = make_visible(hidden)
    # Again where something changed: an escape or a joined line may have made a secret whole.
    return hidden if shown == hidden else redact(shown, secrets)


def make_visible(text: str) -> str:
    """Write every invisible character but tab and newline as its escape, such as \\x1b."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return INVISIBLE.sub(escape_character, text.replace("\r\n", "\n"))


def escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: object) -> str:
    """Return a text that can neither begin a line of its own nor hide what it says."""
    return " ".join(make_visible(str(text)).split())


def clean_line(text: str, secrets: tuple[str, ...]) -> str:
    # Again at the end: joining lines and runs of blanks may have made a secret whole.
    return redact(one_line(redact(text, secrets)), secrets)


def header(text: str, limit: int, secrets: tuple[str, ...]) -> str:
    """Return the text as one HTML-inert line of at most `limit` characters."""
    return cut(inert(clean_line(text, secrets)), limit)


def inert(text: str) -> str:
    """Return the text as HTML that shows it, wherever a page puts it between tags."""
    return html.escape(text, quote=False)


def inert_head(body: str) -> str:
    """Return a body whose first HEAD_LIMIT characters hold no HTML tag, not even a begun one."""
    return TAG_START.sub("&lt;", body[: HEAD_LIMIT + 1]) + body[HEAD_LIMIT + 1 :]


def cut(text: str, limit: int) -> str:
    """Shorten an HTML-inert line without splitting an entity such as &amp;."""
    if len(text) <= limit:
        return text
    return re.sub(r"&[a-z]{0,3}\Z", "", text[: limit - 1]) + "…"


def cut_bytes(text: str, limit: int) -> str:
    """Shorten an HTML-inert line to so many bytes of UTF-8."""
    kept = text.encode()[: max(0, limit - 3)].decode(errors="ignore")
    return text if len(text.encode()) <= limit else cut(text, len(kept) + 1)


def cap(text: str) -> str:
    """Return the text within MAX_LINES and MAX_BYTES: its head, what is missing, its tail."""
    lines = text.split("\n")
    content = text.encode()
    if len(lines) <= MAX_LINES and len(content) <= MAX_BYTES:
        return text
    head = "\n".join(lines[: MAX_LINES // 2]).encode()[:HALF_BYTES].decode(errors="ignore")
    tail = "\n".join(lines[-(MAX_LINES // 2 - 1) :]).encode()[-HALF_BYTES:].decode(errors="ignore")
    missing = len(content) - len(head.encode()) - len(tail.encode())
    size = f"{len(content):,} bytes ({len(lines):,} lines)"
    return f"{head}\n... {missing:,} of {size} left out ...\n{tail}"


def fenced(text: str, secrets: tuple[str, ...], language: str = "") -> str:
    """Return the text cleaned and cut, within a fence longer than any run of backticks in it."""
    shown = cap(clean(text, secrets).rstrip("\n"))
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def without_start(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text whose start was cut off, redacted, and without what may be half a secret."""
    hidden, rest = redact(text, secrets), redact(text[LONGEST_SECRET:], secrets)
    return "... " + common_start(hidden[::-1], rest[::-1])[::-1]


def without_end(text: str, limit: int, secrets: tuple[str, ...]) -> str:
    """Return the first `limit` characters of a text of which `limit` + LONGEST_SECRET were read.

    Where the reading cut it off, what may be half a secret at its end is left out.
    """
    hidden = redact(text, secrets)
    if len(text) >= limit + LONGEST_SECRET:
        # Not so much of what is shown, where a long secret may be short: where they part, one cut
        # a secret that the other saw whole.
        hidden = common_start(hidden, redact(text[:-LONGEST_SECRET], secrets)) + "…"
    return cut(hidden, limit)


def common_start(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], secrets: tuple[str, ...]
) -> Cleaned:
    """Return aligned columns as `docker ps` has them, one line a row whatever the cells hold.

    None is shown as "-".
    """
    shown = (
        ["-" if cell is None else clean_line(str(cell), secrets) for cell in row] for row in rows
    )
    lines = [list(header), *shown]
    widths = [
        max(COLUMN_WIDTH, max(len(line[column]) for line in lines) + COLUMN_GAP)
        for column in range(len(header))
    ]
    return Cleaned(
        "\n".join(
            "".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
    )

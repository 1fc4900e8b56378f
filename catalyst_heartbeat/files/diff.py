"""Unified diffs that stay fast whatever the two texts are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import NamedTuple

from catalyst_heartbeat.redaction import hide_keys

CONTEXT_LINES = 3
# Comparing takes time that grows with the square of this; a larger middle is one replaced block.
MOST_LINES_COMPARED = 2000
NO_NEWLINE = "\\ No newline at end of file"

Opcode = tuple[str, int, int, int, int]


class Diff(NamedTuple):
    """A unified diff, the number of lines that it adds and removes, and what a report shows of it:
    the lines of a private key are hidden there, since three of them would not be recognised."""

    text: str
    added: int
    removed: int
    shown: str


def unified_diff(path: str, before: str | None, after: str | None) -> Diff:
    """Compare two versions of a file; None is the file that does not exist."""
    texts = (before or "", after or "")
    old, new = map(split_lines, texts)
    opcodes = list(compare(old, new))
    head = [
        "--- " + ("/dev/null" if before is None else f"a{path}"),
        "+++ " + ("/dev/null" if after is None else f"b{path}"),
    ]
    changes = [opcode for opcode in opcodes if opcode[0] != "equal"]
    added = sum(end - start for _, _, _, start, end in changes)
    removed = sum(end - start for _, start, end, _, _ in changes)
    text = "\n".join([*head, *body(opcodes, old, new), ""])
    hidden = map(split_lines, map(hide_keys, texts))
    return Diff(text, added, removed, "\n".join([*head, *body(opcodes, *hidden), ""]))


def body(opcodes: list[Opcode], old: list[str], new: list[str]) -> Iterator[str]:
    for hunk in hunks(opcodes, len(old)):
        yield from hunk_lines(hunk, old, new)


def split_lines(text: str) -> list[str]:
    """Split after "\\n" only: str.splitlines also splits where no editor sees a line."""
    return [line for line in text.replace("\n", "\n\0").split("\0") if line]


def compare(old: list[str], new: list[str]) -> Iterator[Opcode]:
    """Yield how to turn one list of lines into the other, in difflib's opcodes."""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    rest = shorter - head
    tail = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    old_end, new_end = len(old) - tail, len(new) - tail
    if head:
        yield ("equal", 0, head, 0, head)
    if max(old_end, new_end) - head > MOST_LINES_COMPARED:
        yield ("replace", head, old_end, head, new_end)
    else:
        matcher = difflib.SequenceMatcher(None, old[head:old_end], new[head:new_end])
        for tag, *ends in matcher.get_opcodes():
            a, b, c, d = (end + head for end in ends)
            yield (tag, a, b, c, d)
    if tail:
        yield ("equal", old_end, len(old), new_end, len(new))


def hunks(opcodes: list[Opcode], old_length: int) -> Iterator[list[Opcode]]:
    """Group changes that lie close together, with the equal lines around them."""
    hunk: list[Opcode] = []
    for tag, a, b, c, d in opcodes:
        if tag != "equal":
            hunk.append((tag, a, b, c, d))
            continue
        if hunk and (b == old_length or b - a > 2 * CONTEXT_LINES):
            kept = min(CONTEXT_LINES, b - a)
            yield [*hunk, (tag, a, a + kept, c, c + kept)]
            hunk = []
        kept = b - a if hunk else min(CONTEXT_LINES, b - a)
        if b < old_length or not hunk:
            hunk.append((tag, b - kept, b, d - kept, d))
    if any(tag != "equal" for tag, *_ in hunk):
        yield hunk


def hunk_lines(hunk: list[Opcode], old: list[str], new: list[str]) -> Iterator[str]:
    first, last = hunk[0], hunk[-1]
    yield f"@@ -{extent(first[1], last[2])} +{extent(first[3], last[4])} @@"
    for tag, a, b, c, d in hunk:
        if tag == "equal":
            yield from marked(" ", old[a:b])
            continue
        yield from marked("-", old[a:b])
        yield from marked("+", new[c:d])


def extent(start: int, end: int) -> str:
    """Return "line,count" as a hunk's header has it: an empty extent names the line before."""
    return f"{start + 1 if end > start else start},{end - start}"


def marked(mark: str, lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield NO_NEWLINE

"""Unified diffs that stay fast whatever the two texts are."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from catalyst_heartbeat.redaction import redact

CONTEXT_LINES = 3
# Comparing takes time that grows with the square of this; a larger middle is one replaced block.
MOST_LINES_COMPARED = 2000
NO_NEWLINE = "\\ No newline at end of file"

Tag = Literal["replace", "delete", "insert", "equal"]
Opcode = tuple[Tag, int, int, int, int]


class Diff(NamedTuple):
    """A unified diff, the number of lines that it adds and removes, and what people are shown of
    it: what tells a secret from other text may stand further from it than a diff's context.

    `before` is the SHA-256 of the whole text that is changed, "" of none.
    """

    text: str = ""
    added: int = 0
    removed: int = 0
    shown: str = ""
    before: str = ""

    @property
    def bound(self) -> str:
        """Return what an approval covers: this change of this text, in its other lines as well."""
        return f"{self.text}{self.before}"


def unified_diff(
    path: str,
    before: str | None,
    after: str | None,
    secrets: tuple[str, ...],
    rights_change: Sequence[str] = (),
) -> Diff:
    """Compare two versions of a file; None is the file that does not exist."""
    texts = (before or "", after or "")
    old, new = map(split_lines, texts)
    hunks = list(Comparison(old, new).get_grouped_opcodes(CONTEXT_LINES))
    changes = [opcode for hunk in hunks for opcode in hunk if opcode[0] != "equal"]
    head = [
        *rights_change,
        "--- " + ("/dev/null" if before is None else f"a{path}"),
        "+++ " + ("/dev/null" if after is None else f"b{path}"),
    ]
    # Redacted whole, and cut as the texts themselves are: what changes is seen to change.
    hidden = (split_lines(redact(text, secrets)) for text in texts)
    return Diff(
        "\n".join([*head, *body(hunks, old, new), ""]),
        added=sum(end - start for _, _, _, start, end in changes),
        removed=sum(end - start for _, start, end, _, _ in changes),
        shown="\n".join([*head, *body(hunks, *hidden), ""]),
        before=hashlib.sha256(before.encode()).hexdigest() if before is not None else "",
    )


def split_lines(text: str) -> list[str]:
    """Split after "\\n" only: str.splitlines also splits where no editor sees a line."""
    return [line for line in text.replace("\n", "\n\0").split("\0") if line]


class Comparison(difflib.SequenceMatcher[str]):
    """Compares lines; what both begin and end with is left out first, and what is then too long."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        super().__init__()
        self.old, self.new = old, new

    def get_opcodes(self) -> list[Opcode]:
        head, tail = common_ends(self.old, self.new)
        old_end, new_end = len(self.old) - tail, len(self.new) - tail
        middle: list[Opcode] = [("replace", head, old_end, head, new_end)]
        if max(old_end, new_end) - head <= MOST_LINES_COMPARED:
            matcher = difflib.SequenceMatcher(None, self.old[head:old_end], self.new[head:new_end])
            middle = [
                (tag, a + head, b + head, c + head, d + head)
                for tag, a, b, c, d in matcher.get_opcodes()
            ]
        first: Opcode = ("equal", 0, head, 0, head)
        last: Opcode = ("equal", old_end, len(self.old), new_end, len(self.new))
        return [*[first] * bool(head), *middle, *[last] * bool(tail)]


def common_ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """Return how many items both begin with, and how many of the rest both end with."""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    rest = shorter - head
    return head, next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)


def body(
    hunks: Sequence[Sequence[tuple[str, int, int, int, int]]], old: list[str], new: list[str]
) -> Iterator[str]:
    for hunk in hunks:
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

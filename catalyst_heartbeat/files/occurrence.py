"""Finds the text that an edit replaces, and says how the file differs where it almost occurs."""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from catalyst_heartbeat.files.diff import common_ends
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.redaction import REDACTED, redact
from catalyst_heartbeat.text import INVISIBLE

MOST_LINES_NAMED = 20
MOST_DIFFERENCES_NAMED = 3
MOST_CHARACTERS_NAMED = 4
# Counting overlapping matches may compare the whole of old_text at each of them.
MOST_COMPARISONS = 50_000_000
LOOK_ALIKES = str.maketrans(
    {quote: "'" for quote in "\u2018\u2019\u201a\u201b\u2032\u00b4`"}
    | {quote: '"' for quote in "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"}
    | {dash: "-" for dash in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"}
    | {"\r": "", "\t": " ", "\x85": "\n", "\u2028": "\n", "\u2029": "\n"}
)
NOUNS = {" ": "blank", "\t": "tab", "\n": "line end", "\r": "carriage return"}

# What a text may have got on its way from a report to old_text.
READINGS: tuple[tuple[Callable[[str], str], str], ...] = (
    (html.unescape, 'the escapes of HTML, such as "&lt;" for "<"'),
    (partial(re.compile(r"^ {0,5}[0-9]+\t", re.MULTILINE).sub, ""), "read_file's line numbers"),
    (partial(re.compile(r"\\n").sub, "\n"), 'the "\\n" where the file has line ends'),
)


def check_occurs_once(text: str, old: str, secrets: tuple[str, ...]) -> None:
    """Raise TaskFailed with the number and the lines unless `old` occurs exactly once.

    A near miss is looked for in what read_file shows: it must not spell a secret out.
    """
    most = max(2, MOST_COMPARISONS // len(old))
    lines: list[int] = []
    line, seen, start = 1, 0, text.find(old)
    while start >= 0 and len(lines) < most:
        line += text.count("\n", seen, start)
        lines.append(line)
        seen, start = start, text.find(old, start + 1)
    if not lines:
        shown = redact(text, secrets)
        raise TaskFailed(f"old_text does not occur in the file; {near_miss(shown, old)}")
    if len(lines) > 1:
        count = f"{len(lines)} times" if start < 0 else f"more than {most} times"
        more = ", ..." if len(lines) > MOST_LINES_NAMED or start >= 0 else ""
        named = ", ".join(map(str, lines[:MOST_LINES_NAMED])) + more
        raise TaskFailed(
            f"old_text occurs {count}, beginning in lines {named}; "
            "it must occur exactly once: give more of the text around it"
        )


def near_miss(text: str, old: str) -> str:
    """Say where the file looks like `old`, and in which characters it differs."""
    for ignore_case in (False, True):
        folded, ends = fold(text, ignore_case)
        wanted, wanted_ends = fold(old, ignore_case)
        start = folded.find(wanted) if wanted else -1
        if start >= 0:
            begin = ends[start - 1] if start else 0
            theirs = segments(text, [begin, *ends[start : start + len(wanted)]])
            return differences(text, begin, theirs, segments(old, [0, *wanted_ends[:-1], len(old)]))
        start = folded.find(wanted.strip()) if wanted.strip() else -1
        if start >= 0:
            line = text.count("\n", 0, ends[start]) + 1
            return f"line {line} differs only in the blanks or line ends around it"
    for read, said in READINGS:
        if (meant := read(old)) != old and meant in text:
            return f"it does without {said}"
    if REDACTED in old:
        return f"read_file put {REDACTED} in the place of a secret: choose a text beside it"
    return "read_file shows what it holds"


def fold(text: str, ignore_case: bool) -> tuple[str, list[int]]:
    """Return a text as it looks, and where in the text each character of that ends."""
    folded: list[str] = []
    ends: list[int] = []
    for end, char in enumerate(text, 1):
        for part in look_of(char, ignore_case):
            if folded and folded[-1] == " " and part in " \n":
                # A run of blanks counts as one, and at the end of a line as none.
                folded.pop()
                ends.pop()
            folded.append(part)
            ends.append(end)
    return "".join(folded), ends


@lru_cache(maxsize=4096)
def look_of(char: str, ignore_case: bool) -> str:
    """Return what a character looks like: nothing, a plain character, or several."""
    plain = char.translate(LOOK_ALIKES)
    if plain == char:
        plain = unicodedata.normalize("NFKD", INVISIBLE.sub("", char))
    return plain.casefold() if ignore_case else plain


def segments(text: str, ends: list[int]) -> list[str]:
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def differences(text: str, begin: int, theirs: list[str], ours: list[str]) -> str:
    """Name the line of the first difference, and the characters of the first few."""
    # What stands before the first character and behind the last one is no part of the match.
    if theirs[0].endswith(ours[0]):
        begin += len(theirs[0]) - len(ours[0])
        theirs[0] = ours[0]
    if ours[-1] and theirs[-1].startswith(ours[-1]):
        theirs[-1] = ours[-1]
    pairs = list(zip(theirs, ours, strict=True))
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    line = text.count("\n", 0, begin + sum(len(one) for one, _ in alike)) + 1
    groups = itertools.groupby(pairs, lambda pair: pair[0] == pair[1])
    found = list(dict.fromkeys(tuple(group) for alike, group in groups if not alike))
    more = "; and more" if len(found) > MOST_DIFFERENCES_NAMED else ""
    said = "; ".join(map(difference, found[:MOST_DIFFERENCES_NAMED]))
    return f"line {line} differs only in: {said}{more}"


def difference(pairs: Sequence[tuple[str, str]]) -> str:
    theirs, ours = ("".join(side) for side in zip(*pairs, strict=True))
    head, tail = common_ends(theirs, ours)
    theirs, ours = (side[head : len(side) - tail] for side in (theirs, ours))
    return f"{named(theirs)} where old_text has {named(ours)}"


def named(characters: str) -> str:
    """Name characters one by one, runs of the same as a number."""
    runs = [name(char, len(list(run))) for char, run in itertools.groupby(characters)]
    more = " + ..." if len(runs) > MOST_CHARACTERS_NAMED else ""
    return " + ".join(runs[:MOST_CHARACTERS_NAMED]) + more or "nothing"


def name(char: str, count: int) -> str:
    if char in NOUNS:
        return f"a {NOUNS[char]}" if count == 1 else f"{count} {NOUNS[char]}s"
    plain = char.isascii() and char.isprintable()
    called = f'"{char}"' if plain else f"U+{ord(char):04X} {unicodedata.name(char, '').lower()}"
    return called.strip() if count == 1 else f"{count} x {called.strip()}"

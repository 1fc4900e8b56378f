"""Finds the lines of private keys: between their markers, beside a lone one, and without any."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

REDACTED = "[redacted]"
MARKER = r"-{4,5} ?(?:BEGIN|END)\b[A-Za-z0-9 ]{0,60}(?:-{4,5}(?!-? ?(?:BEGIN|END)))?"
# Where a line of a key may end: a newline, an escaped one, a marker.
SEPARATOR = re.compile(rf"(\n|\\{{1,4}}[nr]|{MARKER})")
# The base64 of what keys begin with: DER (RFC 8017, 5915, 5958) and OpenSSH's own format.
KEY_START = re.compile("MI[IG]|MH[cQ]CAQ|MC4CAQ|MFECAQ|b3BlbnNzaC1rZXk")
# One of these is in each text that holds a key; most texts have none.
HINT = re.compile(
    rf"-{{4}} ?(?:BEGIN|END)|{KEY_START.pattern}|^[^\w\n]{{0,9}}[A-Za-z0-9+/]{{60}}", re.M
)
PUBLIC_MARKER = re.compile("CERTIFICATE|PUBLIC|PARAMETERS|CRL|MESSAGE|SIGNATURE|PKCS7|CMS")
# What public things begin with, so narrow that a key whose beginning was cut off hardly ever does:
# a sequence in DER that begins with another or is long, SSH's format; a packet of OpenPGP.
PUBLIC_START = re.compile("MI[G-J]|M[A-P][AEIMQUYcgkosw048]w|AAAA")
PGP_START = re.compile("m[QID]|x[sj]|hQ|wc|iQ|wn")
# A version number, as private keys have and certificates have not, or an encrypted key's scheme.
PRIVATE_DER = re.compile(
    rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)"
    rb"(?:\x02\x01[\x00\x01]|.{2,4}\x06.\x2a\x86\x48\x86\xf7\x0d\x01[\x05\x0c])",
    re.S,
)
# Pictures, documents, archives, JSON: base64 of many lines that is no key.
FILE_START = re.compile(
    "iVBOR|/9j/|R0lGOD|UklGR|JVBER|PHN2|PD94|H4sI|UEsD|Qk[0-3]|AAAA|PCFE|ey[A-DI-L]|ew[o-r]"
)
KEY_HEADER = re.compile(r"\s*(?:Proc-Type|DEK-Info|Comment|Version|Charset|Hash): ")
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
IS_BASE64 = re.compile("[A-Za-z0-9+/]+={0,3}")
# What stands before or behind a line that is quoted, indented, commented out or in a diff.
DECORATION = " \t\r+->|#\"'`*(,;)\\"
LONG, SHORT = 40, 16
MATERIAL = re.compile(r"[A-Za-z0-9+/]{16,}={0,3}")
# So wide are the lines of keys.
WIDTHS = range(60, 81)


class Line(NamedTuple):
    """One line that may be of a key: its place among the pieces, what surrounds its base64."""

    place: int
    lead: str
    base64: str
    tail: str

    @property
    def is_material(self) -> bool:
        text = self.base64
        mixed = len(text) >= SHORT and is_mixed(text)
        return mixed or len(text) >= LONG or text.endswith("=") or bool(KEY_START.match(text))


def hide_keys(text: str) -> str:
    """Put [redacted] in the place of each line of a private key; every line stays a line."""
    if not HINT.search(text):
        return text
    pieces = SEPARATOR.split(text)
    for before, lines, after in runs(pieces):
        for line in key_lines(before, lines, after):
            pieces[line.place] = line.lead + REDACTED + line.tail
    hide_between_markers(pieces)
    pieces[1::2] = [REDACTED if "PRIVATE KEY" in piece else piece for piece in pieces[1::2]]
    return "".join(pieces)


def hide_between_markers(pieces: list[str]) -> None:
    """Hide a private key's base64 between its markers, whatever was written around each line."""
    markers = [place for place in range(1, len(pieces), 2) if "-" in pieces[place]]
    for begin, end in pairwise(markers):
        if is_private_pair(pieces[begin], pieces[end]):
            for place in range(begin + 1, end, 2):
                pieces[place] = MATERIAL.sub(REDACTED, pieces[place])


def is_private_pair(before: str, after: str) -> bool:
    private = "PRIVATE KEY" in before and "PRIVATE KEY" in after
    return private and "BEGIN" in before and "END" in after


def runs(pieces: list[str]) -> Iterator[tuple[str, list[Line], str]]:
    """Yield the lines of base64 that follow one another, and the markers around them or ""."""
    before, lines = "", list[Line]()
    for index, piece in enumerate(pieces):
        is_separator = index % 2 == 1
        if is_separator and "-" in piece:
            yield before, lines, piece
            before, lines = piece, []
        elif is_separator or not piece.strip(DECORATION):
            continue
        elif line := key_line(index, piece, lines[-1:]):
            lines.append(line)
        elif not (index + 1 < len(pieces) and "-" in pieces[index + 1]):
            # Anything else ends a run, but for what a log writes before a marker.
            yield before, lines, ""
            before, lines = "", []
    yield before, lines, ""


def key_line(place: int, piece: str, above: list[Line]) -> Line | None:
    """Return the base64 at the end of a line, or a key's header; None for any other line."""
    body = piece.rstrip(DECORATION)
    if KEY_HEADER.match(body):
        return Line(place, "", body, piece[len(body) :])
    lead = body.rstrip(BASE64) or "+" * body.startswith("+")
    line = Line(place, lead, body[len(lead) :], piece[len(body) :])
    if not IS_BASE64.fullmatch(line.base64):
        return None
    words = body.strip(DECORATION).split()
    if any(map(KEY_START.match, words)) and all(map(IS_BASE64.fullmatch, words)):
        return Line(place, "", max(words, key=len), line.tail)
    # What a log writes before each line is as long before all of them.
    alike = above and len(above[0].base64) >= LONG and len(above[0].lead) == len(lead)
    bare = not lead.strip(DECORATION)
    return line if bare or alike or (line.is_material and len(line.base64) >= LONG) else None


def key_lines(before: str, lines: list[Line], after: str) -> Iterator[Line]:
    """Yield the lines that are of a private key, among those between two markers."""
    if is_private_pair(before, after):
        yield from lines
        return
    marked = any(marker and not PUBLIC_MARKER.search(marker) for marker in (before, after))
    if not lines or not (marked or is_key(lines, before + after)):
        return
    previous = ""
    for line in lines:
        # The last line of a key may be short.
        if line.is_material or len(previous) >= LONG:
            yield line
            previous = line.base64
        else:
            previous = ""


def is_key(lines: list[Line], markers: str) -> bool:
    """Tell a private key by its text alone; the markers, if any, are those of a public thing."""
    first = next((line.base64 for line in lines if line.is_material), "")
    many = is_block(lines)
    if markers:
        start = PGP_START if "PGP" in markers else PUBLIC_START
        renamed = many and not start.match(first)
        return renamed or first.startswith("b3Blb") or bool(PRIVATE_DER.match(decoded(first)))
    started = any(KEY_START.match(line.base64) for line in lines)
    return started or (many and not FILE_START.match(first))


def is_block(lines: list[Line]) -> bool:
    """Tell lines of random base64 that a program broke at one width."""
    bare = [line.base64 for line in lines if not line.lead.strip(DECORATION)]
    long = [len(text) for text in bare if len(text) >= LONG and is_mixed(text)]
    return len(long) > 1 and any(size in WIDTHS for size in long)


def is_mixed(text: str) -> bool:
    return all(re.search(kind, text) for kind in ("[a-z]", "[A-Z]", "[0-9]"))


def decoded(text: str) -> bytes:
    return base64.b64decode(text[: min(len(text), 48) // 4 * 4])

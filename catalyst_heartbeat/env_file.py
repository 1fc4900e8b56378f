"""The .env file, which shell scripts source too: read as every shell and dotenv read it alike."""

from __future__ import annotations

import os
import re
from collections.abc import Container

NEWLINE = "\n"
# What a shell or dotenv takes for the end of a line, or leaves out, where the other does not.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# A setting as every shell and dotenv read it alike: no sign in its value means more than itself.
SETTING_LINE = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Z_]+)=(?P<value>"
    r"'(?:[^'\\\x00-\x1f$]|\$(?!\{))*'"
    r'|"[^"\\$`\x00-\x1f]*"'
    r"""|[^\s'"\\$`;&|<>(){}~]*"""
    r")[ \t]*(?:(?<=[ \t])#[^\n]*)?(?:\n|\Z)"
)
# What is not plain text in a line: a comment, quotes, a backslash.
PARTS = re.compile(
    r"(?<=[ \t])#[^\n]*"
    r"|\$?'(?P<single>[^']*)'"
    r'|"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|\\(?P<escaped>.)",
    re.DOTALL,
)
# A line that is others': an assignment whose quotes are closed, `export NAME`, a comment, nothing.
UNNAMED_PARTS = re.sub(r"\?P<\w+>", "?:", PARTS.pattern)
OTHER_LINE = re.compile(
    r"[ \t]*(?:(?:export[ \t]+)?"
    rf"(?P<name>[^\s='\"#]+)[ \t]*=(?P<value>(?:{UNNAMED_PARTS}|[^\n'\"\\$]|\$(?!'))*)"
    r"|export[ \t]+\w+[ \t]*)?(?:#[^\n]*)?(?:\n|\Z)",
    re.DOTALL,
)
ASSIGNMENT = re.compile(r"(?<![\w$])(export[ \t]+)?([A-Z_]+)(?(1)\b|[ \t]*:?\+?=)")


def find(folder: str) -> str | None:
    """Return the nearest .env that is no folder: this folder's first, then its parents'."""
    while not os.path.lexists(path := os.path.join(folder, ".env")) or os.path.isdir(path):
        if folder == "/":
            return None
        folder = os.path.dirname(folder)
    return path


def read(path: str, settings: Container[str]) -> dict[str, str]:
    """Return what a .env file says; raise OSError or ValueError where that cannot be known."""
    if not os.path.isfile(path):  # what waits or leads nowhere must not pass for no settings
        raise OSError("not a file, and no link to one")
    with open(path, encoding="utf-8-sig", newline="") as file:
        return parse(file.read().replace("\r\n", "\n"), settings)


def parse(text: str, settings: Container[str]) -> dict[str, str]:
    """Return what the assignments of a .env file say.

    Raises ValueError with the number of a line that is none, or that gives one of the settings
    in a way that a shell, which may source the same file, and dotenv read differently.
    """
    found: dict[str, str] = {}
    place = 0
    if control := CONTROL.search(text):
        raise ValueError(f"{line_of(text, control.start())} holds a control character")
    while place < len(text):
        if (match := SETTING_LINE.match(text, place)) and match["name"] in settings:
            value = match["value"]
            found[match["name"]] = value[1:-1] if value.startswith(("'", '"')) else value
        elif not (match := OTHER_LINE.match(text, place)):
            where = line_of(text, place)
            raise ValueError(f"{where} is not NAME=value, or a quote in it is not closed")
        elif mixed := given(PARTS.sub("", f" {match[0]}") + later_lines(match[0]), settings):
            where = line_of(text, place)
            raise ValueError(f"{where}: write {mixed[0]}='value', alone on its line")
        elif match["name"]:
            found[match["name"]] = PARTS.sub(part_of_word, match["value"]).strip()
        place = match.end()
    return found


def line_of(text: str, place: int) -> str:
    return f"line {text.count(NEWLINE, 0, place) + 1}"


def given(code: str, settings: Container[str]) -> list[str]:
    """Return the settings that a line sets, or hands on, elsewhere than at its beginning."""
    return [name for _, name in ASSIGNMENT.findall(code) if name in settings]


def later_lines(statement: str) -> str:
    """Return what dotenv would not take for a part of the quotes before it."""
    return "".join(statement.partition(NEWLINE)[1:])


def part_of_word(part: re.Match[str]) -> str:
    """Return what a shell reads where there are quotes, a backslash or a comment."""
    return part["single"] or part["double"] or part["escaped"] or ""

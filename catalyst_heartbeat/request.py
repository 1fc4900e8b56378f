"""The format of a request, read by one grammar that never guesses.

    message = [BOM] [blank] "TASK:" name newline [params] [reason]
    name    = a lower-case letter, then up to 59 lower-case letters, digits and "_"
    params  = [blank] "PARAMS:" one JSON object newline
    reason  = [blank] "REASON:" everything to the end

`blank` is spaces, tabs and newlines; a newline may be CRLF. Blanks at the end of the TASK line
and of the PARAMS line do not count.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from catalyst_heartbeat.outcome import Quote, TaskRejected

FORMAT = "TASK: <name>, then optionally PARAMS: <one JSON object>, then optionally REASON: <text>"
NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
FIRST_LINE = re.compile(r"TASK:([^\n]*)")
MAX_DEPTH = 32
MAX_DIGITS = 20
# So much a rejection quotes of a message.
QUOTE_LIMIT = 80


@dataclass(frozen=True)
class Request:
    """What a message asks for, as it says it."""

    task: str
    params: dict[str, Any]
    reason: str


def parse(body: str) -> Request:
    """Read a message's body by the grammar above; raise TaskRejected where it does not fit."""
    text = body.removeprefix("\ufeff").replace("\r\n", "\n").strip(" \t\n")
    first = FIRST_LINE.match(text)
    if not first:
        refuse_format(text, 0, "the first line must be TASK: <name>")
    name = first[1].strip(" \t")
    if not NAME.fullmatch(name):
        raise TaskRejected(
            '"',
            Quote(name, QUOTE_LIMIT),
            '" is not a task name; a name has at most 60 lower-case letters, '
            'digits and "_", such as docker_ps',
        )
    position = skip_blank(text, first.end())
    params: dict[str, Any] = {}
    if text.startswith("PARAMS:", position):
        params, position = parse_params(text, skip_blank(text, position + len("PARAMS:")))
    reason = params.pop("reason", "")
    if not isinstance(reason, str):
        raise TaskRejected('PARAMS: "reason" must be a string')
    if position < len(text):
        if not text.startswith("REASON:", position):
            refuse_format(text, position, "only PARAMS: and then REASON: may follow, once each")
        reason = text[position + len("REASON:") :].strip()
    return Request(name, params, reason)


def task_name(body: str | None) -> str:
    """Return the name in a message's first line for its report, "unreadable" if it has none."""
    text = (body or "").removeprefix("\ufeff").replace("\r\n", "\n").lstrip(" \t\n")
    first = FIRST_LINE.match(text)
    name = first[1].strip(" \t") if first else ""
    return name if NAME.fullmatch(name) else "unreadable"


def skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n":
        position += 1
    return position


def refuse_format(text: str, position: int, rule: str) -> NoReturn:
    line = text.count("\n", 0, position) + 1
    found = Quote(text[position:].partition("\n")[0], QUOTE_LIMIT)
    raise TaskRejected(f'line {line} begins with "', found, f'": {rule}; the format is {FORMAT}')


def parse_params(text: str, position: int) -> tuple[dict[str, Any], int]:
    """Read one JSON object and the end of its line; return it and where the next line begins."""
    try:
        value, end = JSON_DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise TaskRejected(f"PARAMS is not valid JSON: {error.msg} in {where}") from None
    except RecursionError:
        raise TaskRejected(f"PARAMS is nested deeper than {MAX_DEPTH}") from None
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        found = kinds.get(type(value), "a number")
        raise TaskRejected(f"PARAMS must be one JSON object such as {{}}; found {found}")
    check_values(value)
    rest = text[end:].partition("\n")[0]
    if rest.strip(" \t"):
        refuse_format(text, end, "nothing may follow the JSON object of PARAMS on its line")
    return value, skip_blank(text, end)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise TaskRejected('PARAMS has the key "', Quote(key, QUOTE_LIMIT), '" twice')
        found[key] = value
    return found


def whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise TaskRejected(f"PARAMS has a number of {len(digits)} digits; at most {MAX_DIGITS}")
    return int(digits)


def finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise TaskRejected(f"PARAMS has the number {digits[:30]}, which is too large")
    return number


def refuse_constant(constant: str) -> NoReturn:
    raise TaskRejected(f"PARAMS has {constant}, which is not JSON")


JSON_DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys,
    parse_int=whole_number,
    parse_float=finite_number,
    parse_constant=refuse_constant,
)


def check_values(params: dict[str, Any]) -> None:
    """Refuse what no database column or file name could hold, and nesting too deep to read."""
    level: list[Any] = [params]
    for depth in range(1, MAX_DEPTH + 2):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                raise TaskRejected("PARAMS has a NUL or half a surrogate pair in a string")
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
            if depth > MAX_DEPTH and isinstance(value, dict | list):
                raise TaskRejected(f"PARAMS is nested deeper than {MAX_DEPTH}")
        level = inner

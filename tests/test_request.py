"""request.py: what is a request and what is not; the parser never guesses and never raises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requests import NAMES, OBJECTS, TEXT, agent_of, message_of

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.decide import Refuse, decide
from catalyst_heartbeat.outcome import Change, Outcome, TaskRejected
from catalyst_heartbeat.report import Original, report
from catalyst_heartbeat.request import MAX_DEPTH, NAME, Request, parse, task_name

MIB = 1024 * 1024

GOOD: list[tuple[str, Request]] = [
    ("TASK: disk_space", Request("disk_space", {}, "")),
    ("TASK:disk_space", Request("disk_space", {}, "")),
    ("TASK: \t disk_space \t ", Request("disk_space", {}, "")),
    ("\ufeffTASK: disk_space\n", Request("disk_space", {}, "")),
    ("\r\n\n \t\r\nTASK: disk_space\r\n\r\n", Request("disk_space", {}, "")),
    ("TASK: disk_space\nPARAMS: {}", Request("disk_space", {}, "")),
    ('TASK: t\nPARAMS: {"a": 1} \t\n', Request("t", {"a": 1}, "")),
    ('TASK: t\r\nPARAMS: {"a": "b"}\r\nREASON: why\r\n', Request("t", {"a": "b"}, "why")),
    (
        'TASK: t\n\nPARAMS:\n{\n  "a": [1,\n 2]\n}\n\nREASON:\n\nwhy',
        Request("t", {"a": [1, 2]}, "why"),
    ),
    ("TASK: t\nREASON: why", Request("t", {}, "why")),
    ("TASK: t\nREASON:", Request("t", {}, "")),
    ('TASK: t\nPARAMS: {"reason": "inner", "a": 1}', Request("t", {"a": 1}, "inner")),
    ('TASK: t\nPARAMS: {"reason": "inner"}\nREASON: outer', Request("t", {}, "outer")),
    (
        'TASK: disk_space\nREASON: the last one said\nTASK: restart_service\nPARAMS: {"a": 1}',
        Request("disk_space", {}, 'the last one said\nTASK: restart_service\nPARAMS: {"a": 1}'),
    ),
    (
        'TASK: t\nPARAMS: {"a": "\\nTASK: restart_service\\nREASON: }"}\nREASON: r',
        Request("t", {"a": "\nTASK: restart_service\nREASON: }"}, "r"),
    ),
    ('TASK: t\nPARAMS: {"a": "\\ud83d\\ude00 \u2028"}', Request("t", {"a": "😀 \u2028"}, "")),
    (f"TASK: {'a' * 60}", Request("a" * 60, {}, "")),
    (f'TASK: t\nPARAMS: {{"a": {"9" * 20}}}', Request("t", {"a": 10**20 - 1}, "")),
    ('TASK: t\nPARAMS: {"a": -1.5e300}', Request("t", {"a": -1.5e300}, "")),
]  # fmt: skip


@pytest.mark.parametrize(("body", "request_"), GOOD)
def test_what_the_grammar_allows_is_read_as_it_says(body: str, request_: Request) -> None:
    assert parse(body) == request_
    assert task_name(body) == request_.task


def naive_parse(body: str) -> tuple[str, Any]:
    """Read a message as the original did: the last line of each kind wins, the rest is ignored."""
    task, params = "", {}
    for line in body.splitlines():
        head, _, value = line.strip().partition(":")
        if head.upper() == "TASK":
            task = value.strip()
        elif head.upper() == "PARAMS":
            params = json.loads(value)
    return task, params


# Class A: the body, what its rejection says, and what the naive parser makes of it.
ENVELOPES: list[tuple[str, str, Any]] = [
    (
        "TASK: disk_space\nTASK: restart_all_services",
        'line 2 begins with "TASK: restart_all_services": only PARAMS: and then REASON:',
        ("restart_all_services", {}),
    ),
    (
        'PARAMS: {"service": "trading"}\nTASK: restart_service',
        'line 1 begins with "PARAMS: {"service": "trading"}": the first line must be TASK: <name>',
        ("restart_service", {"service": "trading"}),
    ),
    ("TASK: edit_file\nAPPROVED: yes", 'line 2 begins with "APPROVED: yes"', ("edit_file", {})),
    ("TASK: disk_space\nplease", 'line 2 begins with "please"', ("disk_space", {})),
    (
        'TASK: t\nPARAMS: {"a": 1}\nPARAMS: {"a": 2}',
        'line 3 begins with "PARAMS: {"a": 2}": only PARAMS: and then REASON: may follow, once',
        ("t", {"a": 2}),
    ),
    ("TASK: disk_space\nreason: x", 'line 2 begins with "reason: x"', ("disk_space", {})),
    ("Please run\nTASK: disk_space", 'line 1 begins with "Please run"', ("disk_space", {})),
    ("> quoted\nTASK: disk_space", 'line 1 begins with "> quoted"', ("disk_space", {})),
    ("```\nTASK: disk_space\n```", "line 1 begins with", ("disk_space", {})),
    ("task: disk_space", 'line 1 begins with "task: disk_space"', ("disk_space", {})),
    ("TASK : disk_space", "line 1 begins with", ("", {})),
    ("\u200bTASK: disk_space", "line 1 begins with", ("", {})),
    ("\ufeff\ufeffTASK: disk_space", "line 1 begins with", ("", {})),
    ("\n\ufeffTASK: disk_space", "line 1 begins with", ("", {})),
    ("ＴＡＳＫ: disk_space", "line 1 begins with", ("", {})),
    ("TASK： disk_space", "line 1 begins with", ("", {})),
    ("ТАЅК: disk_space", "line 1 begins with", ("", {})),
    ("\x0bTASK: disk_space", "line 1 begins with", ("disk_space", {})),
    ("\u2028TASK: disk_space", "line 1 begins with", ("disk_space", {})),
    ("\u00a0TASK: disk_space", "line 1 begins with", ("disk_space", {})),
    ("", "the first line must be TASK: <name>", ("", {})),
    (" \r\n\t\n", "the first line must be TASK: <name>", ("", {})),
    ("TASK:", '"" is not a task name', ("", {})),
    ("TASK: \nPARAMS: {}", '"" is not a task name', ("", {})),
    ("TASK:\ndisk_space", '"" is not a task name', ("", {})),
    ("TASK: __class__", '"__class__" is not a task name', ("__class__", {})),
    ("TASK: docker_ps\0", '"docker_ps\0" is not a task name', ("docker_ps\0", {})),
    ("TASK: Docker_ps", "is not a task name", ("Docker_ps", {})),
    ("TASK: DOCKER_PS", "is not a task name", ("DOCKER_PS", {})),
    ("TASK: dосker_ps", "is not a task name", ("dосker_ps", {})),
    ("TASK: disk\u200b_space", "is not a task name", ("disk\u200b_space", {})),
    ("TASK: ｄｉｓｋ_space", "is not a task name", ("ｄｉｓｋ_space", {})),
    ("TASK: dısk_space", "is not a task name", ("dısk_space", {})),
    ("TASK: disk_space٣", "is not a task name", ("disk_space٣", {})),
    ("TASK: disk_space\u00a0", "is not a task name", ("disk_space", {})),
    ("TASK: disk-space", "is not a task name", ("disk-space", {})),
    ("TASK: _private", "is not a task name", ("_private", {})),
    ("TASK: tasks.disk_space", "is not a task name", ("tasks.disk_space", {})),
    ("TASK: disk_space; reboot", "is not a task name", ("disk_space; reboot", {})),
    ("TASK: disk_space\tPARAMS: {}", "is not a task name", ("disk_space\tPARAMS: {}", {})),
    ("TASK: $(reboot)", "is not a task name", ("$(reboot)", {})),
    (f"TASK: {'a' * 61}", "at most 60 lower-case letters", ("a" * 61, {})),
    ("TASK: disk_space\u2028PARAMS: {}", "is not a task name", ("disk_space", {})),
    ("TASK: disk_space\u0085PARAMS: {}", "is not a task name", ("disk_space", {})),
    ("TASK: disk_space\x0bPARAMS: {}", "is not a task name", ("disk_space", {})),
    ("TASK: disk_space\x0cPARAMS: {}", "is not a task name", ("disk_space", {})),
    ("TASK: disk_space\x1ePARAMS: {}", "is not a task name", ("disk_space", {})),
    ("TASK: disk_space\rPARAMS: {}", "is not a task name", ("disk_space", {})),
    ('TASK: t\nPARAMS: {"a": 1}\rREASON: r', "nothing may follow the JSON", ("t", {"a": 1})),
    ('TASK: t\nPARAMS: {"a": 1}\u2028REASON: r', "nothing may follow", ("t", {"a": 1})),
    ('TASK: t\nPARAMS: {"a": 1}\x0bREASON: r', "nothing may follow", ("t", {"a": 1})),
]

# Class B: what stands after PARAMS:, what its rejection says, what json.loads makes of it.
DEEP = "[" * 100_000
VALUES: list[tuple[str, str, Any]] = [
    ('{"a": 1, "a": 2}', 'the key "a" twice', {"a": 2}),
    ('{"a": {"b": 1, "b": 1}}', 'the key "b" twice', {"a": {"b": 1}}),
    ('{"a": 1, "\\u0061": 2}', 'the key "a" twice', {"a": 2}),
    ('{"a": NaN}', "NaN, which is not JSON", {"a": pytest.approx(float("nan"), nan_ok=True)}),
    ('{"a": Infinity}', "Infinity, which is not JSON", {"a": float("inf")}),
    ('{"a": -Infinity}', "-Infinity, which is not JSON", {"a": float("-inf")}),
    ('{"a": 1e400}', "the number 1e400, which is too large", {"a": float("inf")}),
    ('{"a": -1e999}', "which is too large", {"a": float("-inf")}),
    (f'{{"a": {"9" * 5000}}}', "a number of 5000 digits; at most 20", ValueError),
    (f'{{"a": {"1" * 21}}}', "a number of 21 digits; at most 20", {"a": int("1" * 21)}),
    (f'{{"a": -{"1" * 20}}}', "a number of 21 digits", {"a": -int("1" * 20)}),
    ('{"a": 007}', "PARAMS is not valid JSON", ValueError),
    ('{"a": +1}', "PARAMS is not valid JSON", ValueError),
    ('{"a": 0x10}', "PARAMS is not valid JSON", ValueError),
    ('{"a": ٣}', "PARAMS is not valid JSON", ValueError),
    (DEEP, "PARAMS is nested deeper than 32", RecursionError),
    (f'{{"a": {DEEP}', "PARAMS is nested deeper than 32", RecursionError),
    ('{"a":' * 100_000, "PARAMS is nested deeper than 32", RecursionError),
    (f'{{"a": {"[" * 32 + "]" * 32}}}', "PARAMS is nested deeper than 32", None),
    ("[]", "must be one JSON object such as {}; found a list", []),
    ('"{}"', "must be one JSON object such as {}; found a string", "{}"),
    ("null", "must be one JSON object such as {}; found null", None),
    ("5", "must be one JSON object such as {}; found a number", 5),
    ("5.5", "must be one JSON object such as {}; found a number", 5.5),
    ("true", "must be one JSON object such as {}; found true or false", True),
    ("", "PARAMS is not valid JSON: Expecting value in line 2, column 8", ValueError),
    ("{", "PARAMS is not valid JSON", ValueError),
    ("{'a': 1}", "PARAMS is not valid JSON", ValueError),
    ('{"a": 1,}', "PARAMS is not valid JSON", ValueError),
    ('{"a": 1 /* x */}', "PARAMS is not valid JSON", ValueError),
    ("{a: 1}", "PARAMS is not valid JSON", ValueError),
    ('{"a": "line\nbreak"}', "PARAMS is not valid JSON: Invalid control character", ValueError),
    ('{"a": "\0"}', "PARAMS is not valid JSON", ValueError),
    ('{"a": 1} {"a": 2}', 'line 2 begins with " {"a": 2}": nothing may follow', ValueError),
    ('{"a": 1} trailing', "nothing may follow the JSON object", ValueError),
    ('{"a": 1}REASON: r', "nothing may follow the JSON object", ValueError),
    ('{"a": "\\ud800"}', "a NUL or half a surrogate pair", {"a": "\ud800"}),
    ('{"a": "\\udc00\\ud800"}', "a NUL or half a surrogate pair", {"a": "\udc00\ud800"}),
    ('{"\\ud800": 1}', "a NUL or half a surrogate pair", {"\ud800": 1}),
    ('{"a": "\\u0000"}', "a NUL or half a surrogate pair", {"a": "\0"}),
    ('{"a": [{"b\\u0000": 1}]}', "a NUL or half a surrogate pair", {"a": [{"b\0": 1}]}),
    ('{"reason": 5}', '"reason" must be a string', {"reason": 5}),
    ('{"reason": null}', '"reason" must be a string', {"reason": None}),
]


def rejection(body: str) -> str:
    with pytest.raises(TaskRejected) as caught:
        parse(body)
    return str(caught.value)


@pytest.mark.parametrize(("body", "message", "naive"), ENVELOPES)
def test_envelope_that_does_not_fit_is_rejected(body: str, message: str, naive: Any) -> None:
    found = rejection(body)

    assert message in found
    assert "TASK: <name>" in found or "such as docker_ps" in found
    assert task_name(body) in ("unreadable", naive[0], "disk_space", "t")
    # Control: the naive parser makes a request of it, or drops what it does not know.
    assert naive_parse(body) == naive


@pytest.mark.parametrize(("text", "message", "naive"), VALUES)
def test_value_that_is_not_one_plain_json_object_is_rejected(
    text: str, message: str, naive: Any
) -> None:
    assert message in rejection(f"TASK: t\nPARAMS: {text}")
    # Control: the plain reader takes it, or dies of it.
    if isinstance(naive, type):
        with pytest.raises(naive):
            json.loads(text)
    elif naive is not None:
        assert json.loads(text) == naive


def test_nesting_as_deep_as_allowed_is_read() -> None:
    inner = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)

    assert parse(f'TASK: t\nPARAMS: {{"a": {inner}}}').params["a"] == json.loads(inner)


@pytest.mark.parametrize(
    ("body", "size", "found"),
    [(None, None, "no body"), (None, 50 * MIB, "a body of 52,428,800 bytes, over 1 MiB")],
)
def test_missing_and_huge_bodies_are_rejected_unread(
    body: str | None, size: int | None, found: str
) -> None:
    message = message_of()._replace(body=body, body_bytes=size)

    decision = decide(message, agent_of(program_settings.load({})))

    assert isinstance(decision, Refuse)
    assert f"the message has {found}; the format is TASK: <name>" in decision.outcome.error
    assert task_name(body) == "unreadable"


# What a parser could choke on: bodies of 1 MiB, each of one shape all the way through.
SHAPES: dict[str, Callable[[int], str]] = {
    "blanks within the name": lambda size: "TASK: a" + " " * size + "b",
    "tabs before the name": lambda size: "TASK:" + "\t" * size + "A",
    "blank lines before": lambda size: "\r\n" * (size // 2) + "x",
    "blanks after the params": lambda size: "TASK: a\nPARAMS: {}" + " \n" * (size // 2) + "x",
    "brackets": lambda size: "TASK: a\nPARAMS: " + "[" * size,
    "objects": lambda size: "TASK: a\nPARAMS: " + '{"a":' * (size // 5),
    "a list": lambda size: 'TASK: a\nPARAMS: {"a": [' + "1," * (size // 2),
    "backslashes": lambda size: 'TASK: a\nPARAMS: {"a": "' + "\\" * size,
    "digits": lambda size: 'TASK: a\nPARAMS: {"a": ' + "1" * size + "}",
    "fraction": lambda size: 'TASK: a\nPARAMS: {"a": 0.' + "1" * size + "}}",
    "keys": lambda size: (
        "TASK: a\nPARAMS: {" + ",".join(f'"{number}":1' for number in range(size // 10)) + "}}"
    ),
    "colons": lambda size: "TASK:" * (size // 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_body_of_the_allowed_size_keeps_the_parser_busy(shape: str) -> None:
    """Whatever grows with the square of the size is still busy when the suite's patience ends."""
    body = SHAPES[shape](MIB)

    assert rejection(body)
    assert NAME.fullmatch(task_name(body)) or task_name(body) == "unreadable"


def is_said_by(body: str, request: Request) -> bool:
    """Tell whether nothing but the three headers stands in a body, blanks aside."""
    said = "".join(re.split(r"[ \t\r\n]+", body.removeprefix("\ufeff")))
    rest = said.removeprefix(f"TASK:{request.task}")
    return rest != said and (rest == "" or rest.startswith(("PARAMS:{", "REASON:")))


HEADERS = ["TASK:", "PARAMS:", "REASON:", "APPROVED:", "TASK: disk_space", "task:", "{}", "{", "}"]
PIECES = st.sampled_from(
    [*HEADERS, "\n", "\r\n", "\r", " ", "\t", "\ufeff", "\u2028", "\x85", "\0", "\u200b", '"', ":",
     ",", "[", "]", '{"a": 1}', '{"reason": "x"}', "1e5", "-0", "NaN", "null", "\\ud800", "a_b"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_parse_raises_nothing_but_taskrejected(body: str) -> None:
    name = task_name(body)
    try:
        request = parse(body)
    except TaskRejected:
        assert name == "unreadable" or NAME.fullmatch(name)
        return
    assert request.task == name
    assert isinstance(request.params, dict)
    assert "reason" not in request.params
    assert is_said_by(body, request)
    json.dumps(request.params, allow_nan=False).encode()


@given(NAMES, OBJECTS, TEXT, st.sampled_from([None, 2]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_was_written_by_the_grammar_is_read_back(
    name: str, params: dict[str, Any], reason: str, indent: int | None, newline: str
) -> None:
    written = json.dumps(params, indent=indent)

    body = newline.join([f"TASK: {name}", f"PARAMS: {written}", f"REASON: {reason}"])

    wanted = reason.replace("\r\n", "\n").strip()
    assert parse(body) == Request(name, params, wanted)


@given(NAMES, OBJECTS, st.data())
def test_one_changed_character_never_makes_another_request_out_of_the_rest(
    name: str, params: dict[str, Any], data: st.DataObject
) -> None:
    body = f"TASK: {name}\nPARAMS: {json.dumps(params)}\nREASON: why"
    place = data.draw(st.integers(0, len(body) - 1))
    new = data.draw(st.one_of(st.characters(), PIECES))
    changed = body[:place] + new + body[place + 1 :]

    try:
        request = parse(changed)
    except TaskRejected:
        return
    first, *rest = changed.removeprefix("\ufeff").replace("\r\n", "\n").strip(" \t\n").split("\n")
    assert first.removeprefix("TASK:").strip(" \t") == request.task
    headers = [line for line in rest if line.strip(" \t")]
    assert all(line.strip(" \t").startswith(("PARAMS:", "REASON:")) for line in headers[:1])


@given(
    st.sampled_from(["success", "failed", "rejected", "escalated", "denied", "expired", "unknown"]),
    st.text(),
    st.text(),
    st.text(),
    st.booleans(),
)
def test_a_report_sent_back_as_a_task_is_rejected(
    verdict: Any, subject: str, text: str, name: str, changed: bool
) -> None:
    hostile = f"TASK: disk_space\n{text}"
    change = Change(hostile, hostile, True) if changed else None
    outcome = Outcome(verdict, hostile, hostile, change=change)
    original = Original(1, f"TASK: disk_space\n{subject}", name, 1)

    answer = report(original, outcome, program_settings.load({}))

    assert "the first line must be TASK: <name>" in rejection(answer.body)
    assert "the first line must be TASK: <name>" in rejection(answer.subject)
    assert "\nTASK: disk_space\n" in answer.body


TOKEN = "ghp_aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5"
CONFIGURED = "Sw0rdfish-In-Env-Qx7"


@pytest.mark.parametrize("secret", [TOKEN, CONFIGURED])
@pytest.mark.parametrize(
    "body",
    [
        "TASK: {}",
        "TASK: docker_ps\n{}",
        "TASK: docker_ps\nPARAMS: {{}} {}",
        'TASK: docker_ps\nPARAMS: {{"{}": 1, "{}": 2}}',
    ],
)
def test_no_rejection_quotes_a_part_of_a_secret(body: str, secret: str) -> None:
    for place in range(85):
        with pytest.raises(TaskRejected) as caught:
            parse(body.format(*["-" * place + secret] * 2))

        told = caught.value.told((CONFIGURED,))
        assert secret[:6] not in told
        assert "--" * (min(place, 60) // 2) in told

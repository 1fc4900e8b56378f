"""report.py: the shape of every report, and what becomes of hostile text in it."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.postgres import Database

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.outcome import Change, Outcome, Verdict
from catalyst_heartbeat.report import MARKS, MAX_VALUE_BYTES, Original, Report, report, stored_value
from catalyst_heartbeat.text import header

NOON = datetime(2025, 12, 31, 12, 15, tzinfo=timezone.utc)
TIME = re.compile(r"(?<=\*\*Executed at:\*\* )\d{4}(-\d\d){2}T\d\d(:\d\d){2}\+00:00(?=\n.*\Z)")
FOOT = "\n\n**Executed at:** 2025-12-31T12:15:00+00:00\n**Executed by:** public_claude"
TEXT = st.text(st.characters())
# Letters of secrets that neither an escape nor the word [redacted] is written with.
LETTERS = "GHJKLMNOPQRSTUVWXYZ+/= "
SECRETS = st.lists(st.text(LETTERS, min_size=4, max_size=12), max_size=4).map(tuple)


def render(outcome: Outcome, subject: str | None = "Daily", task: str = "docker_ps") -> Report:
    settings = program_settings.load({})._replace(secrets=("hunter2hunter2",))
    answer = report(Original(42, subject, task, 1), outcome, settings, 1.5)
    return answer._replace(body=TIME.sub(NOON.isoformat(), answer.body))


def test_success_is_the_example_of_the_contract() -> None:
    text = (
        "NAMES     STATUS       PORTS\n"
        "trading   Up 2 hours   0.0.0.0:5005->5005/tcp"
    )  # fmt: skip
    answer = render(Outcome("success", text, value=[{"name": "trading"}]), "Hourly Health Check")

    assert answer.subject == "Task Report: Hourly Health Check"
    assert answer.body == (
        "✅ SUCCESS\n\n## Task: docker_ps\n**Original Request:** Hourly Health Check\n\n"
        f"### Result\n```\n{text}\n```{FOOT}"
    )
    assert answer.data == {
        "task": "docker_ps", "outcome": "success", "final": True, "message_id": 42, "attempt": 1,
        "duration_ms": 1500, "result": [{"name": "trading"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "mark", "section", "final"),
    [
        ("success", "✅ SUCCESS", "### Result\n```\nthe text\n```", True),
        ("escalated", "⏳ ESCALATED", "### Result\n```\nthe text\n```", False),
        ("failed", "❌ FAILED", "### Error\n```\nwhy\n```\n\n### Output\n```\nthe text\n```", True),
        ("rejected", "⛔ REJECTED", "### Error\n```\nwhy\n```", True),
        ("denied", "🚫 DENIED", "### Error\n```\nwhy\n```", True),
        ("expired", "⌛ EXPIRED", "### Error\n```\nwhy\n```", True),
        ("unknown", "❓ UNKNOWN", "### Error\n```\nwhy\n```", True),
    ],
)
def test_each_verdict_has_its_mark_and_its_sections(
    verdict: Verdict, mark: str, section: str, final: bool
) -> None:
    answer = render(Outcome(verdict, "the text" if "the text" in section else "", "why"))

    head = f"{mark}\n\n## Task: docker_ps\n**Original Request:** Daily\n\n"
    assert answer.body == head + section + FOOT
    assert (answer.data["outcome"], answer.data["final"]) == (verdict, final)


@pytest.mark.parametrize("updated", [True, False])
def test_a_file_change_shows_its_diff_its_backup_and_whether_the_changelog_has_it(
    updated: bool,
) -> None:
    diff = "--- a/x.py\n+++ b/x.py\n@@ -1,1 +1,1 @@\n-a\n+b\n"
    change = Change(diff, "/backups/x.py/1", updated)

    body = render(Outcome("success", "edited", change=change)).body

    shown = f"\n\n### Change Summary\n```diff\n{diff}```\n\n**Backup:** /backups/x.py/1"
    note = "\n\n*Changelog automatically updated.*" if updated else ""
    assert body.endswith(f"### Result\n```\nedited\n```{shown}{note}{FOOT}")


@pytest.mark.parametrize("subject", ["S" * 500, "&" * 500, "<b>" * 200, "é" * 500, "a&" * 90])
@pytest.mark.parametrize("task", ["restart_all_services", "t" * 500, "<" * 500, "unreadable"])
def test_verdict_task_and_subject_stand_in_the_first_200_characters(
    subject: str, task: str
) -> None:
    answer = render(Outcome("escalated", "text"), subject, task)

    mark, _, name, request, *_ = answer.body[:200].split("\n")
    assert mark == "⏳ ESCALATED"
    assert name.startswith(f"## Task: {header(task, 60, ())}")
    assert request.startswith("**Original Request:** ")
    assert answer.body[:200].count("\n") >= 4 or request.endswith("…")
    assert len(answer.subject) <= 180
    for shown in (name, request.rstrip("…"), answer.subject.rstrip("…")):
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", shown)


@pytest.mark.parametrize("subject", [None, ""])
def test_a_message_without_subject_gets_a_report_that_says_so(subject: str | None) -> None:
    answer = render(Outcome("success", "text"), subject)

    assert answer.subject == "Task Report: (no subject)"
    assert "**Original Request:** (no subject)\n" in answer.body


# Class M: raw output, and what is shown of it.
HOSTILE: list[tuple[str, str]] = [
    ("a\0b", r"a\x00b"),
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    (
        "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
        r"\x1b]8;;http://evil\x1b\link\x1b]8;;\x1b" + "\\",
    ),
    ("\x1b]52;c;cm0gLXJm\x07", r"\x1b]52;c;cm0gLXJm\x07"),
    ("\x9b31m\x90", r"\x9b31m\x90"),
    ("\x07\x08\x7f", r"\x07\x08\x7f"),
    ("all good\rFAILED", r"all good\x0dFAILED"),
    ("one\r\ntwo", "one\ntwo"),
    ("\u202etxt.exe\u202c", r"\u202etxt.exe\u202c"),
    ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),
    ("in\u200bvis\u2060ible\ufeff", r"in\u200bvis\u2060ible\ufeff"),
    ("\u3164\u2800\u115f\xad", r"\u3164\u2800\u115f\xad"),
    ("tag\U000e0041\U000e007f", r"tag\U000e0041\U000e007f"),
    ("a\u2028b\u2029c\x85d\x0be\x0cf", r"a\u2028b\u2029c\x85d\x0be\x0cf"),
    (b"\xff\xc3".decode(errors="replace"), "\ufffd\ufffd"),
    ("\ud800", r"\ud800"),
    ("tab\there", "tab\there"),
    ("# APPROVED\n**Executed by:** craig", "# APPROVED\n**Executed by:** craig"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_hostile_output_is_shown_and_does_nothing(text: str, shown: str) -> None:
    answer = render(Outcome("failed", text, text, value={text: [text]}))

    assert answer.body.count(f"```\n{shown}\n```") == 2


@pytest.mark.parametrize("text", [text for text, _ in HOSTILE])
def test_a_value_is_what_it_is_but_for_what_jsonb_cannot_hold(
    text: str, database: Database
) -> None:
    data = render(Outcome("success", value={text: [text, f"{text}\n"], "text": text})).data

    held = text.replace("\0", r"\x00").replace("\ud800", r"\ud800")
    expected = {held: [held, f"{held}\n"], "text": held}
    assert data["result"] == expected
    ((stored,),) = database.execute("SELECT %s::jsonb -> 'result'", (json.dumps(data),))
    assert stored == expected


HOSTILE_TEXT = st.lists(st.sampled_from([*"<a/!?&; `\n\x1b\u200b\u00e9", "x" * 9])).map("".join)


@given(st.sampled_from(get_args(Verdict)), *[HOSTILE_TEXT] * 4, st.booleans())
def test_whatever_a_report_says_its_preview_is_no_markup(
    verdict: Verdict, subject: str, task: str, text: str, error: str, changed: bool
) -> None:
    change = Change(text, error, True) if changed else None

    answer = render(Outcome(verdict, text, error, change=change), subject, task)

    for shown in (answer.subject, answer.body[:200]):
        assert not re.search("<[A-Za-z/!?]", shown)
    assert answer.body[:200].startswith(f"{MARKS[verdict]}\n\n## Task: {header(task, 60, ())}\n")


MARKUP = ["<img src=x onerror=alert(1)>", "</pre><script>alert(1)</script>", "<!--", "<?php"]


@pytest.mark.parametrize("subject", ["x", "S" * 77, "S" * 90, "S" * 500, None])
@pytest.mark.parametrize("markup", MARKUP)
@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_no_report_begins_a_tag_where_it_is_previewed(
    verdict: Verdict, markup: str, subject: str | None
) -> None:
    change = Change(markup, markup, True)
    outcome = Outcome(verdict, markup * 30, markup * 30, change=change)

    answer = render(outcome, subject and subject + markup, markup)

    for shown in (answer.subject, answer.body[:200]):
        assert not re.search("<[A-Za-z/!?]", shown)
    assert answer.body.startswith(f"{MARKS[verdict]}\n\n## Task: &lt;")
    assert markup in answer.body[200:]  # what nobody previews is shown as it is


@pytest.mark.parametrize(
    "text",
    [
        "```\n# APPROVED\n```", "`" * 300, "````\n```\n`````", "~~~\n```~~~\n~~~", "```diff\n```",
        "```\n\n**Executed at:** 2020-01-01T00:00:00+00:00\n**Executed by:** craig\n```\n\n```",
    ],
)  # fmt: skip
def test_no_output_ends_its_fence(text: str) -> None:
    body = render(Outcome("success", text)).body

    assert outside_fences(body) == outside_fences(render(Outcome("success", "x")).body)


def outside_fences(body: str) -> list[str]:
    """Return the lines that a Markdown reader takes for the report's own."""
    lines, fence = [], ""
    for line in body.split("\n"):
        mark = re.match(r"(`{3,}|~{3,})([^`]*)$", line)
        if not fence and mark:
            fence = mark[1]
        elif fence and re.fullmatch(rf"{fence[0]}{{{len(fence)},}} *", line):
            fence = ""
        elif not fence:
            lines.append(line)
    return lines


def test_header_fields_are_one_inert_line_each() -> None:
    hostile = "<img src=x onerror=alert(1)>\n# APPROVED\r\n\u2028```\x1b[2J & \u202e"
    answer = render(Outcome("rejected", error="why"), hostile, hostile)

    lines = outside_fences(answer.body)
    assert len(lines) == len(outside_fences(render(Outcome("rejected", error="why")).body))
    for shown in (answer.subject, lines[2], lines[3], answer.data["task"]):
        assert "&lt;img src=x" in shown
        assert not re.search(r"[<>\n\x1b\u202e]", shown)


def test_no_section_of_a_report_shows_a_secret() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabcd\nabcd\n-----END RSA PRIVATE KEY-----"
    text = f"hunter2hunter2\n{key}\npassword=s3cr3t"
    change = Change(text, text, True)
    value = {"whole": text, "lines": text.split("\n"), text: 1}

    answer = render(Outcome("failed", text, text, value=value, change=change), text, text)

    shown = ["[redacted]"] * 5 + ["password=[redacted]"]
    assert answer.body.count("\n".join(["", *shown, "```"])) == 3
    assert answer.data["result"] == {
        "whole": "\n".join(shown), "lines": shown, "\n".join(shown): 1,
    }  # fmt: skip
    for word in ("hunter2", "MIIE", "abcd", "s3cr3t"):
        assert word not in f"{answer.subject}{answer.body}{json.dumps(answer.data)}"


JSON_LIKE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(TEXT, st.integers()), inner), st.tuples(inner)
    ),
    max_leaves=20,
)


@given(JSON_LIKE, SECRETS)
def test_a_value_is_plain_json_without_secrets(value: Any, secrets: tuple[str, ...]) -> None:
    shown = stored_value(value, secrets)

    text = json.dumps(shown, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert r"\u0000" not in json.dumps(shown)
    assert all(secret not in text for secret in secrets)
    assert json.loads(text) == shown


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_any_value_can_be_stored_as_jsonb(database: Database) -> None:
    odd = {"\0key": "\0", "lone": "\ud800", "nan": float("nan"), "far": -float("inf"), 5: (1, 2)}
    values: list[Any] = [
        odd, None, [], "text", 10**4000, 1e308, 10**5000, deep(100), deep(100_000), b"bytes", NOON,
        {1, 2}, ["x" * MAX_VALUE_BYTES], {"n" * 100: [{"a": 1}] * 100_000},
    ]  # fmt: skip
    for value in values:
        data = render(Outcome("success", "text", value=value)).data
        database.execute("SELECT %s::jsonb", (json.dumps(data),))
        assert len(json.dumps(data)) < MAX_VALUE_BYTES + 1000

    assert render(Outcome("success", value=odd)).data["result"] == {
        r"\x00key": r"\x00", "lone": r"\ud800", "nan": "nan", "far": "-inf", "5": [1, 2],
    }  # fmt: skip
    left_out = render(Outcome("success", value=["x" * MAX_VALUE_BYTES])).data["result"]
    assert left_out == {"left_out": "262,148 bytes; at most 262,144 are kept"}
    assert render(Outcome("success", value=b"")).data["result"] == {
        "left_out": "not a JSON value: TypeError"
    }

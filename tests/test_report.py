"""reports.py: the shape of every report, and what becomes of hostile text in it."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.postgres import Database

from catalyst_heartbeat.outcome import Change, Outcome, Verdict
from catalyst_heartbeat.redaction import INVISIBLE, clean
from catalyst_heartbeat.report import (
    HALF_BYTES,
    MAX_BYTES,
    MAX_LINES,
    MAX_VALUE_BYTES,
    Original,
    Report,
    block,
    cap,
    one_line,
    plain_line,
    report,
    shown_value,
)

NOON = datetime(2025, 12, 31, 12, 15, tzinfo=timezone.utc)
FOOT = "\n\n**Executed at:** 2025-12-31T12:15:00+00:00\n**Executed by:** public_claude"
TEXT = st.text(st.characters())
# Letters of secrets that neither an escape nor the word [redacted] is written with.
LETTERS = "GHJKLMNOPQRSTUVWXYZ+/= "
SECRETS = st.lists(st.text(LETTERS, min_size=4, max_size=12), max_size=4).map(tuple)


def render(outcome: Outcome, subject: str | None = "Daily", task: str = "docker_ps") -> Report:
    original = Original(42, subject, task, 1)
    return report(
        original, outcome, agent="public_claude", secrets=("hunter2hunter2",), seconds=1.5, now=NOON
    )


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
    assert name.startswith(f"## Task: {one_line(task, 60, ())}")
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
    ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    ("# APPROVED\n**Executed by:** craig", "# APPROVED\n**Executed by:** craig"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_hostile_output_is_shown_and_does_nothing(text: str, shown: str) -> None:
    answer = render(Outcome("failed", text, text, value={text: [text]}))

    assert answer.body.count(f"```\n{shown}\n```") == 2
    assert answer.data["result"] == {shown: [shown]}


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


KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END RSA PRIVATE KEY-----"
TOKENS: list[tuple[str, str]] = [
    ("password is hunter2hunter2.", "password is [redacted]."),
    ("postgresql://doadmin:s3cr3t@db:25060/x", "postgresql://[redacted]@db:25060/x"),
    ("redis://:s3cr3t@cache", "redis://[redacted]@cache"),
    ("https://u:p@ss:w0rd@host/x@y", "https://[redacted]@host/x@y"),
    ("https://u:pa/ss#w@host", "https://[redacted]@host"),
    ("https://ghp_0123456789@github.com/x", "https://[redacted]@github.com/x"),
    ("a://b:c@d,e://f:g@h", "a://[redacted]@d,e://[redacted]@h"),
    ("http://localhost:5000/health", "http://localhost:5000/health"),
    ("Authorization: Bearer eyJhbGciOiJI.x-y_z", "Authorization: Bearer [redacted]"),
    ("authorization: basic dXNlcjpwYXNz", "authorization: basic [redacted]"),
    ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
    ('"aws_secret_access_key": "' + "k" * 40 + '"', '"aws_secret_access_key": "[redacted]"'),
    ('{"Authorization": "Basic dXNlcjpwYXNz"}', '{"Authorization": "Basic [redacted]"}'),
    ('"SecretAccessKey": "' + "k" * 40 + '"', '"SecretAccessKey": "[redacted]"'),
    ("AWS_SESSION_TOKEN=" + "t" * 99, "AWS_SESSION_TOKEN=[redacted]"),
    ("postgresql://h/x?password=s3cr3t end", "postgresql://h/x?password=[redacted] end"),
    ("https:\\/\\/u:s3cr3t@host", "https:\\/\\/[redacted]@host"),
    ("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nx\n---- END SSH2 ENCRYPTED PRIVATE KEY ----",
     "[redacted]"),
    (f"before\n{KEY}\nafter", "before\n[redacted]\nafter"),
    (f"{KEY}\n{KEY}", "[redacted]\n[redacted]"),
    ("x\n-----BEGIN PRIVATE KEY-----\nMIIE\nno end", "x\n[redacted]"),
    ("MIIE\nno begin\n-----END PRIVATE KEY-----\nafter", "[redacted]\nafter"),
    ("a\n-----END EC PRIVATE KEY-----\nb\n-----END PRIVATE KEY-----\nc", "[redacted]\nc"),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----", "[redacted]"),
    ("+-----BEGIN PRIVATE KEY-----\n+MII\n+-----END PRIVATE KEY-----\n+x", "+[redacted]\n+x"),
    ("-----BEGIN PUBLIC KEY-----\nx", "-----BEGIN PUBLIC KEY-----\nx"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), TOKENS)
def test_secret_is_redacted_wherever_a_report_shows_text(text: str, shown: str) -> None:
    change = Change(text, "/backup", True)
    value = {"whole": text, "lines": text.split("\n")}

    answer = render(Outcome("failed", text, text, value=value, change=change), subject=text)

    assert answer.body.count(f"\n{shown}\n```") == 3
    assert answer.data["result"] == {"whole": shown, "lines": shown.split("\n")}
    assert answer.subject == f"Task Report: {' '.join(shown.split())}"
    assert clean(shown, ("hunter2hunter2",)) == shown


@pytest.mark.parametrize("place", [HALF_BYTES, 40_000 - HALF_BYTES])
@pytest.mark.parametrize("offset", range(-14, 1, 2))
def test_secret_across_the_cut_is_gone_at_both_ends(place: int, offset: int) -> None:
    text = ("x" * (place + offset) + "hunter2.hunter2.").ljust(40_000, "x")

    shown = block(text, ("hunter2.hunter2.",))

    assert "hunter" not in shown
    assert "unter2" not in shown


def test_every_invisible_character_of_unicode_is_shown() -> None:
    """Control and format characters, separators, surrogates, and what renders as nothing."""
    blank = {0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0x34F}
    blank |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000)}
    blank |= {*range(0x2060, 0x2070), *range(0xFFF0, 0xFFFC)}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        hidden = category in ("Cc", "Cf", "Cs", "Zl", "Zp") or code in blank
        if category != "Cn" or code in blank:
            shown = INVISIBLE.match(chr(code)) is None
            assert shown != hidden or chr(code) in "\t\n", hex(code)


@given(TEXT, SECRETS)
def test_cleaned_text_has_nothing_hidden_and_no_secret_and_is_clean(
    text: str, secrets: tuple[str, ...]
) -> None:
    shown = clean(text, secrets)

    assert not INVISIBLE.search(shown)
    assert all(secret not in shown for secret in secrets)
    assert clean(shown, secrets) == shown
    shown.encode()


WORDS = st.sampled_from(
    ["ZZZZ", "YXYX", " ", "\n", "\t", "\r\n", "\r", "://", ":", "@", "user", "bearer ", "Bearer\n",
     "abcdefgh", "AKIA", "A" * 16, "-----BEGIN ", "RSA ", "PRIVATE KEY", "-----", "-----END ",
     "authorization: basic ", "aws_secret_access_key=", "k" * 40, "[redacted]", "/", "\x1b", "`"]
)  # fmt: skip


@example("-----BEGIN \nPRIVATE KEY-----")
@given(st.lists(WORDS, max_size=25).map("".join))
def test_what_looks_like_secrets_is_redacted_once_and_for_all(text: str) -> None:
    secrets = ("ZZZZ", "YXYX ZZZZ")

    for make in (clean, plain_line):
        shown = make(text, secrets)
        assert make(shown, secrets) == shown
        assert "ZZZZ" not in shown
        assert not re.search(r"-----(BEGIN|END) (RSA ){0,5}PRIVATE KEY-----", shown)


@given(TEXT, SECRETS, st.integers(2, 300))
def test_a_header_line_is_short_inert_and_one_line(
    text: str, secrets: tuple[str, ...], limit: int
) -> None:
    shown = one_line(text, limit, secrets)

    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", shown)
    assert all(secret not in shown for secret in secrets)


BLOCKS = st.one_of(
    TEXT,
    st.lists(st.sampled_from(["`", "``", "```", "\n", "~~~", "a", " ", "\r", "é"])).map("".join),
    st.builds(lambda unit, count: unit * count, st.text(min_size=1), st.integers(1, 20_000)),
)


@given(BLOCKS)
def test_a_block_stays_under_the_cap_and_within_its_fence(text: str) -> None:
    shown = block(text, ())

    opening, *lines, closing = shown.split("\n")
    assert opening == closing
    assert set(opening) == {"`"}
    assert all(opening not in line for line in lines)
    assert len(lines) <= MAX_LINES
    assert len("\n".join(lines).encode()) <= MAX_BYTES
    assert cap("\n".join(lines)) == "\n".join(lines)


@pytest.mark.parametrize("unit", ["x" * 99 + "\n", "x", "é", "\n", "€\n", "x" * 1000 + "\n"])
def test_a_cut_text_keeps_head_and_tail_and_says_how_much_is_missing(unit: str) -> None:
    text = f"first {unit * (50_000 // len(unit))} last"

    head, middle, tail = re.split(r"\n(\.\.\. .* left out \.\.\.)\n", cap(text))

    assert text.startswith(head)
    assert text.endswith(tail)
    assert tail.endswith(" last")
    missing, size, lines = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", middle))
    assert size == len(text.encode())
    assert missing == size - len(head.encode()) - len(tail.encode())
    assert lines == text.count("\n") + 1


JSON_LIKE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(TEXT, st.integers()), inner), st.tuples(inner)
    ),
    max_leaves=20,
)


@given(JSON_LIKE, SECRETS)
def test_a_value_is_plain_json_without_secrets(value: Any, secrets: tuple[str, ...]) -> None:
    shown = shown_value(value, secrets)

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


SLOW = [
    "://a:", "://", "a:b@", "-----BEGIN ", "-----END ", "PRIVATE KEY", "bearer ", "bearer\t", "`",
    "AKIA", "aws_secret_access_key=", "A", " ", "\n", "\x1b", "&", "-----END PRIVATE KEY", "@",
    "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "authorization: basic ",
    ":\\/\\/a:", ":\\/\\/", "?token=", "&password=x", "authorization", "authorization:", "=",
    "session_token=", "secret_access_key", "---- BEGIN ", "- BEGIN PRIVATE KEY",
]  # fmt: skip


@pytest.mark.parametrize("unit", SLOW)
def test_no_output_keeps_the_report_waiting(unit: str) -> None:
    """Whatever grows with the square of the size is still busy when the suite's patience ends."""
    for start in ("", "-----BEGIN ", "-----END ", "://", "://a:", ":\\/\\/a:", "bearer"):
        text = start + unit * (512 * 1024 // len(unit))

        assert len(block(text, ("secret",)).encode()) < 2 * MAX_BYTES

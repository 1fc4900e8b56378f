"""old_text that almost occurs is answered with the line and the characters that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.file_setup import Workspace, make_workspace

from catalyst_heartbeat.files.occurrence import check_occurs_once
from catalyst_heartbeat.outcome import TaskFailed

NOTHING = "where old_text has nothing"
NEAR = {
    "no-break space": ("a\np:\u00a01\n", "p: 1", 2, "U+00A0 no-break space where old_text has a b"),
    "narrow space": ("a\u202fb", "a b", 1, "U+202F narrow no-break space where old_text has a bl"),
    "composed": ("\u00e9\n", "e\u0301", 1, 'acute where old_text has "e" + U+0301 combining acute'),
    "decomposed": ("x\ncafe\u0301\n", "caf\u00e9", 2, "U+0301 combining acute accent where"),
    "tab": ("if x:\n\ty = 1\n", "if x:\n    y = 1", 2, "a tab where old_text has 4 blanks"),
    "blanks": ("a =  1\n", "a = 1", 1, f"a blank {NOTHING}"),
    "trailing blanks": ("a = 1  \nb = 2\n", "a = 1\nb", 1, f"2 blanks {NOTHING}"),
    "wanted trailing blanks": ("a\nb\n", "a \nb", 1, "nothing where old_text has a blank"),
    "curly quotes": ("\u201chello\u201d\n", '"hello"', 1, 'U+201C left double quotation mark'),
    "dash": ("1\u20132\n", "1-2", 1, 'U+2013 en dash where old_text has "-"'),
    "zero width": ("to\u200bken = 1\n", "token = 1", 1, f"U+200B zero width space {NOTHING}"),
    "variation": ("\u26a0\ufe0f!\n", "\u26a0!", 1, f"U+FE0F variation selector-16 {NOTHING}"),
    "mark": ("\ufeffa = 1\nb\n", "\ufeffa  = 1", 1, "nothing where old_text has a blank"),
    "mark wanted": ("a = 1\n", "\ufeffa = 1", 1, "nothing where old_text has U+FEFF zero width"),
    "trailing mark wanted": ("a = 1\n", "1\u200b", 1, "nothing where old_text has U+200B"),
    "CRLF here and there": ("a\r\nb\nc\n", "a\nb", 1, f"a carriage return {NOTHING}"),
    "CRLF wanted": ("x\na\nb\n", "a\r\nb", 2, "nothing where old_text has a carriage return"),
    "case": ("x\n\nTimeout = 30\n", "timeout = 30", 3, '"T" where old_text has "t"'),
    "full width": ("a\uff1d1\n", "a=1", 1, 'U+FF1D fullwidth equals sign where old_text has "="'),
    "line separator": ("a\u2028b", "a\nb", 1, "U+2028 line separator where old_text has a line"),
    "the second line of two": ("f(\n  a,\u00a0b)\n", "f(\n  a, b)", 2, "U+00A0"),
    "behind another": ("\u200bx = 1\n", "x =  1", 1, "in: nothing where old_text has a blank"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "old", "line", "said"), NEAR.values(), ids=NEAR.keys())
def test_a_near_miss_is_named(text: str, old: str, line: int, said: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        check_occurs_once(text, old, ())

    message = str(caught.value)
    assert message.startswith(
        f"old_text does not occur in the file; line {line} differs only in: "
    ), message
    assert said in message


@pytest.mark.parametrize(
    ("text", "old", "said"),
    [
        ("a = 1", "a = 1\n", "line 1 differs only in the blanks or line ends around it"),
        ("a = 1\n", "b = 1", "read_file shows what it holds"),
        ("x\n<h1>a</h1>\n", "&lt;h1>a&lt;/h1>", 'without the escapes of HTML, such as "&lt;"'),
        ("x\na = 1\nb = 2\n", "    2\ta = 1\n    3\tb = 2", "without read_file's line numbers"),
        ("a = 1\nb = 2\n", "a = 1\\nb = 2", 'without the "\\n" where the file has line ends'),
        ('password = "Zq8RtY2m"\n', "password = \u201cz", "read_file shows what it holds"),
        ('password = "Zq8RtY2m"\n', 'password = "zq8RtY2m"', "read_file shows what it holds"),
        ("", "b", "read_file shows what it holds"),
        ("a\n", "\u200b", "read_file shows what it holds"),
        ("a\n", " \n ", "read_file shows what it holds"),
        ("url = 'x'\n", "url = '[redacted]'", "read_file put [redacted] in the place of a secret"),
    ],
)
def test_what_is_no_near_miss_is_said_too(text: str, old: str, said: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        check_occurs_once(text, old, ())

    assert said in str(caught.value)


CHARACTERS = 'aB \t\r\n\u00a0\u200be\u0301é\u201c"-–\ufeffß'


@settings(max_examples=500, deadline=None)
@given(text=st.text(CHARACTERS, max_size=30), old=st.text(CHARACTERS, min_size=1, max_size=6))
def test_no_two_texts_break_the_answer(text: str, old: str) -> None:
    answer = ""
    try:
        check_occurs_once(text, old, ())
    except TaskFailed as error:
        answer = str(error)

    assert (answer == "") == (text.count(old) == 1 and text.find(old) == text.rfind(old))
    assert not answer.endswith(": ")


def test_a_megabyte_of_near_misses_is_answered(tmp_path: Path) -> None:
    workspace: Workspace = make_workspace(tmp_path)
    path = workspace.write("a.md", "a\u00a0" * 349_000 + "b\u00a0c\n")

    with pytest.raises(TaskFailed, match="line 1 differs only in: U\\+00A0 no-break space where"):
        workspace.run("edit_file", path, old_text="a " * 200_000 + "b c", new_text="")

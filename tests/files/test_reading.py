"""What read_file gives to a program is what the file holds, so that it can be written back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.file_setup import Workspace, fast_folder, make_workspace

from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.report import MAX_VALUE_BYTES, stored_value

REFUSED = r"read_file put \[redacted\] in the place of a secret; edit_file can change the rest"
SECRET = "hunter2-hunter2"
# Line ends of every kind, a byte order mark, what is invisible, what looks like something else.
PIECES = st.sampled_from([
    "a", "price: 1", " ", "\t", "\r\n", "\n", "\r", "\ufeff", "⚠\ufe0f", "\u00a0", "\u2028", "\x85",
    "e\u0301", "é", "\u200b", "\x1b[0m", "\x0b", "😀", "`", "\\u00a0", "\\", '"', "<b>", "\x7f",
    "[redacted]", f"postgresql://bot:{SECRET}@db/x", "\ufffe", "\U000e0001", "\u202e", "\xad",
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, number=st.integers(0, 30))
def test_what_was_read_and_written_back_changed_in_one_line_only(text: str, number: int) -> None:
    with fast_folder() as folder:
        workspace = make_workspace(folder)
        path = workspace.write("a.md", text)
        lines = workspace.run("read_file", path).value["text"].split("\n")
        expected = text.split("\n")
        for changed in (lines, expected):
            changed[number % len(changed)] += "!"

        refused = False
        try:
            workspace.run("write_file", path, content="\n".join(lines))
        except TaskFailed:
            refused = True

        assert path.read_bytes() == (text if refused else "\n".join(expected)).encode()
        assert not refused or SECRET in text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, number=st.integers(0, 30))
def test_what_was_read_is_found_by_an_edit_that_leaves_every_other_byte(
    text: str, number: int
) -> None:
    with fast_folder() as folder:
        workspace = make_workspace(folder)
        path = workspace.write("a.md", f"head\n{text}\ntail")
        lines = workspace.run("read_file", path).value["text"].split("\n")
        old = lines[number % len(lines)]
        before = path.read_bytes()

        try:
            workspace.run("edit_file", path, old_text=old, new_text=f"{old}!") if old else None
        except TaskFailed:
            assert SECRET in text or before.decode().count(old) != 1
        else:
            assert not old or path.read_bytes() == before.replace(old.encode(), f"{old}!".encode())


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\nb", "\ufeffa\n\n\n", "\n", "a\u2028b\nc\r\n"])
def test_the_parts_of_a_file_are_the_file(workspace: Workspace, text: str) -> None:
    path = workspace.write("a.md", text)
    total = workspace.run("read_file", path).value["total_lines"]

    parts = [
        workspace.run("read_file", path, first_line=number, line_count=1).value["text"]
        for number in range(1, total + 1)
    ]

    assert "".join(parts) == text


@pytest.mark.parametrize("char", ["x", "漢", "😀", "\x1b", "\n", '"'])
def test_the_most_that_is_read_fits_into_a_report(workspace: Workspace, char: str) -> None:
    path = workspace.write("a.md", char * (1024 * 1024 // len(char.encode())))

    value = workspace.run("read_file", path).value

    assert value["text"].strip(char) == ""
    assert len(value["text"]) > 400
    assert "left_out" not in stored_value(value, ())
    assert len(value["text"].encode()) < MAX_VALUE_BYTES


@pytest.mark.parametrize(
    ("there", "params", "refused"),
    [
        (
            "url = 'postgresql://bot:pw-pw-pw@db/x'\n",
            {"content": "url = '[redacted]@db/x'\n"},
            True,
        ),
        ("old [redacted]\n", {"content": "new [redacted]\n"}, False),
        (
            "# [redacted]\nurl = 'postgresql://bot:pw-pw-pw@db/x'\n",
            {"content": "#\nurl = 'postgresql://[redacted]@db/x'\n"},
            True,
        ),
        ("old [redacted]\n", {"content": "[redacted] [redacted]\n"}, True),
        ("old\n", {"old_text": "old", "new_text": "[redacted]"}, True),
        ("[red]\n", {"old_text": "]", "new_text": "acted]"}, True),
        ("[redacted]\n", {"old_text": "redacted", "new_text": "shown"}, False),
        (None, {"content": "[redacted]"}, True),
    ],
)
def test_what_stood_for_a_secret_is_never_written(
    workspace: Workspace, there: str | None, params: dict[str, str], refused: bool
) -> None:
    path = workspace.root / "a.md"
    if there is not None:
        path.write_text(there)
    task = "write_file" if "content" in params else "edit_file"

    if not refused:
        workspace.run(task, path, **params)
        return
    with pytest.raises(TaskFailed, match=REFUSED):
        workspace.run(task, path, **params)

    assert (path.read_text() if path.exists() else None) == there
    assert not workspace.entries(path)


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"old_text": "password =", "new_text": "pw_value ="}, True),
        ({"old_text": "password = ", "new_text": "password =\n    "}, True),
        ({"content": "value = 'Zq8RtY2m'\n"}, True),
        ({"old_text": "password =", "new_text": "db_password ="}, False),
        ({"old_text": "x = 1", "new_text": "x = 2"}, False),
        ({"content": "x = 2\n"}, False),
    ],
)
def test_a_change_by_which_a_secret_would_be_shown_is_refused(
    workspace: Workspace, params: dict[str, str], refused: bool
) -> None:
    path = workspace.write("a.py", "x = 1\npassword = 'Zq8RtY2m'\n")
    task = "write_file" if "content" in params else "edit_file"

    if refused:
        with pytest.raises(TaskFailed, match="a secret that read_file hides would then be shown"):
            workspace.run(task, path, **params)
    else:
        workspace.run(task, path, **params)

    assert "Zq8RtY2m" not in workspace.run("read_file", path).value["text"]


def test_a_backup_with_that_word_is_restored(workspace: Workspace) -> None:
    path = workspace.write("a.md", "[redacted] [redacted]\n")
    workspace.run("write_file", path, content="shown\n")

    workspace.run("rollback_file", path)

    assert path.read_text() == "[redacted] [redacted]\n"

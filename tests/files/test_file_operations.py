from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.file_setup import Workspace, make_workspace
from support.postgres import require

from catalyst_heartbeat.files.diff import MOST_LINES_COMPARED, unified_diff
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.tasks import file_operations


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def entry_of(workspace: Workspace, path: Path, name: str) -> dict[str, object]:
    folder = workspace.backups / str(path).lstrip("/")
    entry: dict[str, object] = json.loads((folder / f"{name}.json").read_text())
    return entry


# What is written


@pytest.mark.parametrize(
    ("name", "mode"), [("new.py", 0o644), ("new.sh", 0o755), ("new.md", 0o644)]
)
def test_a_new_file_has_the_mode_of_its_kind_whatever_the_umask(
    workspace: Workspace, name: str, mode: int
) -> None:
    former = os.umask(0o077)
    try:
        workspace.run("write_file", workspace.root / name, content="")
    finally:
        os.umask(former)

    assert stat.S_IMODE((workspace.root / name).stat().st_mode) == mode


def test_a_replaced_file_keeps_its_extended_attributes(workspace: Workspace) -> None:
    path = workspace.write("a.md", "one\n")
    try:
        os.setxattr(path, "user.origin", b"by hand")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")

    for task, params in (("write_file", {"content": "two\n"}), ("rollback_file", {})):
        workspace.run(task, path, **params)

        assert os.getxattr(path, "user.origin") == b"by hand"


def test_a_replaced_file_keeps_its_mode_and_owner(workspace: Workspace) -> None:
    path = workspace.write("a.sh", "echo a\n")
    path.chmod(0o741)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()

    workspace.run("edit_file", path, old_text="a\n", new_text="b\n")
    after = path.stat()

    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino


@pytest.mark.parametrize(
    "content",
    ["", "no newline", "\ufeffmark\n", "a\r\nb\n\rc\r", "tab\tand é ü 漢\n", "\x0b\x0c\u2028\n"],
)
def test_content_is_written_as_it_is(workspace: Workspace, content: str) -> None:
    path = workspace.root / "a.md"

    workspace.run("write_file", path, content=content)

    assert path.read_bytes() == content.encode()


EDITS = {
    "in the middle": (b"one two three", "two", "2", b"one 2 three"),
    "deletion": (b"one two three", " two", "", b"one three"),
    "the whole file": (b"one\n", "one\n", "", b""),
    "no final newline": (b"a\nb", "b", "c", b"a\nc"),
    "byte order mark": (b"\xef\xbb\xbfa\nb\n", "a", "c", b"\xef\xbb\xbfc\nb\n"),
    "CRLF": (b"a\r\nb\r\n", "a\nb", "c\nd", b"c\r\nd\r\n"),
    "CRLF given": (b"a\r\nb\r\n", "a\r\nb", "c\r\nd", b"c\r\nd\r\n"),
    "mixed endings": (b"a\r\nb\nc\n", "b\nc", "d\ne", b"a\r\nd\ne\n"),
    "tab": (b"\ta\n", "\ta", "    a", b"    a\n"),
    "group reference": (b"a", "a", r"\1 \g<0> $& $1", rb"\1 \g<0> $& $1"),
    "format": (b"a", "a", "%s {} {0} {{7*7}} %(x)s", b"%s {} {0} {{7*7}} %(x)s"),
    "pattern": (b"a.c abc", "a.c", "x", b"x abc"),
    "shell": (b"a", "a", "$(touch x) `y` ; && |", b"$(touch x) `y` ; && |"),
}


@pytest.mark.parametrize(("before", "old", "new", "after"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_replaces_exactly_that_text(
    workspace: Workspace, before: bytes, old: str, new: str, after: bytes
) -> None:
    path = workspace.write("a.md", before)

    workspace.run("edit_file", path, old_text=old, new_text=new)

    assert path.read_bytes() == after


REFUSED_EDITS = {
    "absent": (b"a\n", "b", "does not occur"),
    "twice": (b"a\nb\na\n", "a", "2 times, beginning in lines 1, 3;"),
    "overlapping": (b"x\naaa\n", "aa", "2 times, beginning in lines 2, 2;"),
    "often": (b"a\n" * 30, "a", r"30 times, beginning in lines 1, .*, 20, \.\.\.;"),
    "LF in a mixed file": (b"a\r\nb\nc\n", "a\nb", "does not occur"),
    "CRLF in an LF file": (b"a\nb\n", "a\r\nb", "does not occur"),
    "trailing newline": (b"a", "a\n", "does not occur"),
    "Latin-1": (b"caf\xe9\n", "caf", "not UTF-8, see byte 3"),
    "NUL": (b"a\0b\n", "a", "NUL"),
    "too large": (b"a" * (1024 * 1024 + 1), "b", "larger than 1048576 bytes"),
}


@pytest.mark.parametrize(
    ("before", "old", "complaint"), REFUSED_EDITS.values(), ids=REFUSED_EDITS.keys()
)
def test_an_edit_that_is_not_clear_is_refused(
    workspace: Workspace, before: bytes, old: str, complaint: str
) -> None:
    path = workspace.write("a.md", before)
    inode = path.stat().st_ino

    with pytest.raises(TaskFailed, match=complaint):
        workspace.run("edit_file", path, old_text=old, new_text="new")

    assert path.read_bytes() == before
    assert path.stat().st_ino == inode
    assert not workspace.entries(path)


def test_a_hostile_repetition_is_not_counted_to_its_end(workspace: Workspace) -> None:
    path = workspace.write("a.md", "a" * 1024 * 1024)

    with pytest.raises(TaskFailed, match="occurs more than 100 times"):
        workspace.run("edit_file", path, old_text="a" * 500_000, new_text="")


def test_a_growing_edit_stays_below_the_limit(workspace: Workspace) -> None:
    path = workspace.write("a.md", "a" + "b" * 1024 * 1023)

    with pytest.raises(TaskFailed, match="would be larger than"):
        workspace.run("edit_file", path, old_text="a", new_text="c" * 2000)

    assert path.read_bytes()[:1] == b"a"


@pytest.mark.parametrize("content", [b"caf\xe9\n", b"a\0b\n"], ids=["Latin-1", "NUL"])
@pytest.mark.parametrize("task", ["write_file", "read_file", "list_backups", "rollback_file"])
def test_a_file_that_is_no_text_is_neither_replaced_nor_read(
    workspace: Workspace, content: bytes, task: str
) -> None:
    path = workspace.write("a.md", content)
    params = {"content": "new"} if task == "write_file" else {}

    with pytest.raises(TaskFailed, match="refused"):
        workspace.run(task, path, **params)

    assert path.read_bytes() == content


def test_a_change_that_changes_nothing_is_refused(workspace: Workspace) -> None:
    path = workspace.write("a.md", "same\n")

    with pytest.raises(TaskFailed, match="has exactly this content already"):
        workspace.run("write_file", path, content="same\n")
    with pytest.raises(ValidationError, match="must differ"):
        workspace.run("edit_file", path, old_text="same", new_text="same")

    assert not workspace.entries(path)
    assert not workspace.changelog.exists()


# What is said about it


def test_a_change_tells_what_it_did(workspace: Workspace) -> None:
    path = workspace.write("a.py", "a = 1\nb = 2\n")

    result = workspace.run("edit_file", path, old_text="b = 2", new_text="b = 3\nc = 4")

    version = ".".join(map(str, sys.version_info[:3]))
    assert result.text == (
        f"edited {path}: 2 lines added, 1 removed; checked with Python {version}"
    )
    assert result.change is not None
    name = result.value["backup"]
    assert result.change.backup == f"{workspace.backups}{path}/{name}"
    assert Path(result.change.backup).read_text() == "a = 1\nb = 2\n"
    assert result.change.diff.splitlines() == [
        f"--- a{path}",
        f"+++ b{path}",
        "@@ -1,2 +1,3 @@",
        " a = 1",
        "-b = 2",
        "+b = 3",
        "+c = 4",
    ]
    entry = entry_of(workspace, path, name)
    assert entry["state"] == "applied"
    assert entry["message_id"] == 1
    for number, key in enumerate(("before", "after")):
        assert result.value[f"sha256_{key}"] == entry[key], number


def test_backups_are_for_nobody_else(workspace: Workspace) -> None:
    path = workspace.write("a.md", "a")
    former = os.umask(0)
    try:
        workspace.run("write_file", path, content="b")
    finally:
        os.umask(former)

    modes = {
        stat.S_IMODE(found.stat().st_mode)
        for found in workspace.backups.rglob("*")
        if found.is_file()
    }
    folders = [found for found in workspace.backups.rglob("*") if found.is_dir()]
    assert modes == {0o600}
    assert {stat.S_IMODE(found.stat().st_mode) for found in folders} == {0o700}


def test_two_edits_within_a_microsecond_have_two_backups(workspace: Workspace) -> None:
    path = workspace.write("a.md", "0")
    workspace.run("write_file", path, content="1")
    folder = workspace.backups / str(path).lstrip("/")
    # The clock went back: what is there is of the future.
    for found in list(folder.iterdir()):
        found.rename(folder / found.name.replace(found.name[:4], "2999"))

    second = workspace.run("write_file", path, content="2").value["backup"]
    third = workspace.run("write_file", path, content="3").value["backup"]
    workspace.run("rollback_file", path)
    workspace.run("rollback_file", path)

    assert second.startswith("2999")
    assert second < third
    assert path.read_text() == "1"


def test_the_changelog_has_one_entry_for_every_change(workspace: Workspace) -> None:
    path = workspace.write("a.md", "a\n")
    workspace.changelog.write_text("# Changes without a final newline")

    result = workspace.run("write_file", path, content="b\nc\n")
    workspace.run("rollback_file", path)

    text = workspace.changelog.read_text()
    assert result.change is not None
    assert result.change.changelog_updated
    assert text.startswith("# Changes without a final newline\n\n## write_file: ")
    assert "- Message: #1 from big_bro\n- Reason: a test\n- Lines: 2 added, 1 removed\n" in text
    assert f"- Backup: {result.change.backup}\n" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("## ")] == [
        "write_file:",
        "rollback_file:",
    ]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028"])
def test_no_text_fakes_an_entry_of_the_changelog(workspace: Workspace, separator: str) -> None:
    forged = f"done{separator}{separator}## edit_file: /etc/passwd{separator}- Backup: none"
    context = workspace.context(reason=forged, requester=forged)

    workspace.run_as(context, "write_file", workspace.root / "a.md", content="a\n")

    lines = workspace.changelog.read_text().splitlines()
    assert sum(line.startswith("##") for line in lines) == 1
    assert sum(line.startswith("- Backup") for line in lines) == 1


def lay_changelog_link(workspace: Workspace) -> None:
    (workspace.outside / "log").write_text("precious\n")
    workspace.changelog.symlink_to(workspace.outside / "log")


def lay_changelog_hard_link(workspace: Workspace) -> None:
    (workspace.outside / "log").write_text("precious\n")
    workspace.changelog.hardlink_to(workspace.outside / "log")


def lay_changelog_fifo(workspace: Workspace) -> None:
    (workspace.outside / "log").write_text("precious\n")
    os.mkfifo(workspace.changelog)


@pytest.mark.parametrize("lay", [lay_changelog_link, lay_changelog_hard_link, lay_changelog_fifo])
def test_a_changelog_that_is_no_plain_file_is_left_alone(
    workspace: Workspace, lay: Callable[[Workspace], None]
) -> None:
    lay(workspace)

    result = workspace.run("write_file", workspace.root / "a.md", content="a\n")

    assert result.change is not None
    assert not result.change.changelog_updated
    assert (workspace.outside / "log").read_text() == "precious\n"


def test_a_preview_is_the_diff_and_changes_nothing(workspace: Workspace) -> None:
    path = workspace.write("a.py", "a = 1\n")
    model = workspace.validate("edit_file", path, old_text="1", new_text="2")
    before = sorted(workspace.folder.rglob("*"))

    shown = workspace.preview(model)

    assert "\n-a = 1\n+a = 2\n" in shown
    assert path.read_text() == "a = 1\n"
    assert sorted(workspace.folder.rglob("*")) == before
    result = workspace.run("edit_file", path, old_text="1", new_text="2")
    assert result.change is not None
    assert result.change.diff == shown


def test_a_mode_that_a_rollback_brings_back_is_shown_before_and_after(workspace: Workspace) -> None:
    path = workspace.write("a.py", "a = 1\n")
    path.chmod(0o644)
    workspace.run("edit_file", path, old_text="1", new_text="2")
    path.chmod(0o600)

    shown = workspace.preview(workspace.validate("rollback_file", path))
    result = workspace.run("rollback_file", path)

    owner = f"{os.geteuid()}:{os.getegid()}"
    assert shown.startswith(f"old mode 0600, owner {owner}\nnew mode 0644, owner {owner}\n--- a/")
    assert result.change is not None
    assert result.change.diff == shown
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("task", "params", "complaint"),
    [
        ("write_file", {"content": "a = (\n"}, "syntax error in line 1"),
        ("edit_file", {"old_text": "b", "new_text": "c"}, "does not occur"),
        ("rollback_file", {}, "nothing is left to undo"),
    ],
)
def test_a_preview_fails_where_the_change_would(
    workspace: Workspace, task: str, params: dict[str, str], complaint: str
) -> None:
    path = workspace.write("a.py", "a = 1\n")
    model = workspace.validate(task, path, **params)

    with pytest.raises(TaskFailed, match=complaint):
        file_operations.preview(model, workspace.context())


def patched(path: Path, diff: str) -> str:
    require(shutil.which("patch"), "needs patch")
    command = ["patch", "--posix", "-s", "-o", "-", str(path)]
    ended = subprocess.run(
        command, input=diff, text=True, capture_output=True, check=True, cwd=path.parent
    )
    return ended.stdout


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("a\n" * 30, "a\n" * 10 + "b\n" + "a\n" * 20),
        ("".join(f"{n}\n" for n in range(40)), "".join(f"{n}\n" for n in range(40) if n % 19)),
        ("a\nb", "a\nb\n"),
        ("a\n", "a\nb"),
        ("a\n", ""),
        ("", "a\n"),
        ("x\u2028y\n", "x\u2028z\n"),
    ],
)
def test_a_diff_says_what_patch_needs_to_know(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "file"
    path.write_text(before)

    assert patched(path, unified_diff("/file", before, after, ()).text) == after


def test_a_diff_of_hostile_texts_compares_no_lines() -> None:
    many = 10 * MOST_LINES_COMPARED
    # Every line occurs often, but not so often that difflib leaves it out of account.
    before = "".join(f"{n * n // 7 % 211}\n" for n in range(many))
    after = "".join(f"{n * n // 11 % 211}\n" for n in range(many))

    diff = unified_diff("/file", f"same\nold\n{before}end\n", f"same\nnew\n{after}last\nend\n", ())

    assert (diff.added, diff.removed) == (many + 2, many + 1)
    assert f"@@ -1,{many + 3} +1,{many + 4} @@\n same\n-old\n-0\n" in diff.text


KEY_LINES = [f"{number}{'k' * 60}" for number in range(30)]
KEY_FILE = "\n".join(
    ["# the key", "-----BEGIN PRIVATE KEY-----", *KEY_LINES, "-----END PRIVATE KEY-----", ""]
)


def test_no_excerpt_of_a_file_shows_lines_of_a_private_key(workspace: Workspace) -> None:
    path = workspace.write("a.md", KEY_FILE)

    read = workspace.run("read_file", path, first_line=10, line_count=5)
    edited = workspace.run("edit_file", path, old_text="15k", new_text="15j")

    assert read.text.count("[redacted]") == 5
    assert edited.change is not None
    assert "-[redacted]\n+[redacted]\n" in edited.change.diff
    for shown in (read.text, json.dumps(read.value), edited.change.diff):
        assert "kkkk" not in shown
    assert path.read_text() == KEY_FILE.replace("15k", "15j")
    # The approver must see what he approves, and a change may call anything a key.
    model = workspace.validate("edit_file", path, old_text="15j", new_text="15i")
    assert "+15ikkk" in workspace.preview(model)


LETTERS = "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7b"


@pytest.mark.parametrize(
    ("introduced", "secret"),
    [
        (f"AKIAIOSFODNN7EXAMPLE\n{LETTERS}\n", LETTERS),
        ("machine h\n login bot\n password swordfish9\n", "swordfish9"),
        ("ALTER ROLE bot PASSWORD\n 'swordfish9';\n", "swordfish9"),
        ("Authorization:\n Basic Ym90OnN3b3JkZmlzaDk=\n", "Ym90OnN3b3JkZmlzaDk"),
    ],
)
def test_a_diff_hides_a_secret_whose_name_stands_above_what_it_shows(
    introduced: str, secret: str, workspace: Workspace
) -> None:
    path = workspace.write("a.md", introduced + "a\nb\nx = 1\n")

    edited = workspace.run("edit_file", path, old_text="x = 1", new_text="x = 2")

    assert edited.change is not None
    assert secret not in edited.change.diff
    assert edited.change.diff.endswith(" a\n b\n-x = 1\n+x = 2\n")
    assert len(edited.change.diff.splitlines()) == 8


@pytest.mark.parametrize("introduced", ["", "ALTER ROLE bot PASSWORD\n"])
def test_a_secret_that_changes_is_seen_to_change(introduced: str) -> None:
    before, after = (f"{introduced}  'swordfish{number}';\n" for number in (1, 2))
    if not introduced:
        before, after = (f"password = {text.strip()}\n" for text in (before, after))

    diff = unified_diff("/file", before, after, ())

    changed = [line for line in diff.shown.splitlines()[3:] if line[0] != " "]
    assert [line[0] for line in changed] == ["-", "+"]
    assert all("'[redacted]'" in line for line in changed)
    assert "swordfish1" in diff.text
    assert "swordfish2" in diff.text


def test_a_secret_across_the_cut_of_an_endless_line_is_gone(workspace: Workspace) -> None:
    secret = "hunter2-hunter2-"
    settings = workspace.settings._replace(secrets=(secret,))
    path = workspace.write("a.md", "x" * (64 * 1024 - 8) + secret + "x" * 1000)

    result = Workspace(workspace.folder, settings).run("read_file", path)

    assert "hunter2" not in result.text


# Reading


def test_reading_numbers_the_lines(workspace: Workspace) -> None:
    path = workspace.write("a.md", "one\r\ntwo\r\nthree")

    result = workspace.run("read_file", path)

    assert result.text == "     1\tone\n     2\ttwo\n     3\tthree"
    assert result.value == {
        "filepath": str(path),
        "first_line": 1,
        "last_line": 3,
        "total_lines": 3,
        "text": "one\r\ntwo\r\nthree",
    }


def test_reading_a_range_says_what_there_is_besides(workspace: Workspace) -> None:
    path = workspace.write("a.md", "".join(f"{n}\n" for n in range(1, 1001)))

    result = workspace.run("read_file", path, first_line=998, line_count=2)
    whole = workspace.run("read_file", path)

    assert result.text == "   998\t998\n   999\t999\n(lines 998 to 999 of 1000)"
    assert whole.value["last_line"] == 500
    with pytest.raises(TaskFailed, match="has only 1000 lines"):
        workspace.run("read_file", path, first_line=1001)


def test_reading_is_capped_also_within_a_line(workspace: Workspace) -> None:
    path = workspace.write("a.md", "x" * 500_000 + "\n" + "y" * 60_000 + "\n" + "z" * 60_000)

    first = workspace.run("read_file", path)
    second = workspace.run("read_file", path, first_line=2)

    assert len(first.text) < 70_000
    assert first.value["last_line"] == 1
    assert second.value["last_line"] == 2


def test_an_empty_and_a_missing_file(workspace: Workspace) -> None:
    assert workspace.run("read_file", workspace.write("a.md", "")).text == "(the file is empty)"
    with pytest.raises(TaskFailed, match="does not exist"):
        workspace.run("read_file", workspace.root / "b.md")


# Backups and rollback: the sequences are in test_rollback_history.py


def test_a_rollback_brings_back_bytes_and_mode_without_judging_them(workspace: Workspace) -> None:
    path = workspace.write("a.py", "broken = (\r\n")
    path.chmod(0o750)
    workspace.run("write_file", path, content="a = 1\n")
    path.chmod(0o644)

    workspace.run("rollback_file", path)

    assert path.read_bytes() == b"broken = (\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


@pytest.mark.parametrize("foreign", ["theirs\n", None], ids=["changed", "removed"])
def test_a_rollback_never_undoes_somebody_elses_work(
    workspace: Workspace, foreign: str | None
) -> None:
    path = workspace.write("a.md", "one\n")
    workspace.run("write_file", path, content="two\n")
    if foreign is None:
        path.unlink()
    else:
        path.write_text(foreign)

    with pytest.raises(TaskFailed, match=r"(changed|removed) by someone else"):
        workspace.run("rollback_file", path)

    assert (path.read_text() if path.exists() else None) == foreign


def test_a_rollback_of_a_file_that_is_gone_names_the_way_back(workspace: Workspace) -> None:
    path = workspace.write("a.md", "one\n")
    workspace.run("edit_file", path, old_text="one", new_text="two")
    path.unlink()

    with pytest.raises(TaskFailed, match="removed by someone else after the change"):
        workspace.run("rollback_file", path)

    (backup,) = workspace.run("list_backups", path).value
    workspace.run("rollback_file", path, backup=backup["name"])
    assert path.read_text() == "one\n"


def test_a_rollback_does_not_jump_over_somebody_elses_work(workspace: Workspace) -> None:
    path = workspace.write("a.md", "one\n")
    workspace.run("write_file", path, content="two\n")
    path.write_text("theirs\n")
    workspace.run("write_file", path, content="three\n")
    workspace.run("rollback_file", path)

    with pytest.raises(TaskFailed, match="changed by someone else"):
        workspace.run("rollback_file", path)

    assert path.read_text() == "theirs\n"


def test_a_removed_file_comes_back_by_the_name_of_a_backup(workspace: Workspace) -> None:
    path = workspace.write("a.md", "one\n")
    name = workspace.run("write_file", path, content="two\n").value["backup"]
    path.unlink()

    workspace.run("rollback_file", path, backup=name)
    restored = path.read_text()
    workspace.run("rollback_file", path)

    assert restored == "one\n"
    assert not path.exists()


def damage_by_cutting(backup: Path) -> None:
    backup.write_text("on")


def damage_by_linking(backup: Path) -> None:
    backup.rename(backup.with_name("moved"))
    backup.symlink_to("moved")


def damage_by_hard_linking(backup: Path) -> None:
    backup.with_name("other").hardlink_to(backup)


def damage_by_removing(backup: Path) -> None:
    backup.unlink()


def damage_the_json(backup: Path) -> None:
    backup.with_name(f"{backup.name}.json").write_text('{"state":"applied" ,')


def damage_by_replacing_with_a_fifo(backup: Path) -> None:
    backup.unlink()
    os.mkfifo(backup)


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_cutting,
        damage_by_linking,
        damage_by_hard_linking,
        damage_by_removing,
        damage_the_json,
        damage_by_replacing_with_a_fifo,
    ],
)
def test_a_damaged_backup_is_not_restored(
    workspace: Workspace, damage: Callable[[Path], None]
) -> None:
    path = workspace.write("a.md", "one\n")
    result = workspace.run("write_file", path, content="two\n")
    assert result.change is not None
    damage(Path(result.change.backup))

    for params in ({}, {"backup": result.value["backup"]}):
        with pytest.raises(TaskFailed):
            workspace.run("rollback_file", path, **params)

    assert path.read_text() == "two\n"


@pytest.mark.parametrize(
    "backup", ["../x", "/etc/passwd", "{other}", "b.md.20250101_000000.bak", "{own}.json", "."]
)
def test_only_a_backup_of_this_file_is_restored(workspace: Workspace, backup: str) -> None:
    path, other = workspace.write("a.md", "one\n"), workspace.write("b.md", "secret\n")
    own_name = workspace.run("write_file", path, content="two\n").value["backup"]
    other_name = workspace.run("write_file", other, content="three\n").value["backup"]
    (workspace.backups / "b.md.20250101_000000.bak").write_text("secret\n")
    (workspace.backups / "x").write_text("secret\n")

    with pytest.raises(TaskFailed, match="there is no backup"):
        workspace.run("rollback_file", path, backup=backup.format(own=own_name, other=other_name))

    assert path.read_text() == "two\n"


def test_an_entry_that_was_moved_from_another_file_is_no_backup(workspace: Workspace) -> None:
    path, other = workspace.write("a.md", "one\n"), workspace.write("b.md", "secret\n")
    for changed in (path, other):
        workspace.run("write_file", changed, content="two\n")
    folder = workspace.backups / str(path.parent).lstrip("/")
    for found in list((folder / "b.md").iterdir()):
        found.rename(folder / "a.md" / found.name)
    moved = next(name for name in workspace.entries(path) if name.endswith("-2"))

    with pytest.raises(TaskFailed, match="there is no backup"):
        workspace.run("rollback_file", path, backup=moved)
    workspace.run("rollback_file", path)

    assert path.read_text() == "one\n"


def test_old_flat_backups_are_listed_and_restored_by_name_only(workspace: Workspace) -> None:
    path = workspace.write("a.py", "now = 1\n")
    own = "a.py.20250102_030405.bak"
    for name in (own, "a.py.old.py.20260101_000000.bak", "aXpy.20250102_030405.bak", "a.py.bak"):
        (workspace.backups / name).write_text("then = 1\n")
    (workspace.backups / "by-hand").mkdir()

    listed = workspace.run("list_backups", path)
    with pytest.raises(TaskFailed, match="nothing is left to undo"):
        workspace.run("rollback_file", path)
    workspace.run("rollback_file", path, backup=own)
    restored = path.read_text()
    workspace.run("rollback_file", path)

    assert [row["name"] for row in listed.value] == [own]
    assert listed.value[0]["time"] == "2025-01-02T03:04:05"
    assert restored == "then = 1\n"
    assert path.read_text() == "now = 1\n"
    assert (workspace.backups / "by-hand").is_dir()


def test_the_list_shows_when_what_who_and_whether_it_can_be_undone(workspace: Workspace) -> None:
    path = workspace.root / "a.md"
    workspace.run("write_file", path, content="one\n")
    workspace.run("edit_file", path, old_text="one", new_text="two\nthree")
    workspace.run("rollback_file", path)

    rows = workspace.run("list_backups", path).value

    assert [(r["operation"], r["message_id"], r["can_undo_now"]) for r in rows] == [
        ("rollback_file", 3, False),
        ("edit_file", 2, False),
        ("write_file", 1, True),
    ]
    assert (rows[1]["lines_added"], rows[1]["lines_removed"]) == (2, 1)
    path.write_text("theirs\n")
    rows = workspace.run("list_backups", path).value
    assert not any(row["can_undo_now"] for row in rows)


def keeping(workspace: Workspace, number: int) -> Workspace:
    return Workspace(workspace.folder, workspace.settings._replace(backup_keep=number))


def test_the_oldest_backups_are_forgotten(workspace: Workspace) -> None:
    workspace = keeping(workspace, 3)
    path = workspace.write("a.md", "0\n")
    for number in range(1, 7):
        workspace.run("write_file", path, content=f"{number}\n")

    names = [row["message_id"] for row in workspace.run("list_backups", path).value]

    assert names == [6, 5, 4]
    assert len(workspace.entries(path)) == 2 * 3


def test_the_newest_change_not_yet_undone_is_never_forgotten(workspace: Workspace) -> None:
    workspace = keeping(workspace, 2)
    path = workspace.write("a.md", "0\n")
    workspace.run("write_file", path, content="1\n")
    workspace.run("write_file", path, content="2\n")
    workspace.run("rollback_file", path)
    kept = [row["message_id"] for row in workspace.run("list_backups", path).value]

    workspace.run("rollback_file", path)

    assert kept == [3, 1]
    assert path.read_text() == "0\n"

"""Full disks, read-only file systems, kills at every step, hostile files for the validators."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.file_setup import Workspace, fast_folder, in_a_child, make_workspace
from support.postgres import require

from catalyst_heartbeat.files import syntax
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import LimitReached, Outcome, TaskFailed
from catalyst_heartbeat.tasks import file_operations

PAGE = 4096
# Every line takes minutes: each run strikes others, from a random one on, in steps of a prime
# that loops do not have. The seed that the run names strikes the same again.
STRIDE = 29
BEFORE = "before\n" * 1000
AFTER = "after\n" * 1000


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    require(shutil.which("mount"), "needs mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        require(False, f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, pages_left: int) -> None:
    space = os.statvfs(disk)
    with (disk / "filler").open("wb") as filler:
        filler.write(b"x" * (space.f_bavail - pages_left) * space.f_frsize)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def place_on(disk: Path, workspace: Workspace, what: str) -> Workspace:
    """Return a workspace of which this part lies on the small disk."""
    settings = workspace.settings
    if what == "target":
        settings = settings._replace(allowed_paths=(str(disk),))
    elif what == "backups":
        settings = settings._replace(backup_dir=str(disk))
    else:
        settings = settings._replace(changelog_path=str(disk / "CHANGELOG.md"))
        (disk / "CHANGELOG.md").write_text("# Changes\n")
    return Workspace(workspace.folder, settings)


def target_in(workspace: Workspace) -> Path:
    target = Path(workspace.settings.allowed_paths[0]) / "target.md"
    target.write_text(BEFORE)
    return target


def files_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("what", ["target", "backups"])
@pytest.mark.parametrize("pages_left", range(8))
def test_a_full_disk_leaves_all_or_nothing(
    workspace: Workspace, small_disk: Path, what: str, pages_left: int
) -> None:
    workspace = place_on(small_disk, workspace, what)
    target = target_in(workspace)
    fill(small_disk, pages_left)
    before = files_in(str(small_disk))

    refusal = ""
    try:
        workspace.run("write_file", target, content=AFTER)
    except TaskFailed as error:
        refusal = str(error)

    if refusal:
        assert "No space left on device; rolled back, the file is unchanged" in refusal
        assert target.read_text() == BEFORE
        assert files_in(str(small_disk)) == before
        assert pages_left < 7
    else:
        assert target.read_text() == AFTER
        assert pages_left > 1


def test_a_file_written_in_place_on_a_full_disk_is_lost(small_disk: Path) -> None:
    target = small_disk / "target.md"
    target.write_text(BEFORE)
    fill(small_disk, 0)

    with pytest.raises(OSError, match="No space left"):
        target.write_text(BEFORE + AFTER)

    assert target.read_text() not in (BEFORE, BEFORE + AFTER)


@pytest.mark.parametrize("what", ["target", "backups"])
def test_a_read_only_file_system_is_refused_before_the_target_is_touched(
    workspace: Workspace, small_disk: Path, what: str
) -> None:
    workspace = place_on(small_disk, workspace, what)
    target = target_in(workspace)
    inode = target.stat().st_ino
    make_read_only(small_disk)

    with pytest.raises(TaskFailed, match="Read-only file system"):
        workspace.run("write_file", target, content=AFTER)

    assert target.read_text() == BEFORE
    assert target.stat().st_ino == inode
    assert not workspace.changelog.exists()


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_changelog_that_cannot_be_written_is_said_and_the_change_stands(
    workspace: Workspace, small_disk: Path, trouble: str
) -> None:
    workspace = place_on(small_disk, workspace, "changelog")
    target = target_in(workspace)
    log = small_disk / "CHANGELOG.md"
    log.write_text("x" * (PAGE - 9) + "\n")
    if trouble == "full":
        fill(small_disk, 0)
    else:
        make_read_only(small_disk)

    result = workspace.run("write_file", target, content=AFTER)

    assert target.read_text() == AFTER
    assert result.change is not None
    assert not result.change.changelog_updated
    assert "the changelog could not be written" in result.text
    assert log.read_text() == "x" * (PAGE - 9) + "\n"


def test_a_disk_that_is_full_after_the_change_does_not_lose_the_way_back(
    workspace: Workspace, small_disk: Path
) -> None:
    workspace = place_on(small_disk, workspace, "backups")
    target = target_in(workspace)
    workspace.run("write_file", target, content=AFTER)
    fill(small_disk, 0)
    (small_disk / "filler").unlink()
    folder = small_disk / str(target).lstrip("/")
    entry = next(folder.glob("*.json"))
    entry.write_bytes(entry.read_bytes().replace(b'"applied" ', b'"prepared"'))

    workspace.run("rollback_file", target)

    assert target.read_text() == BEFORE
    assert b'"applied" ' in entry.read_bytes()


@pytest.mark.parametrize("missing", ["backup folder", "parent"])
def test_a_missing_folder_is_refused_in_words(workspace: Workspace, missing: str) -> None:
    path = workspace.root / "none/x.md" if missing == "parent" else workspace.root / "x.md"
    if missing == "backup folder":
        workspace.backups.rmdir()
    expected = "does not exist" if missing == "parent" else "install -d -m 700"

    with pytest.raises(TaskFailed, match=expected):
        workspace.run("write_file", path, content=AFTER)

    assert not path.exists()


def test_a_time_limit_takes_the_change_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm comes while the syntax is checked, as the executor sets it."""
    path = workspace.write("a.py", "a = 1\n")
    monkeypatch.setitem(syntax.CHECKERS, ".py", ("/bin/sleep", "60"))

    def ring(number: int, frame: FrameType | None) -> None:
        raise LimitReached

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.1)
    try:
        with pytest.raises(TaskFailed, match=r"in time; rolled back, the file is unchanged"):
            workspace.run("write_file", path, content="a = 2\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

    assert path.read_text() == "a = 1\n"
    assert not workspace.leftovers()
    assert not workspace.entries(path)


HOSTILE_SOURCES = {
    "nested brackets": "[" * 100_000,
    "nested calls": "f(" * 100_000,
    "nested unary": "-" * 500_000 + "1",
    "nested attributes": "x = a" + ".a" * 300_000,
    "long sum": "x = 1" + "+1" * 300_000,
    "nested blocks": "".join(" " * n + "if 1:\n" for n in range(200)),
    "huge number": "x = " + "9" * 100_000,
    "unknown cookie": "# coding: no-such\nx = 1\n",
    "bytes cookie": "# coding: hex\n78\n",
    "bending cookie": "# coding: utf-7\n# +AAo-import os\n",
    "bending cookie with text": "# coding: latin-1\nx = 'é'\n",
    "bending cookie behind a carriage return": "\r# coding: utf-7\n# +AAo-import os\n",
    "bending cookie in a second line": "#!/x\r\n# coding: latin-1\r\nx = 'é'\r\n",
    "bending cookie behind a form feed": "\x0c\r# coding: utf-7\n# +AAo-import os\n",
    "unfinished string": 'x = """\n' * 3,
    "lone carriage return": "x = (\r",
    "null statement": "x = \\",
}


@pytest.mark.parametrize("source", HOSTILE_SOURCES.values(), ids=HOSTILE_SOURCES.keys())
def test_what_python_cannot_compile_is_refused(workspace: Workspace, source: str) -> None:
    path = workspace.write("a.py", "a = 1\n")

    with pytest.raises(TaskFailed, match=r"syntax.*; rolled back, the file is unchanged"):
        workspace.run("write_file", path, content=source)

    assert path.read_text() == "a = 1\n"
    assert not workspace.leftovers()
    assert not workspace.entries(path)


CHEAP_SOURCES = {
    "constant folding of a power": "x = 2 ** 10 ** 9\n",
    "constant folding of a shift": "x = 1 << 10 ** 9\n",
    "constant folding of a product": "x = ('a' * 10 ** 6) * 10 ** 6\n",
    "a harmless cookie": "# coding: latin-1\nx = 1\n",
    "a warning": "x = '\\d' is 1\nassert (1, 'always true')\n",
    "a byte order mark": "\ufeffx = 1\n",
    "many statements": "a = 1\n" * 150_000,
    "what would end the checker": "import sys\nsys.exit(9)\nexit(9)\n",
    "what would write": "open('/tmp/owned-by-a-check', 'w').write('x')\n",
}


@pytest.mark.parametrize("source", CHEAP_SOURCES.values(), ids=CHEAP_SOURCES.keys())
def test_what_compiles_is_written_and_not_executed(workspace: Workspace, source: str) -> None:
    path = workspace.root / "a.py"

    workspace.run("write_file", path, content=source)

    assert path.read_text() == source
    assert not Path("/tmp/owned-by-a-check").exists()


SHELL_FAULTS = {
    "at the end": "echo a\n" * 1000 + "if true; then\n",
    "in line 2": "echo a\nfi\n",
    "unfinished quote": "echo 'a\n",
    "here-document without an end": "cat <<EOF\nkey=value\n",
    "pattern that is never turned on": "case $1 in !(a|b)) ;; esac\n",
    "nested substitutions": "$(" * 100_000,
    "nested groups": "( " * 100_000,
    "carriage returns": "if true; then\r\necho a\r\nfi\r\n",
}


@pytest.mark.parametrize("source", SHELL_FAULTS.values(), ids=SHELL_FAULTS.keys())
def test_what_bash_cannot_parse_is_refused(workspace: Workspace, source: str) -> None:
    path = workspace.write("a.sh", "echo a\n")

    with pytest.raises(TaskFailed, match=r"syntax.*; rolled back, the file is unchanged"):
        workspace.run("write_file", path, content=source)

    assert path.read_text() == "echo a\n"


def test_a_script_that_turns_extended_patterns_on_may_use_them(workspace: Workspace) -> None:
    path = workspace.root / "a.sh"
    source = "shopt -s extglob\ncase $1 in !(a|b)) echo other ;; esac\n"

    workspace.run("write_file", path, content=source)
    with pytest.raises(TaskFailed, match="syntax error in line 2"):
        workspace.run("write_file", path, content=source.replace("esac", "esca"))

    assert path.read_text() == source


def test_a_shell_file_is_parsed_and_not_executed(workspace: Workspace) -> None:
    proof = workspace.folder / "executed"
    source = f"set +n\nset +o noexec\ntouch {proof}\n: $(touch {proof})\nexit 3\n"

    workspace.run("write_file", workspace.root / "a.sh", content=source)

    assert not proof.exists()
    # Control: it would have been made.
    subprocess.run(["/bin/bash", str(workspace.root / "a.sh")], check=False)
    assert proof.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checker", "complaint"),
    [
        (("/bin/sleep", "1000"), "did not finish in time"),
        (("/bin/sh", "-c", "kill -SEGV $$"), "the checker died of signal 11"),
        (("/bin/sh", "-c", "echo x > $HOME/x || exit 0"), "the checker died of signal 25"),
        (("/bin/sh", "-c", "exit 3"), "does not say where"),
        (("/no/such/checker",), "cannot run /no/such/checker"),
        ((sys.executable, "-c", "while True: pass"), "the checker died of signal 9"),
        ((sys.executable, "-c", "'a' * (1 << 40)"), "MemoryError"),
    ],
    ids=["hangs", "dies", "writes", "says nothing", "missing", "spins", "eats memory"],
)
def test_a_checker_that_gives_no_answer_is_a_refusal(
    workspace: Workspace,
    checker: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = workspace.write("a.py", "a = 1\n")
    monkeypatch.setitem(syntax.CHECKERS, ".py", checker)
    monkeypatch.setattr(syntax, "WALL_SECONDS", 1.0 if "1000" in checker else 240.0)
    monkeypatch.setattr(syntax, "CPU_SECONDS", 1)
    monkeypatch.setenv("HOME", str(workspace.outside))

    with pytest.raises(TaskFailed, match=f"{complaint}.*; rolled back, the file is unchanged"):
        workspace.run("write_file", path, content="a = 2\n")

    assert path.read_text() == "a = 1\n"
    assert not workspace.leftovers()


def killed_at(step: int, act: Callable[[], Any]) -> bool:
    """Do something in a process that is killed at this line of ours; whether it came so far.

    Lines are counted from where the change is planned and nothing is written yet, in the modules
    that write: between two lines of others nothing changes that a kill could leave.
    """
    steps: Iterator[int] | None = None

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if not re.search("/catalyst_heartbeat/(files/|host/beneath)", frame.f_code.co_filename):
            return None
        if frame.f_code.co_name == "carry_out" and event == "call":
            steps = iter(range(step))
        elif steps is not None and event == "line" and next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def traced() -> None:
        sys.settrace(trace)
        act()

    _, status = os.waitpid(in_a_child(traced), 0)
    return os.WIFSIGNALED(status)


def investigate(workspace: Workspace, task: str, path: Path, **params: Any) -> Outcome | None:
    context = workspace.context(message_id=77)
    model = workspace.validate(task, path, **params)
    return file_operations.investigate(model, context, time.time())


CRASHES: dict[str, tuple[str, dict[str, str], str | None, str | None]] = {
    "replacement": ("write_file", {"content": "after\n"}, "before\n", "after\n"),
    "creation": ("write_file", {"content": "after\n"}, None, "after\n"),
    "undone creation": ("rollback_file", {}, "before\n", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("renaming", ["exchange", "links"])
@pytest.mark.parametrize("kind", CRASHES)
def test_after_a_kill_at_any_line_the_truth_is_found(
    kind: str, renaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if renaming == "links":
        monkeypatch.setattr(beneath, "RENAME_EXCHANGE", 1 << 20)
        monkeypatch.setattr(beneath, "RENAME_NOREPLACE", 1 << 20)
    verdicts = []
    step, killed = random.randint(1, STRIDE), True  # noqa: S311

    while killed:
        with fast_folder() as folder:
            killed, verdict = kill_and_investigate(make_workspace(folder), kind, step)
        verdicts.append(verdict)
        step += STRIDE

    assert len(verdicts) > 10
    assert set(verdicts) == {"failed", "success"}


def kill_and_investigate(workspace: Workspace, kind: str, step: int) -> tuple[bool, str]:
    task, params, before, after = CRASHES[kind]
    path = workspace.root / "a.md"
    if before:
        workspace.run("write_file", path, content=before)
    context = workspace.context(message_id=77)
    killed = killed_at(step, lambda: workspace.run_as(context, task, path, **params))

    outcome = investigate(workspace, task, path, **params)

    assert outcome is not None
    text = path.read_text() if path.exists() else None
    assert text == (after if outcome.verdict == "success" else before)
    assert not workspace.leftovers()
    assert_every_backup_is_told_about(workspace, path)
    log = workspace.changelog.read_text() if workspace.changelog.exists() else ""
    assert log.count("#77 from") == (outcome.verdict == "success")
    assert_the_history_goes_on(workspace, path, text)
    return killed, outcome.verdict


def assert_every_backup_is_told_about(workspace: Workspace, path: Path) -> None:
    names = workspace.entries(path)
    assert {f"{name.removesuffix('.json')}.json" for name in names} <= set(names)


def assert_the_history_goes_on(workspace: Workspace, path: Path, text: str | None) -> None:
    workspace.run("write_file", path, content="next\n")
    workspace.run("rollback_file", path)
    assert (path.read_text() if path.exists() else None) == text


@pytest.mark.slow
@pytest.mark.parametrize("task", ["write_file", "rollback_file"])
def test_the_next_change_removes_what_a_dead_one_left(task: str) -> None:
    """The dead one may be of any message, of another file of the folder, of another agent."""
    stride = STRIDE // 2  # the file lies there for few more lines than that
    steps = itertools.count(random.randint(1, stride), stride)  # noqa: S311
    seen = set()

    killed = True
    while killed:
        with fast_folder() as folder:
            workspace = make_workspace(folder)
            path, other = workspace.write("a.md", "one\n"), workspace.write("b.md", "b\n")
            workspace.run("write_file", path, content="two\n")
            params = {"content": "three\n"} if task == "write_file" else {}
            context = workspace.context(message_id=77)
            step = next(steps)
            killed = killed_at(step, lambda: workspace.run_as(context, task, path, **params))  # noqa: B023
            seen.add(len(workspace.leftovers()))
            workspace.run("write_file", other, content="c\n")
            left = workspace.leftovers()
            path.write_text("four\n")
            workspace.run("write_file", path, content="five\n")

            assert not left
            assert_every_backup_is_told_about(workspace, path)
    assert seen == {0, 1}


def test_a_temporary_file_in_use_is_nobodys_leftover(workspace: Workspace) -> None:
    """An agent with a BACKUP_DIR of its own does not wait for the lock of this one."""
    theirs = workspace.write(".catalyst-5-0123abcd.tmp", "theirs\n")
    dead = workspace.write(".catalyst-6-0123abcd.tmp", "dead\n")
    alike = workspace.write(".catalyst-6-0123abcd.tmp.md", "somebody's\n")
    in_use = theirs.open()
    fcntl.flock(in_use, fcntl.LOCK_EX)

    workspace.run("write_file", workspace.root / "a.md", content="a\n")
    while_in_use = theirs.exists()
    in_use.close()
    workspace.run("write_file", workspace.root / "a.md", content="b\n")

    assert while_in_use
    assert not theirs.exists()
    assert not dead.exists()
    assert alike.exists()


def test_every_name_that_goes_is_gone_for_good_before_the_report(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files may lie on another disk than the backups: only an fsync of their folder counts."""
    path = workspace.write("a.md", "one\n")
    pending: set[int] = set()
    unlink, sync = os.unlink, os.fsync

    def remember(name: Any, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        pending.add(os.fstat(dir_fd).st_ino)

    def forget(descriptor: int) -> None:
        sync(descriptor)
        pending.discard(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "unlink", remember)
    monkeypatch.setattr(os, "fsync", forget)
    for task, params in (
        ("write_file", {"content": "two\n"}),
        ("rollback_file", {}),
        ("write_file", {"content": "two\n"}),
        ("edit_file", {"old_text": "two", "new_text": "three"}),
    ):
        workspace.run(task, path, **params)
        assert not pending, task
    with pytest.raises(TaskFailed, match="could not start"):
        workspace.run("write_file", workspace.root / "a.sh", content="\ufeff#!/bin/sh\n")
    assert not pending


def test_an_interrupted_change_that_somebody_overwrote_is_unknown(workspace: Workspace) -> None:
    path = workspace.write("a.md", BEFORE)
    workspace.run_as(workspace.context(message_id=77), "write_file", path, content=AFTER)
    folder = workspace.backups / str(path).lstrip("/")
    entry = next(folder.glob("*.json"))
    entry.write_bytes(entry.read_bytes().replace(b'"applied" ', b'"prepared"'))
    path.write_text("foreign\n")

    outcome = investigate(workspace, "write_file", path, content=AFTER)

    assert outcome is None
    assert path.read_text() == "foreign\n"


def test_a_mode_without_any_right_comes_back(workspace: Workspace) -> None:
    path = workspace.write("a.md", BEFORE)
    path.chmod(0)
    if not os.access(path, os.R_OK):
        pytest.skip("only root reads a file without rights")

    workspace.run("write_file", path, content=AFTER)
    kept = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o600)
    workspace.run("rollback_file", path)

    assert kept == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0

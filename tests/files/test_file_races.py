"""Somebody else at work in the same folders, in the same instant."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.file_setup import Workspace, fast_folder, in_a_child, make_workspace

from catalyst_heartbeat.files import backups, replace, syntax
from catalyst_heartbeat.files.snapshot import Swap, Version, opened_place, read_place
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import LimitReached, TaskFailed

SECRET = "secret = 1\n"
# So often at least is the race run, and until each of its ends was seen.
LEAST_ROUNDS = 100


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path)
    (workspace.root / "sub").mkdir()
    (workspace.root / "sub/victim.py").write_text("a = 1\n")
    (workspace.outside / "victim.py").write_text(SECRET)
    return workspace


@contextlib.contextmanager
def in_a_tight_loop(act: Callable[[], None]) -> Iterator[None]:
    """Let another process do something again and again until the end of the block."""

    def again_and_again() -> None:
        while True:
            act()

    child = in_a_child(again_and_again)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def exchanging(folder: Path, one: str, other: str) -> Callable[[], None]:
    descriptor = os.open(folder, os.O_RDONLY)

    def act() -> None:
        beneath.rename_with(descriptor, one, other, beneath.RENAME_EXCHANGE)

    return act


def lay_exchanged_parent(workspace: Workspace) -> Callable[[], None]:
    (workspace.root / "link").symlink_to(workspace.outside)
    return exchanging(workspace.root, "sub", "link")


def lay_exchanged_file(workspace: Workspace) -> Callable[[], None]:
    (workspace.root / "sub/link").symlink_to(workspace.outside / "victim.py")
    return exchanging(workspace.root / "sub", "victim.py", "link")


RACES = [lay_exchanged_parent, lay_exchanged_file]


@pytest.mark.parametrize("lay", RACES)
@pytest.mark.parametrize("task", ["write_file", "read_file"])
def test_no_link_is_followed_however_fast_it_comes_and_goes(
    workspace: Workspace, lay: Callable[[Workspace], Callable[[], None]], task: str
) -> None:
    path = workspace.root / "sub/victim.py"
    done = refused = 0

    with in_a_tight_loop(lay(workspace)):
        for number in itertools.count():
            if number >= LEAST_ROUNDS and refused and (done or task == "write_file"):
                break
            params = {"content": f"a = {number + 2}\n"} if task == "write_file" else {}
            try:
                result = workspace.run(task, path, **params)
            except TaskFailed:
                refused += 1
            else:
                done += 1
                assert task == "write_file" or "secret" not in result.text

    assert (workspace.outside / "victim.py").read_text() == SECRET
    assert sorted(os.listdir(workspace.outside)) == ["victim.py"]


@pytest.mark.slow
@pytest.mark.parametrize("renaming", ["exchange", "links"])
def test_a_reader_never_sees_half_a_file(
    workspace: Workspace, renaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if renaming == "links":
        monkeypatch.setattr(beneath, "RENAME_EXCHANGE", 1 << 20)
    texts = [letter * 300_000 for letter in "ab"]
    path = workspace.write("big.md", texts[0])
    rounds = iter(range(1, 1_000_000))

    def act() -> None:
        workspace.run("write_file", path, content=texts[next(rounds) % 2])

    with in_a_tight_loop(act):
        for number in itertools.count():
            assert path.read_text() in texts
            if number >= LEAST_ROUNDS and len(workspace.entries(path)) > 20:
                break


def change_while_checking(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Run somebody else's script as the syntax checker: between reading and renaming."""
    monkeypatch.setattr(syntax, "WRITTEN_BYTES", 1000)
    monkeypatch.setitem(syntax.CHECKERS, ".py", ("/bin/sh", "-ec", script))


INTERFERENCES = {
    "written in place": "echo foreign > victim.py",
    "replaced": "echo foreign > new; mv new victim.py",
    "replaced by the same": "cp victim.py new; mv new victim.py",
    "removed": "rm victim.py",
    "made a link": "ln -sf ../../outside/victim.py victim.py",
    "hard-linked": "ln victim.py other.py",
    "made a folder": "rm victim.py; mkdir victim.py",
    "mode changed": "chmod 600 victim.py",
    "folder moved away": "cd ..; mv sub moved; ln -s moved sub; cd moved",
    "folder exchanged": "cd ..; mv sub moved; mkdir sub; cp moved/victim.py sub/victim.py",
}


@pytest.mark.parametrize("script", INTERFERENCES.values(), ids=INTERFERENCES.keys())
def test_what_somebody_else_did_meanwhile_stands(
    workspace: Workspace, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace.root / "sub"
    path = folder / "victim.py"
    change_while_checking(monkeypatch, f"cd {folder}; {script}")

    with pytest.raises(TaskFailed, match=r"changed by someone else|refused|replaced by another"):
        workspace.run("write_file", path, content="a = 2\n")

    texts = {found.read_text() for found in workspace.root.rglob("*.py") if found.is_file()}
    assert "a = 2\n" not in texts
    assert (workspace.outside / "victim.py").read_text() == SECRET
    assert not workspace.leftovers()
    assert not [name for name in workspace.entries(path) if name[0].isdigit()]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.root / "new.py"
    change_while_checking(monkeypatch, f"echo foreign > {path}")

    with pytest.raises(TaskFailed, match="changed by someone else"):
        workspace.run("write_file", path, content="a = 2\n")

    assert path.read_text() == "foreign\n"
    assert not workspace.leftovers()


def swap(workspace: Workspace, path: Path, content: bytes | None, foreign: str | None) -> None:
    """Replace a file that somebody else changes after the last look and before the renaming."""
    context = workspace.context()
    after = None if content is None else Version(content, 0o644)
    with opened_place(str(path), workspace.settings) as place:
        swap = Swap(read_place(place), after)
        temporary = dataclasses.replace(place, name=".catalyst-1-00000000.tmp")
        with replace.written(temporary, after, context) as new:
            if foreign is None:
                path.unlink()
            else:
                (path.parent / "theirs").write_text(foreign)
                (path.parent / "theirs").rename(path)
            replace.rename(swap, place, temporary, new, workspace.settings)


@pytest.mark.parametrize("foreign", ["foreign\n", None], ids=["replaced", "removed"])
@pytest.mark.parametrize(
    ("content", "renaming"),
    [(b"a = 2\n", "exchange"), (None, "exchange"), (None, "links")],
    ids=["replace", "remove", "remove without renameat2"],
)
def test_a_change_in_the_last_instant_is_put_back(
    workspace: Workspace,
    content: bytes | None,
    foreign: str | None,
    renaming: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if renaming == "links":
        monkeypatch.setattr(beneath, "RENAME_NOREPLACE", 1 << 20)
    path = workspace.root / "sub/victim.py"

    with pytest.raises(TaskFailed, match="changed by someone else"):
        swap(workspace, path, content, foreign)

    assert (path.read_text() if path.exists() else None) == foreign
    assert not workspace.leftovers()


def test_without_an_exchange_a_change_that_cannot_be_proved_names_its_backup(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.root / "sub/victim.py"
    monkeypatch.setattr(beneath, "RENAME_EXCHANGE", 1 << 20)
    plain_rename = os.rename

    def rename_and_lose_the_race(*names: Any, **folders: Any) -> None:
        plain_rename(*names, **folders)
        if path.name in names:
            path.write_text("foreign\n")

    monkeypatch.setattr(os, "rename", rename_and_lose_the_race)
    with pytest.raises(TaskFailed, match="left so; what it held before is backup ") as caught:
        workspace.run("write_file", path, content="a = 2\n")

    name = str(caught.value).split()[-1]
    assert path.read_text() == "foreign\n"
    assert (workspace.backups / str(path).lstrip("/") / name).read_text() == "a = 1\n"
    assert not workspace.leftovers()


def test_a_file_made_in_the_last_instant_is_not_replaced(workspace: Workspace) -> None:
    path = workspace.root / "sub/new.py"

    with pytest.raises(TaskFailed, match="changed by someone else"):
        swap(workspace, path, b"a = 2\n", "foreign\n")

    assert path.read_text() == "foreign\n"
    assert not workspace.leftovers()


def test_one_change_waits_for_another_but_not_beyond_its_time(workspace: Workspace) -> None:
    path = workspace.write("a.md", "1\n")
    workspace.run("write_file", path, content="2\n")
    other = os.open(workspace.backups / backups.LOCK_NAME, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    with pytest.raises(LimitReached):
        workspace.run_as(
            workspace.context(deadline=time.monotonic() + 0.2), "write_file", path, content="3\n"
        )
    waited = path.read_text()
    os.close(other)
    workspace.run("write_file", path, content="3\n")

    assert waited == "2\n"
    assert path.read_text() == "3\n"


def test_nobody_else_can_hold_the_lock() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with fast_folder() as folder:
        workspace = make_workspace(folder)
        path = workspace.write("a.md", "1\n")
        workspace.run("write_file", path, content="2\n")
        folder.chmod(0o755)
        workspace.backups.chmod(0o755)
        ready, held = os.pipe()

        def hold_all_that_opens() -> None:
            os.setuid(65534)
            for place in (workspace.backups, *workspace.backups.iterdir(), workspace.root, path):
                with contextlib.suppress(PermissionError):
                    fcntl.flock(os.open(place, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.write(held, b".")
            os.write(held, b"!")
            signal.pause()

        child = in_a_child(hold_all_that_opens)
        locked = b""
        while not locked.endswith(b"!"):
            locked += os.read(ready, 1)
        try:
            workspace.run("write_file", path, content="3\n")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        assert path.read_text() == "3\n"
        assert len(locked) > 3


@pytest.mark.parametrize("lay", ["open to others", "a link", "a file"])
def test_a_lock_that_others_could_hold_is_refused(workspace: Workspace, lay: str) -> None:
    path = workspace.write("a.md", "1\n")
    lock = workspace.backups / backups.LOCK_NAME
    if lay == "a link":
        lock.symlink_to(workspace.outside)
    elif lay == "a file":
        lock.touch()
    else:
        lock.mkdir(0o755)

    with pytest.raises(TaskFailed, match=r"others can open|cannot lock"):
        workspace.run("write_file", path, content="2\n")

    assert path.read_text() == "1\n"


@pytest.mark.slow
def test_two_writers_at_once_lose_no_step_of_the_history(workspace: Workspace) -> None:
    path = workspace.write("counter.md", "0\n")
    numbers = iter(range(1000, 1_000_000))

    def act() -> None:
        number = next(numbers)
        context = workspace.context(message_id=number)
        workspace.run_as(context, "write_file", path, content=f"{number}\n")
        time.sleep(0.01)  # the lock is not fair to those who wait for it

    with in_a_tight_loop(act):
        for number in itertools.count():
            workspace.run("write_file", path, content=f"ours {number}\n")
            theirs = [name for name in workspace.entries(path) if re.search(r"-1\d{3}\.json", name)]
            if number > 5 and len(theirs) > 2:
                break

    steps = [read_entry(workspace, path, name) for name in workspace.entries(path)]
    chain = [(step["before"], step["after"]) for step in steps if step]
    ours = [step["message_id"] for step in steps if step and step["message_id"] < 1000]
    assert all(one[1] == next_one[0] for one, next_one in itertools.pairwise(chain))
    assert ours == sorted(ours)
    assert ours
    assert len(chain) > len(ours)


def read_entry(workspace: Workspace, path: Path, name: str) -> dict[str, Any] | None:
    if not name.endswith(".json"):
        return None
    text = (workspace.backups / str(path).lstrip("/") / name).read_text()
    entry: dict[str, Any] = json.loads(text)
    return entry if entry["state"] == "applied" else None

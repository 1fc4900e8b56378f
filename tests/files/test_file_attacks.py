"""A table of attacks on paths; every file task goes through the whole of it.

Each attack is also tried on the program that one would write at first, where it succeeds.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError
from support.file_setup import Workspace, make_workspace

from catalyst_heartbeat.outcome import TaskFailed

SECRET = "secret = 1\n"
STAMP = "20250101_000000"
TASKS: dict[str, dict[str, str]] = {
    "write_file": {"content": "owned = 1\n"},
    "edit_file": {"old_text": "secret", "new_text": "owned"},
    "rollback_file": {},
    "read_file": {},
    "list_backups": {},
}


class Attack(NamedTuple):
    """How it is laid, which path is sent, and whether a naive program falls for it."""

    name: str
    lay: Callable[[Workspace], str]
    naive: Callable[[Workspace, str], bool]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = make_workspace(tmp_path)
    for folder in (workspace.root, workspace.outside):
        (folder / "victim.py").write_text(SECRET)
    (workspace.root / "sub").mkdir()
    monkeypatch.chdir(workspace.outside)
    monkeypatch.setenv("HOME", str(workspace.outside))
    return workspace


def state(workspace: Workspace) -> dict[str, tuple[int, int, bytes]]:
    """Everything that there is, except for the backups: inode, mode, content."""
    found = {}
    for path in sorted(workspace.folder.rglob("*")):
        if path.is_relative_to(workspace.backups):
            continue
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_ino, status.st_mode, content)
    return found


def opens(workspace: Workspace, path: str) -> bool:
    """The naive program checks how the path begins, and opens it."""
    return path.startswith(str(workspace.root)) and bool(Path(path).read_text())


def opens_anything(workspace: Workspace, path: str) -> bool:
    return bool(Path(path).read_text())


def opens_after(change: Callable[[str], str]) -> Callable[[Workspace, str], bool]:
    """The naive program, or what it calls, changes the path before it is opened."""

    def naive(workspace: Workspace, path: str) -> bool:
        return bool(Path(change(path)).read_text())

    return naive


def writes_outside(workspace: Workspace, path: str) -> bool:
    before = state(workspace)
    Path(path).write_text("owned = 1\n")
    changed = {name for name, value in state(workspace).items() if before.get(name) != value}
    return any(name.startswith(str(workspace.outside)) for name in changed)


def breaks_down(workspace: Workspace, path: str) -> bool:
    """The naive program dies of an error that it did not foresee."""
    try:
        opens(workspace, path)
    except OSError:
        return True
    return False


def admits(workspace: Workspace, path: str) -> bool:
    """The naive program lets the path pass."""
    return path.startswith(str(workspace.root))


def admits_extension(workspace: Workspace, path: str) -> bool:
    return any(extension in path.lower() for extension in (".py", ".sh", ".md"))


def hangs(workspace: Workspace, path: str) -> bool:
    """Opening waits for ever for somebody at the other end."""
    code = f"open({path!r}).read()"
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", code], timeout=0.5, check=False)
    except subprocess.TimeoutExpired:
        return True
    return False


def is_an_option(workspace: Workspace, path: str) -> bool:
    """A tool that gets the name takes it for an option."""
    folder, name = os.path.split(path)
    tool = subprocess.run(["cat", name], cwd=folder, capture_output=True, check=False)
    return tool.returncode != 0 and b"option" in tool.stderr


def given(form: str) -> Callable[[Workspace], str]:
    """Return a path of this form; nothing is laid on disk."""

    def lay(workspace: Workspace) -> str:
        return form.format(root=workspace.root, outside=workspace.outside)

    return lay


def named(name: str) -> Callable[[Workspace], str]:
    """Lay a file of this name beneath the root."""

    def lay(workspace: Workspace) -> str:
        (workspace.root / name).write_text(SECRET)
        return f"{workspace.root}/{name}"

    return lay


def linked(name: str, target: str) -> Callable[[Workspace], str]:
    """Lay a symbolic link at the first part of the name."""

    def lay(workspace: Workspace) -> str:
        link = workspace.root / name.split("/")[0]
        link.symlink_to(target.format(root=workspace.root, outside=workspace.outside))
        return f"{workspace.root}/{name}"

    return lay


def lay_sibling(workspace: Workspace) -> str:
    sibling = Path(f"{workspace.root}-evil")
    sibling.mkdir()
    (sibling / "victim.py").write_text(SECRET)
    return f"{sibling}/victim.py"


def lay_root_as_link(workspace: Workspace) -> str:
    workspace.root.rename(workspace.folder / "moved")
    workspace.root.symlink_to(workspace.outside)
    return f"{workspace.root}/victim.py"


def lay_hard_link(workspace: Workspace) -> str:
    os.link(workspace.outside / "victim.py", workspace.root / "hard.py")
    return f"{workspace.root}/hard.py"


def lay_fifo(workspace: Workspace) -> str:
    os.mkfifo(workspace.root / "odd.py")
    return f"{workspace.root}/odd.py"


def lay_socket(workspace: Workspace) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workspace.root / "odd.py"))
    return f"{workspace.root}/odd.py"


def lay_device(workspace: Workspace) -> str:
    try:
        os.mknod(workspace.root / "odd.py", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        (workspace.root / "odd.py").open("rb").close()
    except PermissionError:
        pytest.skip("devices cannot be made here: needs root and CAP_MKNOD")
    return f"{workspace.root}/odd.py"


def reads_without_end(workspace: Workspace, path: str) -> bool:
    with open(path, "rb") as device:
        return len(device.read(3_000_000)) == 3_000_000


def lay_folder(workspace: Workspace) -> str:
    (workspace.root / "odd.py").mkdir()
    return f"{workspace.root}/odd.py"


def lay_setuid(workspace: Workspace) -> str:
    path = named("setuid.py")(workspace)
    Path(path).chmod(stat.S_ISUID | 0o755)
    return path


def lay_descriptor(workspace: Workspace) -> str:
    return f"/proc/self/fd/{os.open(workspace.outside / 'victim.py', os.O_RDONLY)}"


unquoted = opens_after(urllib.parse.unquote)
folded = opens_after(lambda path: unicodedata.normalize("NFKC", path))
cut_at_nul = opens_after(lambda path: path.split("\0")[0])

ATTACKS = [
    Attack("dots that lead out", given("{root}/../outside/victim.py"), opens),
    Attack("dots that lead out from below", given("{root}/sub/../../outside/victim.py"), opens),
    Attack("dots at the start", given("../outside/victim.py"), opens_anything),
    Attack("dots that stay inside", given("{root}/sub/../victim.py"), opens),
    Attack("dots at the end", given("{root}/victim.py/.."), admits),
    Attack("single dot", given("{root}/./victim.py"), opens),
    Attack("empty part", given("{root}//victim.py"), opens),
    Attack("two slashes at the start", given("/{root}/victim.py"), opens_anything),
    Attack("sibling with the same beginning", lay_sibling, opens),
    Attack("the root itself", given("{root}"), admits),
    Attack("the root with a slash", given("{root}/"), admits),
    Attack("outside", given("{outside}/victim.py"), opens_anything),
    Attack("relative", given("victim.py"), opens_anything),
    Attack("empty", given(""), opens_after(lambda path: f"{path}victim.py")),
    Attack("home", given("~/victim.py"), opens_after(os.path.expanduser)),
    Attack("variable", given("$HOME/victim.py"), opens_after(os.path.expandvars)),
    Attack("variable inside", given("{root}/${{PWD}}.py"), admits),
    Attack(
        "url",
        given("file://{outside}/victim.py"),
        opens_after(lambda path: urllib.parse.urlsplit(path).path),
    ),
    Attack(
        "backslashes",
        given("{root}\\..\\outside\\victim.py"),
        opens_after(lambda path: path.replace("\\", "/")),
    ),
    Attack("backslashes inside", given("{root}/..\\victim.py"), admits),
    Attack("percent", given("{root}/%2e%2e/outside/victim.py"), unquoted),
    Attack("percent slash", given("{root}/..%2foutside%2fvictim.py"), unquoted),
    Attack("full-width dots", given("{root}/\uff0e\uff0e/outside/victim.py"), folded),
    Attack("full-width letters", given("{root}/victim.\uff50\uff59"), folded),
    Attack("NUL", given("{outside}/victim.py\0{root}/x.md"), cut_at_nul),
    Attack("NUL at the end", given("{root}/victim.py\0"), cut_at_nul),
    Attack("long name", given("{root}/" + "n" * 253 + ".py"), breaks_down),
    Attack("long path", given("{root}/" + "d/" * 2100 + "x.py"), breaks_down),
    Attack("process folder", given("/proc/self/root{outside}/victim.py"), opens_anything),
    Attack("process working folder", given("/proc/self/cwd/victim.py"), opens_anything),
    Attack("descriptor", lay_descriptor, opens_anything),
    Attack("device folder", given("/dev/fd/0.py"), lambda _, path: os.path.isdir("/dev/fd")),
    Attack("slash at the end", given("{root}/victim.py/"), opens_after(os.path.normpath)),
    Attack("dot at the end", given("{root}/victim.py."), admits_extension),
    Attack("newline at the end", named("line.py\n"), opens),
    Attack("newline inside", named("a\nb.py"), opens),
    Attack("blank at the end", named("blank.py "), opens),
    Attack("blank at the start", named(" blank.py"), opens),
    Attack("tab", named("a\tb.py"), opens),
    Attack("escape", named("\x1b[2Ja.py"), opens),
    Attack("turned round", named("a\u202eyp.sh"), opens),
    Attack("option", named("--version-x.py"), is_an_option),
    Attack("shell", named("$(touch x).py"), opens),
    Attack("glob", named("*.py"), opens),
    Attack("no extension", named("victim"), opens),
    Attack("only an extension", named(".py"), opens),
    Attack("other extension", named("victim.py.txt"), admits_extension),
    Attack("compiled", named("victim.pyc"), admits_extension),
    Attack("capitals", named("victim.PY"), admits_extension),
    Attack("extension of a folder", given("{root}/victim.py/x"), admits_extension),
    Attack("file as a folder", given("{root}/victim.py/x.py"), admits),
    Attack("link", linked("link.py", "{outside}/victim.py"), opens),
    Attack("relative link", linked("link.py", "../outside/victim.py"), opens),
    Attack("absolute link back inside", linked("link.py", "{root}/victim.py"), opens),
    Attack("link as a parent", linked("link/victim.py", "{outside}"), opens),
    Attack("link to the folder itself", linked("link/victim.py", "."), opens),
    Attack("dangling link", linked("link.py", "{outside}/new.py"), writes_outside),
    Attack("looping link", linked("link.py", "link.py"), breaks_down),
    Attack("looping parent", linked("link/x.py", "link"), breaks_down),
    Attack("link to a process", linked("link.py", "/proc/self/cmdline"), opens),
    Attack("root replaced by a link", lay_root_as_link, opens),
    Attack("hard link", lay_hard_link, writes_outside),
    Attack("FIFO", lay_fifo, hangs),
    Attack("socket", lay_socket, breaks_down),
    Attack("device", lay_device, reads_without_end),
    Attack("folder", lay_folder, breaks_down),
    Attack("set-user-ID", lay_setuid, opens),
]
each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=[a.name for a in ATTACKS])


@pytest.mark.slow
@each_attack
@pytest.mark.parametrize("task", TASKS)
def test_no_path_bends_a_task(workspace: Workspace, attack: Attack, task: str) -> None:
    path = attack.lay(workspace)
    before = state(workspace)
    params = dict(TASKS[task])
    if task == "rollback_file":
        params["backup"] = lay_backup(workspace, path)

    with pytest.raises((ValidationError, TaskFailed)) as caught:
        workspace.run(task, path, **params)

    assert SECRET.strip() not in str(caught.value)
    assert state(workspace) == before
    assert not workspace.changelog.exists()


def lay_backup(workspace: Workspace, path: str) -> str:
    """Lay an old backup that fits the path, so that a rollback has something to restore."""
    name = f"{os.path.basename(path)[:200]}.{STAMP}.bak"
    if "\0" not in name:
        (workspace.backups / name).write_text("owned = 1\n")
    return name.replace("\0", "")


@each_attack
def test_the_naive_program_falls_for_it(workspace: Workspace, attack: Attack) -> None:
    path = attack.lay(workspace)

    assert attack.naive(workspace, path)


@pytest.mark.parametrize("task", TASKS)
def test_the_ordinary_path_works(workspace: Workspace, task: str) -> None:
    path = str(workspace.root / "victim.py")
    params = dict(TASKS[task])
    if task == "rollback_file":
        params["backup"] = lay_backup(workspace, path)

    result = workspace.run(task, path, **params)

    owned = b"owned = 1\n" in state(workspace)[path]
    assert owned == (result.change is not None)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("{outside}/victim.py", "beneath an allowed folder"),
        ("{root}/victim.txt", "an allowed extension"),
        ("victim.py", "must be absolute"),
        ("{root}/../x.py", '".."'),
        ("{root}/-x.py", "begin with -"),
    ],
)
def test_a_refusal_names_the_rule_and_what_is_allowed(
    workspace: Workspace, path: str, rule: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        workspace.validate("read_file", given(path)(workspace))

    message = caught.value.errors()[0]["msg"]
    assert rule in message
    assert f".py, .sh, .md files beneath one of: {workspace.root}" in message


def lay_linked_folder(workspace: Workspace, path: Path) -> None:
    folder = workspace.backups / str(path.parent).lstrip("/")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(workspace.outside)


def lay_linked_backup_dir(workspace: Workspace, path: Path) -> None:
    workspace.backups.rename(workspace.folder / "moved")
    workspace.backups.symlink_to(workspace.outside)


def lay_file_for_a_folder(workspace: Workspace, path: Path) -> None:
    (workspace.backups / str(path).split("/")[1]).write_text("in the way")


@pytest.mark.parametrize("lay", [lay_linked_folder, lay_linked_backup_dir, lay_file_for_a_folder])
def test_backups_never_go_where_a_link_leads(
    workspace: Workspace, lay: Callable[[Workspace, Path], None]
) -> None:
    path = workspace.root / "victim.py"
    lay(workspace, path)
    before = state(workspace)

    with pytest.raises(TaskFailed):
        workspace.run("write_file", path, content="owned = 1\n")

    assert state(workspace) == before


def test_a_planted_temporary_name_is_not_written_through(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.root / "victim.py"
    # The random part is foreseen here, as nobody can; the link waits in front of it.
    monkeypatch.setattr("secrets.token_hex", lambda size: "ab" * size)
    (workspace.root / ".catalyst-1-abababab.tmp").symlink_to(workspace.outside / "victim.py")
    before = state(workspace)

    with pytest.raises(TaskFailed, match="exists already"):
        workspace.run("write_file", path, content="owned = 1\n")

    assert state(workspace) == before
    # Control: without O_EXCL and O_NOFOLLOW the link is followed.
    assert writes_outside(workspace, str(workspace.root / ".catalyst-1-abababab.tmp"))

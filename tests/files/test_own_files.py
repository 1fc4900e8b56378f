"""The program's own files need a person, by whatever path they are named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from support.file_setup import Workspace, make_workspace
from support.postgres import require

from catalyst_heartbeat.files import paths
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.tasks import file_operations


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture
def program(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program, installed beneath the allowed root beside another program's heartbeat.py."""
    folder = workspace.root / "program"
    for name in ("catalyst_heartbeat/tasks", "tests", ".venv/lib", ".git/hooks"):
        (folder / name).mkdir(parents=True)
    for name in (
        "task_executor.py",
        "heartbeat.py",
        "catalyst_heartbeat/tasks/base.py",
        "run-heartbeat-public.sh",
    ):
        (folder / name).write_text("")
    (workspace.root / "elsewhere").mkdir()
    monkeypatch.setattr(paths, "PROGRAM_FOLDER", str(folder))
    return folder


OWN_FILES = {
    "program/task_executor.py": "part of this program",
    "program/catalyst_heartbeat/tasks/base.py": "part of this program",
    "program/tests/new.py": "part of this program",
    "program/README.md": "part of this program",
    "program/json.py": "new file",
    "program/sitecustomize.py": "new file",
    "program/deeper/new.py": "new file",
    "program/run-heartbeat-public.sh": "what cron starts",
    "elsewhere/run-heartbeat-public.sh": "what cron starts",
    "program/.venv/lib/site.py": "virtual environment",
    "elsewhere/.venv-dev/x.py": "virtual environment",
    "program/.git/hooks/x.sh": "Git folder",
    "elsewhere/.git/x.md": "Git folder",
    "../backups/x.md": "the backup folder",
    "../state/agent/x.md": "the state folder",
    "../CHANGELOG-AUTO.md": "the changelog",
}


@pytest.mark.parametrize(("name", "why"), OWN_FILES.items())
def test_own_files_need_a_person(workspace: Workspace, program: Path, name: str, why: str) -> None:
    everything = Workspace(
        workspace.folder, workspace.settings._replace(allowed_paths=(str(workspace.folder),))
    )
    path = os.path.normpath(workspace.root / name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    existed = os.path.exists(path)
    model = everything.validate("write_file", path, content="x = 1\n")

    reason = file_operations.approval_for_path(model, everything.settings)
    with pytest.raises(TaskFailed, match="a person must approve this"):
        file_operations.write_file(model, everything.context())

    assert reason is not None
    assert why in reason
    assert os.path.exists(path) == existed
    shown = file_operations.preview(model, everything.context()).bound
    file_operations.write_file(model, everything.context(approved_diff=shown))
    assert Path(path).read_text().startswith("x = 1\n")


def test_the_virtual_environment_needs_a_person_whatever_its_name_is(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, link = workspace.root / "shared-env", workspace.folder / "venv"
    shared.mkdir()
    link.symlink_to(shared)
    model = workspace.validate("write_file", shared / "sitecustomize.py", content="x = 1\n")
    assert file_operations.approval_for_path(model, workspace.settings) is None

    monkeypatch.setattr(paths, "VIRTUAL_ENVIRONMENT", str(link))

    reason = file_operations.approval_for_path(model, workspace.settings)
    assert reason is not None
    assert "virtual environment" in reason


@pytest.mark.parametrize("name", ["program/heartbeat.py", "elsewhere/new.py", "programs.md"])
def test_other_files_are_ordinary(workspace: Workspace, program: Path, name: str) -> None:
    path = workspace.root / name
    model = workspace.validate("write_file", path, content="x = 1\n")

    reason = file_operations.approval_for_path(model, workspace.settings)
    workspace.run("write_file", path, content="x = 1\n")

    assert reason is None


def test_a_file_that_vanished_since_is_not_made_anew_without_approval(
    workspace: Workspace, program: Path
) -> None:
    path = program / "heartbeat.py"
    model = workspace.validate("write_file", path, content="x = 1\n")
    reason = file_operations.approval_for_path(model, workspace.settings)
    path.unlink()

    with pytest.raises(TaskFailed, match="new file"):
        file_operations.write_file(model, workspace.context())

    assert reason is None
    assert not path.exists()


def test_every_file_of_the_repository_is_an_own_file() -> None:
    folder = paths.PROGRAM_FOLDER
    command = ["git", "-C", folder, "ls-files", "--cached", "--others", "--exclude-standard"]
    require(shutil.which("git"), "needs git")
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no Git checkout")

    names = {line.split("/")[0] for line in listed.stdout.splitlines()}

    assert {
        name for name in names if not any(fnmatchcase(name, own) for own in paths.OWN_NAMES)
    } == set()


Bind = Callable[[Path, Path], None]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Mounts a folder or a file at a second place."""
    mounted: list[Path] = []

    def mount(source: Path, target: Path) -> None:
        target.mkdir() if source.is_dir() else target.touch()
        command = ["mount", "--bind", str(source), str(target)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            reason = f"nothing can be mounted here: {made.stderr.strip()}"
            if os.environ.get("REQUIRE_SERVICES") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        mounted.append(target)

    yield mount
    for target in reversed(mounted):
        subprocess.run(["umount", "-l", str(target)], check=True)


MIRRORS = {
    "the whole folder": ("program", "task_executor.py", "part of this program"),
    "the whole folder, a new file": ("program", "json.py", "new file"),
    "the whole folder, a part of the package": (
        "program",
        "catalyst_heartbeat/x.py",
        "part of this",
    ),
    "the package": ("program/catalyst_heartbeat", "cycle.py", "part of this program"),
    "a folder deep in it": ("program/catalyst_heartbeat/tasks", "base.py", "part of this program"),
    "one file": ("program/task_executor.py", "", "part of this program"),
    "the virtual environment": ("program/.venv/lib", "x.py", "virtual environment"),
    "git hooks": ("program/.git/hooks", "x.sh", "Git folder"),
    "the backups": ("../backups", "x.md", "the backup folder"),
    "the state": ("../state", "public_claude/x.md", "the state folder"),
    "what holds the state": ("..", "state/x.md", "the state folder"),
    "the changelog": ("../CHANGELOG-AUTO.md", "", "the changelog"),
    "another installation": ("other", "task_executor.py", "part of this program"),
    "a part of another installation": ("other/catalyst_heartbeat", "x.py", "part of this program"),
}


@pytest.mark.parametrize(("source", "name", "why"), MIRRORS.values(), ids=MIRRORS.keys())
def test_own_files_are_known_behind_a_bind_mount(
    workspace: Workspace, program: Path, bind: Bind, source: str, name: str, why: str
) -> None:
    workspace.changelog.touch()
    (workspace.root / "other/catalyst_heartbeat").mkdir(parents=True)
    (workspace.root / "other/heartbeat_public.py").touch()
    extension = Path(source).suffix
    mirror = workspace.root / f"mir ror{extension}"
    bind(Path(os.path.normpath(workspace.root / source)), mirror)
    path = mirror / name if name else mirror
    model = workspace.validate("write_file", path, content="x = 1\n")

    reason = file_operations.approval_for_path(model, workspace.settings)
    (path.parent).mkdir(exist_ok=True)
    with pytest.raises(TaskFailed, match="a person must approve this"):
        file_operations.write_file(model, workspace.context())

    assert reason is not None
    assert why in reason


def test_other_files_behind_a_bind_mount_are_ordinary(
    workspace: Workspace, program: Path, bind: Bind
) -> None:
    (workspace.root / "elsewhere/tests").mkdir()
    bind(workspace.root / "elsewhere", workspace.root / "mirror")
    bind(program, workspace.root / "again")

    workspace.run("write_file", workspace.root / "mirror/tests/new.py", content="x = 1\n")
    workspace.run("write_file", workspace.root / "again/heartbeat.py", content="x = 1\n")

    assert (program / "heartbeat.py").read_text() == "x = 1\n"
    assert (workspace.root / "elsewhere/tests/new.py").exists()


@pytest.mark.parametrize(
    "beside", ["catalyst_heartbeat", "task_executor.py", "run-heartbeat-public.sh"]
)
def test_another_agents_installation_is_known_by_what_it_holds(
    workspace: Workspace, beside: str
) -> None:
    other = workspace.root / "deep/other"
    (other / "catalyst_heartbeat" if beside == "catalyst_heartbeat" else other).mkdir(parents=True)
    for name in {"heartbeat_public.py", "heartbeat.py", beside} - {"catalyst_heartbeat"}:
        (other / name).touch()
    reasons = {
        name: paths.own_file(str(other / name), workspace.settings)
        for name in (
            "heartbeat_public.py",
            "Task_Executor.py",
            "tests/x.py",
            "new.py",
            "heartbeat.py",
        )
    }

    assert reasons.pop("heartbeat.py") is None
    assert "new file" in (reasons.pop("new.py") or "")
    assert all("part of this program" in (reason or "") for reason in reasons.values()), reasons


@pytest.mark.parametrize("names", [("heartbeat_public.py",), ("task_executor.py", "tests")])
def test_a_like_named_file_of_another_program_is_ordinary(
    workspace: Workspace, names: tuple[str, ...]
) -> None:
    for name in names:
        (workspace.root / name).touch()

    for name in (*names, "new.py"):
        assert paths.own_file(str(workspace.root / name), workspace.settings) is None


def test_an_installation_that_was_moved_is_still_one(workspace: Workspace, program: Path) -> None:
    (program / "heartbeat_public.py").touch()
    program.rename(workspace.root / "moved")

    reason = paths.own_file(str(workspace.root / "moved/task_executor.py"), workspace.settings)

    assert reason is not None


def test_without_proc_a_path_is_still_known(
    workspace: Workspace, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str) -> tuple[str, str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(paths, "location_of_existing", missing)

    assert paths.own_file(str(program / "task_executor.py"), workspace.settings)
    assert paths.own_file(str(program / "heartbeat.py"), workspace.settings) is None


# What a person approved


def test_what_was_approved_is_what_is_done(workspace: Workspace) -> None:
    between = "pass\n" * 40
    path = workspace.write("a.py", f"mode = 'paper'\n{between}size = 1\n")
    model = workspace.validate("edit_file", path, old_text="size = 1", new_text="size = 2")
    shown = file_operations.preview(model, workspace.context()).bound

    path.write_text(f"mode = 'live'\n{between}size = 1\n")
    with pytest.raises(TaskFailed, match="changed after the request was shown"):
        file_operations.edit_file(model, workspace.context(approved_diff=shown))
    kept = path.read_text()
    path.write_text(f"mode = 'paper'\n{between}size = 1\n")
    file_operations.edit_file(model, workspace.context(approved_diff=shown))

    assert kept == f"mode = 'live'\n{between}size = 1\n"
    assert path.read_text() == f"mode = 'paper'\n{between}size = 2\n"
    assert len(workspace.entries(path)) == 2

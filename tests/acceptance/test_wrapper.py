"""run-heartbeat-public.sh in copies of the project whose heartbeat says how it was started.

Real builds are slow, so most tests put a `python3` into PATH that makes a virtual environment
without pip in it, with a module in pip's place that installs nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.docker_engine import wait_for
from support.postgres import PROGRAM_FOLDER

pytestmark = pytest.mark.slow

WRAPPER = "run-heartbeat-public.sh"
BARE = {"HOME": "/root", "PATH": "/usr/bin:/bin"}
HEARTBEAT = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "file": __file__, "evil": "EVIL" in os.environ}))
sys.exit(int(os.environ.get("EXIT_CODE", "0")))
"""
QUICK_PYTHON = """#!/bin/sh
real={real}
for last; do :; done
case "$*" in
*"-m venv"*)
    "$real" -I -m venv --without-pip "$last"
    site=$("$last/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp "$(dirname "$0")/pip.py" "$site"
    {after}
    ;;
*) echo "good $0" ;;
esac
"""
OTHER_PYTHON = """#!/bin/sh
exec {real} -I -c '
import sys
{change}
exec(sys.argv[1])' "$3"
"""


def make_project(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy2(PROGRAM_FOLDER / WRAPPER, folder)
    (folder / "requirements.txt").touch()
    (folder / "heartbeat_public.py").write_text(HEARTBEAT)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "the project")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in whose folder the wrapper has made a real virtual environment."""
    project = make_project(tmp_path_factory.mktemp("built") / "the project")

    result = start([project / WRAPPER])

    assert "making .venv with " in result.stderr
    assert json.loads(result.stdout)["file"] == str(project / "heartbeat_public.py")
    return project


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with what the wrapper calls and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in ("cat", "cp", "dirname", "flock", "mv", "readlink", "rm", "sleep"):
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def start(command: list[Any], cwd: Path | str = "/", **variables: str) -> Any:
    return subprocess.run(
        command, cwd=cwd, env={**BARE, **variables}, capture_output=True, text=True, timeout=120
    )


def quick_python(tools: Path, *, after: str = "", pip: str = "") -> None:
    (tools / "pip.py").write_text(pip)
    install(tools / "python3", QUICK_PYTHON.format(real=shlex.quote(sys.executable), after=after))


def other_python(tools: Path, name: str, change: str) -> None:
    install(tools / name, OTHER_PYTHON.format(real=shlex.quote(sys.executable), change=change))


def install(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def leftovers(project: Path) -> set[str]:
    return {path.name for path in project.glob(".venv*")}


def command_for(way: str, project: Path, elsewhere: Path) -> tuple[list[Any], Path]:
    """Return a command that starts the wrapper in that way, and the folder to start it in."""
    link, second = elsewhere / "heartbeat", elsewhere / "again"
    link.symlink_to(project / WRAPPER)
    second.symlink_to("heartbeat")
    (elsewhere / "folder").symlink_to(project)
    ways: dict[str, tuple[list[Any], Path]] = {
        "absolute path": ([project / WRAPPER], elsewhere),
        "own folder": ([f"./{WRAPPER}"], project),
        "bash and a bare name": (["bash", WRAPPER], project),
        "relative path": ([f"the project/{WRAPPER}"], project.parent),
        "symlink": ([link], Path("/")),
        "relative symlink to a symlink": (["./again"], elsewhere),
        "symlinked folder": ([elsewhere / "folder" / WRAPPER], Path("/")),
    }
    return ways[way]


@pytest.mark.parametrize(
    "way",
    [
        "absolute path",
        "own folder",
        "bash and a bare name",
        "relative path",
        "symlink",
        "relative symlink to a symlink",
        "symlinked folder",
    ],
)
def test_wrapper_finds_its_own_folder(way: str, built: Path, tmp_path: Path) -> None:
    command, cwd = command_for(way, built, tmp_path)

    result = start([*command, "--one", "two words", ""], cwd, CDPATH=str(tmp_path))

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said["arguments"] == ["--one", "two words", ""]
    assert said["file"] == str(built / "heartbeat_public.py")


@pytest.mark.parametrize("code", ["0", "1", "2"])
def test_exit_code_is_the_programs(code: str, built: Path) -> None:
    assert start([built / WRAPPER], EXIT_CODE=code).returncode == int(code)


def test_code_named_by_the_environment_does_not_run(built: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.sh").write_text("export EVIL=1\n")
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['EVIL'] = '1'")
    shell, python = {"BASH_ENV": str(tmp_path / "evil.sh")}, {"PYTHONPATH": str(tmp_path)}

    result = start([built / WRAPPER], **shell, **python)

    assert json.loads(result.stdout)["evil"] is False
    control = start(["bash", "-c", "echo $EVIL"], **shell)
    assert control.stdout == "1\n"
    control = start([built / ".venv/bin/python", built / "heartbeat_public.py"], **python)
    assert json.loads(control.stdout)["evil"] is True


def test_two_that_start_at_once_build_once(project: Path, tools: Path) -> None:
    quick_python(tools, after=f"while [ ! -e '{tools}/go' ]; do sleep 0.01; done")
    processes = [
        subprocess.Popen([project / WRAPPER], env={"PATH": str(tools)}, stderr=-1, stdout=-1)
        for _ in range(2)
    ]

    first = {stream.stderr.readline() for stream in processes if stream.stderr}
    (tools / "go").touch()
    ends = [process.communicate() for process in processes]

    assert sorted(line.split()[1] for line in first) == [b"making", b"waiting"]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(json.loads(stdout)["arguments"] == [] for stdout, _ in ends)
    assert not any(b"making" in stderr for _, stderr in ends)
    assert leftovers(project) == {".venv"}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_killed_build_leaves_nothing_that_counts(
    kind: signal.Signals, project: Path, tools: Path
) -> None:
    quick_python(tools, after=f": > '{tools}/waits'; exec sleep 60")
    process = subprocess.Popen(
        [project / WRAPPER],
        env={"PATH": str(tools)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        # Tests that run in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(kind, signal.SIG_DFL) if kind != signal.SIGKILL else None,
    )
    wait_for((tools / "waits").exists)

    os.killpg(process.pid, kind)
    process.communicate()

    assert process.returncode != 0
    if kind != signal.SIGKILL:
        wait_for(lambda: leftovers(project) == set())
    assert not (project / ".venv").exists()
    quick_python(tools)
    result = start([project / WRAPPER], PATH=str(tools))
    assert result.returncode == 0, result.stderr
    assert leftovers(project) == {".venv"}


def test_changed_requirements_are_installed_once(project: Path, tools: Path) -> None:
    quick_python(tools, pip="import sys; print('installs', open(sys.argv[-1]).read())")
    start([project / WRAPPER], PATH=str(tools))
    (project / "requirements.txt").write_text("tomorrow==2.0\n")

    changed = start([project / WRAPPER], PATH=str(tools))
    same = start([project / WRAPPER], PATH=str(tools))

    assert "installs tomorrow==2.0" in changed.stderr
    assert json.loads(changed.stdout)["arguments"] == []
    assert same.stderr == ""
    assert leftovers(project) == {".venv"}


def test_environment_of_a_removed_python_is_made_anew(project: Path, tools: Path) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/usr/bin/python3.5-that-was-replaced")

    result = start([project / WRAPPER], PATH=str(tools))

    assert "making .venv" in result.stderr
    assert result.returncode == 0


def test_failed_installation_keeps_the_old_environment(project: Path, tools: Path) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))
    quick_python(tools, pip="import sys; sys.exit(2)")
    (project / "requirements.txt").write_text("no-such-package\n")

    result = start([project / WRAPPER], PATH=str(tools))

    assert result.returncode == 1
    assert result.stderr.endswith("cannot install what requirements.txt lists\n")
    assert result.stdout == ""
    assert leftovers(project) == {".venv"}
    assert (project / ".venv/requirements.txt").read_text() == ""


@pytest.mark.parametrize(
    ("pythons", "said"),
    [
        ({}, "Python is missing: apt-get install python3-venv"),
        (
            {"python3": "sys.version_info = (3, 9, 2)"},
            "needs Python 3.10 or newer, found 3.9.2: apt-get install python3.12-venv",
        ),
        (
            {"python3": 'sys.modules["ensurepip"] = None'},
            "python3-venv is missing: apt-get install python3-venv",
        ),
        (
            {"python3.12": 'sys.modules["venv"] = None'},
            "python3.12-venv is missing: apt-get install python3.12-venv",
        ),
        (
            {"python3": 'sys.exit("broken")'},
            "Python is missing: apt-get install python3-venv",
        ),
    ],
)
def test_one_line_says_what_to_install(
    pythons: dict[str, str], said: str, project: Path, tools: Path
) -> None:
    for name, change in pythons.items():
        other_python(tools, name, change)

    result = start([project / WRAPPER], PATH=str(tools))

    assert result.returncode == 1
    assert result.stderr == f"{WRAPPER}: {said}\n"
    assert leftovers(project) == set()


def test_newer_python_beside_one_too_old_is_taken(project: Path, tools: Path) -> None:
    quick_python(tools)
    (tools / "python3").rename(tools / "python3.11")
    other_python(tools, "python3", "sys.version_info = (3, 9, 2)")

    result = start([project / WRAPPER], PATH=str(tools))

    assert result.returncode == 0, result.stderr
    assert f"making .venv with {tools}/python3.11" in result.stderr

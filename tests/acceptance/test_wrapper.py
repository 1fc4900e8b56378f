"""run-heartbeat-public.sh in copies of the project whose heartbeat says how it was started.

Real builds are slow, so most tests put a `python3` into PATH that makes what looks like a virtual
environment: its `python` installs nothing, and is the tests' own in all else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.docker_engine import wait_for
from support.postgres import PROGRAM_FOLDER, require

pytestmark = pytest.mark.slow

WRAPPER = "run-heartbeat-public.sh"
BARE = {"HOME": "/root", "PATH": "/usr/bin:/bin"}
HEARTBEAT = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "file": __file__, "evil": "EVIL" in os.environ}))
sys.exit(int(os.environ.get("EXIT_CODE", "0")))
"""
# Starts a process that lives on, and ends when a file says so.
BUSY_HEARTBEAT = """
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
while not pathlib.Path(__file__).with_name("end").exists():
    time.sleep(0.01)
"""
QUICK_PYTHON = """#!/bin/sh
case "$*" in
*"-m venv"*)
    for last; do :; done
    mkdir -p "$last/bin"
    cp "${{0%/*}}/venv-python" "$last/bin/python"
    {after}
    ;;
*) echo "good $0" ;;
esac
"""
VENV_PYTHON = """#!/bin/sh
case "$*" in
*"-m ensurepip"*) ;;
*"-m pip"*)
    for last; do :; done
    {pip}
    ;;
*) exec {real} "$@" ;;
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
    lock(folder)
    (folder / "heartbeat_public.py").write_text(HEARTBEAT)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "the project")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in whose folder the wrapper has made a real environment with one package."""
    folder = tmp_path_factory.mktemp("built")
    project = make_project(folder / "the project")
    lock(project, make_wheel(folder, "yesterday"))

    result = start([project / WRAPPER], **only_from(folder))

    assert "making .venv with " in result.stderr
    assert json.loads(result.stdout)["file"] == str(project / "heartbeat_public.py")
    return project


@pytest.fixture
def to_change(built: Path) -> Iterator[Path]:
    """The built project, whose requirements and lock are put back afterwards."""
    files = [built / "requirements.txt", built / "requirements.lock"]
    before = [file.read_bytes() for file in files]
    yield built
    for file, content in zip(files, before, strict=True):
        file.write_bytes(content)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with what the wrapper calls and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in ("chmod", "cp", "flock", "mkdir", "mv", "readlink", "rm", "sleep", "sync"):
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def start(command: list[Any], cwd: Path | str = "/", **variables: str) -> Any:
    return subprocess.run(
        command, cwd=cwd, env={**BARE, **variables}, capture_output=True, text=True, timeout=120
    )


def quick_python(tools: Path, *, after: str = "", pip: str = ":") -> None:
    install(tools / "python3", QUICK_PYTHON.format(after=after))
    real = shlex.quote(sys.executable)
    install(tools / "venv-python", VENV_PYTHON.format(real=real, pip=pip))


def other_python(tools: Path, name: str, change: str) -> None:
    install(tools / name, OTHER_PYTHON.format(real=shlex.quote(sys.executable), change=change))


def install(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def lock(project: Path, *packages: str, name: str = "requirements") -> None:
    """Let the project need these packages, each `NAME==VERSION SHA256`."""
    lines = [package.split() for package in packages]
    (project / f"{name}.txt").write_text("".join(f"{pin}\n" for pin, _ in lines))
    (project / f"{name}.lock").write_text(
        "# How it is made.\n"
        + "".join(f"{pin} \\\n    --hash=sha256:{sha}\n" for pin, sha in lines)
    )


def make_wheel(folder: Path, name: str) -> str:
    """Make a package of one empty module; return what `lock` takes."""
    described = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{described}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{described}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{described}/RECORD"] = "".join(f"{file},,\n" for file in files)
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return f"{name}==1.0 {hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def only_from(folder: Path) -> dict[str, str]:
    """Return the variables that let pip look there alone, whatever is set on this machine."""
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


@contextmanager
def upgrading(project: Path) -> Iterator[None]:
    """Hold what `flock .lock git pull` holds; BlockingIOError where that would have to wait."""
    with (project / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def started(project: Path, path: str = BARE["PATH"]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [project / WRAPPER], env={"PATH": path}, stdout=-1, stderr=-1, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def busy_cycle(project: Path) -> Iterator[None]:
    """Run a cycle that is at work until this block ends."""
    (project / "heartbeat_public.py").write_text(BUSY_HEARTBEAT)
    with started(project) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            (project / "heartbeat_public.py").write_text(HEARTBEAT)
            yield
            (project / "end").touch()
            process.wait()
        finally:
            os.kill(child, signal.SIGKILL)


def line_from(stream: Any) -> str:
    return str(stream.readline())


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


def test_a_lock_that_a_neighbour_can_take_stops_nobody(built: Path) -> None:
    (built / ".lock").unlink()
    folder = os.open(built, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)

        result = start(["bash", "-c", 'umask 0; exec "$0"', built / WRAPPER])
    finally:
        os.close(folder)

    assert (result.returncode, result.stderr) == (0, "")
    assert (built / ".lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_an_upgrade_made_first_is_closed_to_others(project: Path, tools: Path) -> None:
    quick_python(tools)
    (project / ".lock").touch(0o644)

    result = start([project / WRAPPER], PATH=str(tools))

    assert result.returncode == 0, result.stderr
    assert (project / ".lock").stat().st_mode & 0o777 == 0o600


def test_a_path_without_tools_is_said_to_be_that(built: Path) -> None:
    result = start(["/bin/bash", "-p", built / WRAPPER], PATH="$HOME/bin:$PATH")

    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "flock is not in PATH ($HOME/bin:$PATH)" in line


def test_a_changed_lock_is_installed_once(project: Path, tools: Path) -> None:
    quick_python(tools, pip=f"cp \"$last\" '{tools}/installed'")
    start([project / WRAPPER], PATH=str(tools))
    lock(project, f"tomorrow==2.0 {'0' * 64}")

    changed = start([project / WRAPPER], PATH=str(tools))
    same = start([project / WRAPPER], PATH=str(tools))

    assert (tools / "installed").read_text() == (project / "requirements.lock").read_text()
    assert "making .venv" in changed.stderr
    assert json.loads(changed.stdout)["arguments"] == []
    assert same.stderr == ""
    assert leftovers(project) == {".venv"}


def test_the_demo_has_an_environment_of_its_own(project: Path, tools: Path) -> None:
    lock(project, f"server==1.0 {'0' * 64}", name="requirements-demo")
    quick_python(tools, pip=f"cp \"$last\" '{tools}/installed'")

    result = start([project / WRAPPER, "--demo"], PATH=str(tools))

    assert json.loads(result.stdout)["arguments"] == ["--demo"]
    assert "server==1.0" in (tools / "installed").read_text()
    assert leftovers(project) == {".venv-demo"}


@pytest.mark.parametrize(
    "spoil",
    [
        "rm .venv/built-from",
        ": > .venv/built-from",
        "rm .venv/bin/python",
        "ln -sf /usr/bin/python3.5-that-was-replaced .venv/bin/python",
    ],
)
def test_environment_that_is_not_complete_is_made_anew(
    spoil: str, project: Path, tools: Path
) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))
    subprocess.run(["sh", "-ec", spoil], cwd=project, check=True)

    result = start([project / WRAPPER], PATH=str(tools))

    assert "making .venv" in result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("package", "variables", "why"),
    [
        ("tomorrow==1.0", {}, "the bytes of tomorrow==1.0 are not the locked ones"),
        (
            "missing==1.0",
            {},
            "Could not find a version that satisfies the requirement missing==1.0"
            " (from versions: none)",
        ),
        (
            "missing==1.0",
            {"PIP_NO_INDEX": "0", "PIP_RETRIES": "1", "PIP_INDEX_URL": "http://127.0.0.1:1/"},
            "no network: the package index does not answer",
        ),
    ],
)
def test_what_cannot_be_installed_leaves_the_old_environment(
    package: str, variables: dict[str, str], why: str, to_change: Path, tmp_path: Path
) -> None:
    make_wheel(tmp_path, "tomorrow")
    before = (to_change / "requirements.lock").read_bytes()
    lock(to_change, f"{package} {'0' * 64}")

    result = start([to_change / WRAPPER], **only_from(tmp_path) | variables)

    assert result.returncode == 1
    assert result.stdout == ""
    making, said = result.stderr.splitlines()
    assert "making .venv" in making
    assert said == f"{WRAPPER}: cannot make {to_change}/.venv from requirements.lock: {why}"
    assert leftovers(to_change) == {".venv"}
    assert_goes_on_with(before, to_change)


def assert_goes_on_with(before: bytes, project: Path) -> None:
    """Start with the lock and the requirements that there were before."""
    (project / "requirements.lock").write_bytes(before)
    (project / "requirements.txt").write_text("yesterday==1.0\n")

    result = start([project / WRAPPER])

    assert result.returncode == 0
    assert result.stderr == ""
    subprocess.run([project / ".venv/bin/python", "-c", "import yesterday"], check=True)


@pytest.mark.parametrize("line", ["yesterday==2.0", "yesterday==1.0\ntomorrow==1.0  # new", "a==1"])
def test_a_lock_that_does_not_fit_is_refused(line: str, to_change: Path) -> None:
    before = (to_change / "requirements.lock").read_bytes()
    (to_change / "requirements.txt").write_text(line)
    lacking = line.splitlines()[-1].split()[0]

    result = start([to_change / WRAPPER])

    assert result.returncode == 1
    assert result.stderr == (
        f"{WRAPPER}: requirements.lock does not fit requirements.txt: {lacking} is not in it;"
        " its first lines say how it is made\n"
    )
    assert_goes_on_with(before, to_change)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements.lock"])
def test_a_missing_lock_is_named(name: str, to_change: Path) -> None:
    before = (to_change / "requirements.lock").read_bytes()
    (to_change / name).unlink()

    result = start([to_change / WRAPPER])

    assert result.returncode == 1
    assert result.stderr == (
        f"{WRAPPER}: requirements.txt and requirements.lock are needed:"
        " git checkout requirements.{txt,lock}\n"
    )
    assert_goes_on_with(before, to_change)


# A mount that nobody else sees and that ends with the script.
FULL_DISK = """
mount -t tmpfs -o size={size} none "$1"
cp -a "$2/." "$1"
cd "$1"
echo '# changed' >> requirements.lock
code=0
./run-heartbeat-public.sh || code=$?
echo $code .venv*
cp "$2/requirements.lock" .
./run-heartbeat-public.sh
"""


@pytest.mark.parametrize("room", ["1", "18"])
def test_a_full_disk_leaves_the_old_environment(room: str, built: Path, tmp_path: Path) -> None:
    may = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    require(may.returncode == 0, f"no mounts of one's own: {may.stderr.strip()}")
    used = sum(path.lstat().st_blocks * 512 for path in built.rglob("*"))
    script = FULL_DISK.format(size=used + int(room) * 2**20)

    result = start(
        ["unshare", "--mount", "sh", "-ec", script, "sh", tmp_path, built],
        PATH=os.environ["PATH"],
        **only_from(built.parent),
    )

    assert result.returncode == 0, result.stderr
    refused, went_on = result.stdout.splitlines()
    assert refused == "1 .venv"
    assert json.loads(went_on)["arguments"] == []
    _, said = result.stderr.splitlines()
    assert said.endswith(
        f"cannot make {tmp_path}/.venv from requirements.lock: no space left on the disk"
    )


def test_power_that_goes_before_all_is_on_the_disk_leaves_nothing_that_counts(
    project: Path, tools: Path
) -> None:
    quick_python(tools)
    (tools / "sync").unlink()
    install(tools / "sync", f"#!/bin/sh\necho \"$@\" > '{tools}/synced'\nkill -KILL $PPID\n")

    killed = start([project / WRAPPER], PATH=str(tools))

    assert killed.returncode != 0
    assert (tools / "synced").read_text() == "--file-system .venv.new\n"
    assert [path.name for path in (project / ".venv.new").iterdir()] == ["bin"]
    assert leftovers(project) == {".venv.new"}
    install(tools / "sync", "#!/bin/sh\n")
    result = start([project / WRAPPER], PATH=str(tools))
    assert "making .venv" in result.stderr
    assert json.loads(result.stdout)["arguments"] == []
    assert leftovers(project) == {".venv"}


def test_an_upgrade_waits_for_a_cycle_and_other_cycles_do_not(project: Path, tools: Path) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))

    with busy_cycle(project):
        with pytest.raises(BlockingIOError), upgrading(project):
            pass
        other = start([project / WRAPPER])
        assert (other.returncode, other.stderr) == (0, "")

    with upgrading(project):
        pass


def test_the_lock_ends_with_the_cycle_and_not_with_what_it_started(
    project: Path, tools: Path
) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))
    (project / "heartbeat_public.py").write_text(BUSY_HEARTBEAT)
    (project / "end").touch()

    with started(project) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.wait()

    with upgrading(project):
        os.kill(child, signal.SIGKILL)


def test_a_start_waits_for_an_upgrade_and_runs_what_came_with_it(
    project: Path, tools: Path
) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))

    with upgrading(project):
        waits = subprocess.Popen([project / WRAPPER], env=BARE, stdout=-1, stderr=-1, text=True)
        assert "waiting for an upgrade" in line_from(waits.stderr)
        (project / WRAPPER).rename(tools / "yesterday.sh")
        install(project / WRAPPER, "#!/bin/sh\necho tomorrow\n")
    said, errors = waits.communicate()

    assert (waits.returncode, said, errors) == (0, "tomorrow\n", "")


def test_a_new_environment_waits_for_a_cycle_of_the_old_version(project: Path, tools: Path) -> None:
    quick_python(tools)
    start([project / WRAPPER], PATH=str(tools))

    with busy_cycle(project):
        lock(project, f"tomorrow==2.0 {'0' * 64}")
        with started(project, str(tools)) as waits:
            assert "waiting for" in line_from(waits.stderr)
            (project / "end").touch()
            said, errors = waits.communicate()

    assert waits.returncode == 0
    assert "making .venv" in errors
    assert json.loads(said)["arguments"] == []


def test_a_start_gives_up_on_an_upgrade_without_end(project: Path) -> None:
    text = (project / WRAPPER).read_text()
    (project / WRAPPER).write_text(text.replace("WAIT_SECONDS=60", "WAIT_SECONDS=0.1"))

    with upgrading(project):
        result = start([project / WRAPPER])

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[1:] == [
        f"{WRAPPER}: {project} is still locked after 0.1 s; lslocks shows by which process"
    ]


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

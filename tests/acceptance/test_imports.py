"""Nothing beside the program can be imported by it, whatever its name and whoever made it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.postgres import PROGRAM_FOLDER, Database, send

from task_executor import WHITELIST

# Tried by the interpreter or by libraries only now and then.
MORE = {
    "__future__", "OpenSSL", "brotli", "catalyst_heartbeat", "chardet", "email_validator",
    "encodings", "readline", "simplejson", "sitecustomize", "socks", "usercustomize", "winreg",
}  # fmt: skip
MARKER = "import os; open(os.environ['MARKER'], 'a').write(__name__ + '\\n')\n"
RECORDER = """
import sys
class Recorder:
    def find_spec(self, name, path=None, target=None):
        print("asked for", name.partition(".")[0], file=sys.stderr)
sys.meta_path.insert(0, Recorder())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy of the program in a folder of its own."""
    folder = tmp_path / "program"
    shutil.copytree(PROGRAM_FOLDER / "catalyst_heartbeat", folder / "catalyst_heartbeat")
    for name in ("heartbeat_public.py", "task_executor.py"):
        shutil.copy(PROGRAM_FOLDER / name, folder)
    return folder


def commands(program: Path) -> list[list[str]]:
    """Return every way in which the program is started, a task by hand of each kind among them."""
    heartbeat, by_hand = str(program / "heartbeat_public.py"), str(program / "task_executor.py")
    options: tuple[list[str], ...] = (
        [],
        ["--check"],
        ["--dry-run"],
        ["--status"],
        ["--approvals"],
        ["--list-tasks"],
    )
    tasks = [name for name, task in WHITELIST.items() if not task.params.model_fields]
    return [
        *([heartbeat, *option] for option in options),
        *([by_hand, name] for name in tasks),
        [by_hand, "service_health", '{"port": 5000}'],
        [by_hand, "docker_logs", '{"service": "trading"}'],
    ]


def fill(database: Database, folder: Path) -> None:
    """Send a task of every kind, a request for approval among them."""
    path = folder / "services" / "made.py"
    params = {
        "service_health": {"port": 5000}, "docker_logs": {"service": "trading"},
        "catalyst_logs": {"logfile": "x"}, "system_logs": {"service": "docker"},
        "restart_service": {"service": "trading"}, "read_file": {"filepath": str(path)},
        "write_file": {"filepath": str(path), "content": "x = 1\n"},
        "edit_file": {"filepath": str(path), "old_text": "1", "new_text": "2"},
        "rollback_file": {"filepath": str(path)}, "list_backups": {"filepath": str(path)},
    }  # fmt: skip
    for name in [*WHITELIST, "unknown"]:
        send(database, f"TASK: {name}\nPARAMS: {json.dumps(params.get(name, {}))}")


@pytest.mark.slow
def test_no_file_beside_the_program_is_ever_imported(
    program: Path, database: Database, environment: dict[str, str], tmp_path: Path
) -> None:
    marker = tmp_path / "imported"
    environment |= {"MARKER": str(marker), "HOME": str(tmp_path), "HEALTH_PORTS": "5000-5001"}
    fill(database, tmp_path)
    names = set(MORE)
    for command in commands(program):
        recorded = subprocess.run(
            [sys.executable, "-I", "-c", RECORDER, *command],
            env=environment, cwd=program, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        names |= set(re.findall(r"^asked for (\w+)$", recorded.stderr, re.M))
    for number, name in enumerate(sorted(names - {"task_executor"})):
        if (program / name).exists() or (program / f"{name}.py").exists():
            continue
        if number % 2:
            (program / f"{name}.py").write_text(MARKER)
        else:
            (program / name).mkdir()
            (program / name / "__init__.py").write_text(MARKER)
    (program / "catalyst_heartbeat.py").write_text(MARKER)
    fill(database, tmp_path)

    assert len(names) > 150
    for isolated in (["-I"], []):
        for command in commands(program):
            subprocess.run(
                [sys.executable, *isolated, *command],
                env=environment, cwd=program, capture_output=True, timeout=120, check=False,
            )  # fmt: skip
            assert not marker.exists(), (command, marker.read_text())


def test_a_file_on_the_path_would_be_imported(program: Path, tmp_path: Path) -> None:
    """The control: what a script beside them imports is theirs."""
    (program / "json.py").write_text(MARKER)
    (program / "naive.py").write_text("import json\n")

    subprocess.run(
        [sys.executable, program / "naive.py"],
        env={"MARKER": str(tmp_path / "imported")},
        check=True,
    )

    assert (tmp_path / "imported").read_text() == "json\n"

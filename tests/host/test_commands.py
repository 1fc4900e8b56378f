"""run_command: the environment of children, and children that do not want to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from support.docker_engine import alarm, context, settings_for, wait_for

from catalyst_heartbeat.host.command import KEPT_BYTES, run_command
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.tasks.base import NoParams
from catalyst_heartbeat.tasks.system_health import disk_space

SHELL = "/bin/sh"
MEGABYTE = 1024 * 1024


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    """Say whether the process runs; one that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_command_ends_with_its_code_and_both_streams() -> None:
    command = run_command([SHELL, "-c", "echo out; echo err >&2; exit 3"], soon())

    assert (command.code, command.stdout, command.stderr) == (3, "out\n", "err\n")
    assert command.output == "out\nerr"


def test_a_command_ended_by_a_signal_has_its_number_negative() -> None:
    assert run_command([SHELL, "-c", "kill -SEGV $$"], soon()).code == -signal.SIGSEGV


def test_a_missing_program_is_one_sentence() -> None:
    with pytest.raises(TaskFailed, match=r"^cannot run /nowhere/tool: No such file or directory$"):
        run_command(["/nowhere/tool"], soon())


def test_nothing_of_the_environment_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "PATH": "/tmp/planted",
        "LANG": "C",
        "LC_ALL": "C",
        "TZ": "Asia/Perth",
        "LD_PRELOAD": "/tmp/evil.so",
        "LD_LIBRARY_PATH": "/tmp",
        "PYTHONPATH": "/tmp",
        "PYTHONSTARTUP": "/tmp/evil.py",
        "BASH_ENV": "/tmp/evil.sh",
        "ENV": "/tmp/evil.sh",
        "DOCKER_HOST": "tcp://evil:2375",
        "PGPASSWORD": "secret",
        "RESEARCH_DATABASE_URL": "postgresql://a:secret@b/c",
        "BASH_FUNC_df%%": "() { echo planted; }",
        "SYSTEMD_PAGER": "/tmp/evil",
    }
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    for name, value in planted.items():
        if name != "LD_PRELOAD":  # the loader would complain about it in this process's children
            monkeypatch.setenv(name, value)

    seen = dict(
        line.split("=", 1) for line in run_command(["/usr/bin/env"], soon()).stdout.splitlines()
    )
    naive = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout

    assert set(seen) == {"PATH", "LANG", "HOME", "TZ"}
    assert (seen["LANG"], seen["TZ"]) == ("C.UTF-8", "UTC")
    assert "planted" not in seen["PATH"]
    assert "secret" in naive


def test_a_planted_library_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/planted.so")

    ours = run_command([SHELL, "-c", "echo fine"], soon())
    naive = subprocess.run([SHELL, "-c", "echo fine"], capture_output=True, text=True, check=True)

    assert ours.stderr == ""
    assert "planted.so" in naive.stderr


def test_a_tool_planted_in_the_path_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "df"
    planted.write_text("#!/bin/sh\necho planted planted planted planted 1% planted\n")
    planted.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    ours = disk_space(NoParams(), context(settings_for("")))
    naive = subprocess.run(["df", "-h", "/"], capture_output=True, text=True, check=True).stdout

    assert ours.value["mounted_on"] == "/"
    assert "planted" in naive


@pytest.mark.parametrize("hostile", ["; id", "$(id)", "`id`", "&& id", "*", "{0}", "%s", "\n id"])
def test_no_argument_is_read_by_a_shell(hostile: str) -> None:
    assert run_command(["/bin/echo", hostile], soon()).stdout == f"{hostile}\n"


def test_a_child_cannot_read_this_process_input() -> None:
    assert run_command(["/bin/cat"], soon()).stdout == ""


@pytest.mark.parametrize("end", ["deadline", "alarm"])
def test_a_child_that_ignores_term_and_its_children_are_killed_at_the_limit(
    tmp_path: Path, end: str
) -> None:
    script = f"trap '' TERM HUP INT; sleep 1000 & echo $$ $! > {tmp_path}/pids; echo seen; wait"

    with (
        pytest.raises(TaskFailed, match="sh did not finish in time") as failure,
        alarm(0.5 if end == "alarm" else 60),
    ):
        run_command([SHELL, "-c", script], soon(0.5 if end == "deadline" else 60))

    assert failure.value.output == "seen"
    for pid in (tmp_path / "pids").read_text().split():
        wait_for(lambda pid=pid: not alive(int(pid)))  # type: ignore[misc]


def test_a_background_child_of_a_finished_command_is_killed(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid"

    command = run_command([SHELL, "-c", script], soon())

    assert command.code == 0
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_a_child_in_a_session_of_its_own_that_keeps_the_pipes_open_holds_nobody_up(
    tmp_path: Path,
) -> None:
    daemon = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(1000)
    os._exit(0)
print("parent done", flush=True)
time.sleep(0.3)
"""
    command = run_command(python(daemon), soon(600))

    assert command.stdout == "parent done\n"
    left = int((tmp_path / "pid").read_text())
    assert alive(left)
    os.kill(left, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_gigabyte_on_one_pipe_and_nothing_on_the_other_takes_no_memory(stream: str) -> None:
    code = f"""
import sys
block = b"x" * {MEGABYTE}
pipe = sys.{stream}.buffer
pipe.write(b"first\\n")
for _ in range(1024):
    pipe.write(block)
pipe.write(b"\\nlast\\n")
"""
    tracemalloc.start()

    command = run_command(python(code), soon(120))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    seen = getattr(command, stream)
    assert command.code == 0
    assert seen.startswith("first\n")
    assert seen.endswith("\nlast\n")
    assert "bytes left out" in seen
    assert peak < 8 * MEGABYTE


def test_a_line_that_never_ends_is_cut_at_the_deadline() -> None:
    with pytest.raises(TaskFailed, match="did not finish in time") as failure:
        run_command(["/bin/sh", "-c", "while :; do printf xxxxxxxx; done"], soon(0.7))

    assert re.fullmatch(r"\.\.\. \d+ bytes left out \.\.\.", failure.value.output)


@pytest.mark.parametrize("shift", range(0, 40, 7))
def test_no_line_is_cut_where_bytes_are_left_out(shift: int) -> None:
    secret = "é-hunter2-of-a-command"
    code = f"""
print("x" * {shift})
for number in range({4 * KEPT_BYTES // len(secret)}):
    print({secret!r}, number)
"""

    first, *lines = run_command(python(code), soon()).stdout.splitlines()

    (gap,) = [number for number, line in enumerate(lines) if "bytes left out" in line]
    assert first == "x" * shift
    assert all(line.startswith(f"{secret} ") for line in lines[:gap] + lines[gap + 1 :])
    assert int(lines[gap - 1].split()[-1]) == gap - 1


def test_a_child_that_closes_its_pipes_and_stays_is_killed_at_the_deadline() -> None:
    with pytest.raises(TaskFailed, match="did not finish in time"):
        run_command([SHELL, "-c", "exec >&- 2>&-; sleep 1000"], soon(0.5))


def test_hundreds_of_commands_leave_no_process_and_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(200):
        run_command(["/bin/true"], soon())

    assert len(os.listdir("/proc/self/fd")) == before

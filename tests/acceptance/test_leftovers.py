"""Nothing that the tests start outlives them, whichever of their processes is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.docker_engine import wait_for
from support.postgres import PROGRAM_FOLDER

# Tests that end here leave a process of another session behind, and a file.
RUN = """
import os, subprocess, sys, tempfile, time
from support import warden
guard, first = warden.guard, os.getpid()
def late(*args):
    while os.getppid() == first:
        time.sleep(0.01)
    guard(*args)
if "late" in sys.argv:
    warden.guard = late
warden.enclose()
left = subprocess.Popen(["setsid", "sleep", "1000"])
folders = tempfile.gettempdir(), os.environ["TESTS_MEMORY"]
for folder in folders:
    open(os.path.join(folder, "left"), "w")
print(os.getpid(), os.getppid(), left.pid, *folders, flush=True)
sys.stdin.readline()
sys.exit(5)
"""


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, request.param],
        env={**os.environ, "PYTHONPATH": str(PROGRAM_FOLDER / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process


@pytest.mark.parametrize(
    ("run", "killed", "number", "code"),
    [
        ("", "nobody", signal.SIGKILL, 5),
        ("", "tests", signal.SIGKILL, 128 + signal.SIGKILL),
        ("", "warden", signal.SIGKILL, 128 + signal.SIGKILL),
        ("", "first", signal.SIGKILL, -signal.SIGKILL),
        ("late", "first", signal.SIGKILL, -signal.SIGKILL),
        ("", "first", signal.SIGTERM, 128 + signal.SIGTERM),
        ("", "group", signal.SIGKILL, -signal.SIGKILL),
    ],
    indirect=["run"],
)
def test_a_killed_run_leaves_no_process_and_no_folder(
    run: subprocess.Popen[str], killed: str, number: int, code: int
) -> None:
    assert run.stdin is not None
    assert run.stdout is not None
    tests, warden, left, *folders = run.stdout.readline().split()
    pids = {"tests": int(tests), "warden": int(warden), "first": run.pid, "group": -run.pid}

    if killed == "nobody":
        run.stdin.write("\n")
        run.stdin.flush()
    else:
        os.kill(pids[killed], number)
    ended = run.wait()

    for pid in (tests, warden, left):
        wait_for(lambda pid=pid: not Path("/proc", pid).exists())  # type: ignore[misc]
    wait_for(lambda: not any(Path(folder).exists() for folder in folders))
    assert ended == code

"""At least a hundred cycles killed at random moments, with a database that refuses now and then."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from support.cycles import (
    ACCEPT_REPORTS,
    REFUSE_REPORTS,
    Cycles,
    Health,
    add_marker,
    end_leases,
    finals,
    markers,
    open_tasks,
    outcome,
    settle,
)
from support.postgres import PROGRAM_FOLDER, Database, send

KILLS = 100
SEED = 20260102
OPEN_TASKS = 4
# What a report on a change may say, and how often the change may have been made.
TRUTHS = {("success", 1), ("failed", 0), ("unknown", 0), ("unknown", 1)}


@dataclass(frozen=True)
class Nursery:
    """A process that starts cycles, one at a time."""

    stdin: IO[str]
    stdout: IO[str]

    def cycle(self, killed_after: float) -> bool:
        """Kill a cycle after so many seconds; return whether it was still at work then."""
        pid = self.ask()
        time.sleep(killed_after)
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(self.ask())

    def ask(self) -> int:
        self.stdin.write("\n")
        self.stdin.flush()
        return int(self.stdout.readline())


@contextmanager
def nursery(cycles: Cycles) -> Iterator[Nursery]:
    with (cycles.folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", PROGRAM_FOLDER / "tests/support/steps.py", "many"],
            env={"HOME": "/root", "PATH": "/usr/bin:/bin", **cycles.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Nursery(process.stdin, process.stdout)
        process.stdin.close()


@pytest.mark.slow
def test_a_hundred_random_kills_lose_nothing_and_repeat_no_change(
    database: Database, cycles: Cycles, health: Health, tmp_path: Path
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - it must be repeatable
    cycles.environment["HEALTH_PORTS"] = health.port
    changes: dict[int, Path] = {}
    reads: list[int] = []

    def fill_up() -> None:
        for _ in range(OPEN_TASKS - len(open_tasks(database))):
            if chance.random() < 0.4:
                body = f'TASK: service_health\nPARAMS: {{"port": {health.port}}}'
                reads.append(send(database, body))
            else:
                path = tmp_path / "services" / f"{len(changes)}.md"
                changes[send(database, add_marker(path))] = path

    with nursery(cycles) as started:
        kills, longest = 0, 0.5
        while kills < KILLS:
            fill_up()
            refusing = chance.random() < 0.2
            if refusing:
                database.execute(REFUSE_REPORTS)
            killed = started.cycle(chance.uniform(0, longest))
            if refusing:
                database.execute(ACCEPT_REPORTS)
            end_leases(database)
            kills += killed
            longest *= 1.03 if killed else 0.9  # whatever a cycle takes on this machine
    settle(cycles, database, most=2 * OPEN_TASKS)

    said = {id: outcome(database, id) for id in (*changes, *reads)}
    made = {id: markers(path) for id, path in changes.items()}
    assert {(said[id], made[id]) for id in changes} <= TRUTHS
    assert {said[id] for id in reads} <= {"success", "unknown"}
    succeeded = sum(said[id] == "success" for id in reads)
    assert succeeded <= health.requests <= 3 * len(reads)
    in_order = [finals(database, id)[0]["id"] for id in sorted(said)]
    assert in_order == sorted(in_order)
    assert "Traceback" not in (tmp_path / "log").read_text()

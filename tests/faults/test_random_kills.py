"""At least a hundred cycles killed at random moments, with a database that refuses now and then."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

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
from support.postgres import Database, send

KILLS = 100
SEED = 20260102
OPEN_TASKS = 4
# What a report on a change may say, and how often the change may have been made.
TRUTHS = {("success", 1), ("failed", 0), ("unknown", 0), ("unknown", 1)}


def killed(cycles: Cycles, after: float) -> tuple[bool, str]:
    """Kill a cycle after so many seconds; return whether it was still at work, and its log."""
    cycle = cycles.start()
    time.sleep(after)
    cycle.send_signal(signal.SIGKILL)
    ended = cycle.end()
    return ended.returncode == -signal.SIGKILL, ended.stderr


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

    kills, longest = 0, 0.5
    while kills < KILLS:
        fill_up()
        refusing = chance.random() < 0.2
        if refusing:
            database.execute(REFUSE_REPORTS)
        at_work, log = killed(cycles, chance.uniform(0, longest))
        if refusing:
            database.execute(ACCEPT_REPORTS)
        end_leases(database)
        assert "Traceback" not in log
        kills += at_work
        longest *= 1.03 if at_work else 0.9  # whatever a cycle takes on this machine
    settle(cycles, database, most=2 * OPEN_TASKS)

    said = {id: outcome(database, id) for id in (*changes, *reads)}
    made = {id: markers(path) for id, path in changes.items()}
    assert {(said[id], made[id]) for id in changes} <= TRUTHS
    assert {said[id] for id in reads} <= {"success", "unknown"}
    succeeded = sum(said[id] == "success" for id in reads)
    assert succeeded <= health.requests <= 3 * len(reads)
    in_order = [finals(database, id)[0]["id"] for id in sorted(said)]
    assert in_order == sorted(in_order)

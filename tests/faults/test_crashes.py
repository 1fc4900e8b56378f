"""The kill matrix: SIGKILL at every step, for a read-only task, a file change and restarts.

What happened is counted where it happens: requests that a service got, markers in a file, starts
of a container. Each row says at which steps one cycle after the other is killed, what the one
final report says in the end, and how often the task had its effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cycles import (
    Cycles,
    Health,
    add_marker,
    end_leases,
    finals,
    markers,
    outcome,
    settle,
)
from support.docker_engine import Engine, RunContainer
from support.postgres import Database, send

CLAIMED = "after the claim"
BEFORE_RUN = "before the run"
AFTER_RUN = "after the run"
BEFORE_REPORT = "before the report"
AFTER_REPORT = "after the report"
BEFORE_DELIVERY = "before the delivery"
AFTER_DELIVERY = "after the delivery"
BEFORE_EXIT = "before the rest"
TAKEN_OVER = "after the take-over"
FOUND_OUT = "after the finding"
RELEASED = "after the release"

READ_ONLY = [
    ([CLAIMED], "success", 1),
    ([BEFORE_RUN], "success", 1),
    ([AFTER_RUN], "success", 2),
    ([BEFORE_REPORT], "success", 2),
    ([AFTER_REPORT], "success", 1),
    ([BEFORE_EXIT], "success", 1),
    ([AFTER_RUN, TAKEN_OVER], "success", 2),
    ([AFTER_RUN, FOUND_OUT, RELEASED], "success", 2),
    ([AFTER_RUN, AFTER_RUN], "success", 3),
    ([AFTER_RUN, AFTER_RUN, AFTER_RUN], "unknown", 3),
    ([AFTER_RUN, AFTER_RUN, AFTER_RUN, BEFORE_REPORT, AFTER_REPORT], "unknown", 3),
]
CHANGE = [
    ([CLAIMED], "failed", 0),
    ([BEFORE_RUN], "failed", 0),
    (["before the swap"], "failed", 0),
    (["before the renaming"], "failed", 0),
    (["after the renaming"], "success", 1),
    (["before the mark in the history"], "success", 1),
    (["before the changelog"], "success", 1),
    ([AFTER_RUN], "success", 1),
    ([BEFORE_REPORT], "success", 1),
    ([AFTER_REPORT], "success", 1),
    ([BEFORE_EXIT], "success", 1),
    ([CLAIMED, TAKEN_OVER], "failed", 0),
    (["before the renaming", FOUND_OUT], "failed", 0),
    (["after the renaming", TAKEN_OVER, FOUND_OUT, BEFORE_REPORT], "success", 1),
    ([AFTER_RUN, AFTER_REPORT], "success", 1),
]
RESTART = [
    ([CLAIMED], "failed", 0),
    ([BEFORE_RUN], "failed", 0),
    (["before the restart"], "failed", 0),
    (["after the restart"], "success", 1),
    ([AFTER_RUN], "success", 1),
    ([BEFORE_REPORT, TAKEN_OVER, FOUND_OUT, BEFORE_REPORT], "success", 1),
    ([AFTER_REPORT], "success", 1),
]
SAYS_STARTED = "echo started; while :; do sleep 1; done"
# Two services: how often each was restarted.
RESTART_ALL = [
    ([BEFORE_RUN], "failed", (0, 0)),
    (["after the restart"], "failed", (1, 0)),
    (["after the restart 2"], "success", (1, 1)),
    ([AFTER_RUN, TAKEN_OVER, FOUND_OUT], "success", (1, 1)),
    ([AFTER_REPORT], "success", (1, 1)),
]
# While the database refuses reports, and then while they are delivered.
OUTBOX = [
    ("before the writing of what is kept", []),
    ("after the keeping", []),
    ("before the writing of what is kept 2", []),
    ("before the sync of the outbox 3", []),
    ("after the keeping 2", []),
    ("after the keeping 2", [BEFORE_DELIVERY]),
    ("after the keeping 2", [AFTER_DELIVERY]),
    ("after the keeping 2", [AFTER_DELIVERY, AFTER_DELIVERY]),
    ("after the keeping 2", ["before the sync of the outbox"]),
]


def kill_at_each(steps: list[str], cycles: Cycles, database: Database) -> None:
    for step in steps:
        end_leases(database)
        cycles.kill(step)


def names(rows: list[tuple[list[str], str, Any]]) -> list[str]:
    return [", ".join(steps) for steps, _, _ in rows]


@pytest.mark.parametrize(("steps", "verdict", "requests"), READ_ONLY, ids=names(READ_ONLY))
def test_a_read_only_task_runs_until_it_is_reported(
    database: Database,
    cycles: Cycles,
    health: Health,
    steps: list[str],
    verdict: str,
    requests: int,
) -> None:
    cycles.environment["HEALTH_PORTS"] = health.port
    sent = send(database, f'TASK: service_health\nPARAMS: {{"port": {health.port}}}')
    behind = send(database, "TASK: disk_space")

    kill_at_each(steps, cycles, database)
    settle(cycles, database)
    cycles.run()

    assert outcome(database, sent) == verdict
    assert health.requests == requests
    assert outcome(database, behind) == "success"


@pytest.mark.parametrize(("steps", "verdict", "changes"), CHANGE, ids=names(CHANGE))
def test_a_file_is_changed_at_most_once_and_the_report_says_whether(
    database: Database, cycles: Cycles, tmp_path: Path, steps: list[str], verdict: str, changes: int
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = send(database, add_marker(path))
    behind = send(database, "TASK: disk_space")

    kill_at_each(steps, cycles, database)
    settle(cycles, database)
    cycles.run()

    assert outcome(database, sent) == verdict
    assert markers(path) == changes
    assert outcome(database, behind) == "success"
    assert path.read_text() == "marker\n" * changes + "END"
    assert [child.name for child in path.parent.iterdir()] == ["notes.md"]
    assert (tmp_path / "CHANGELOG-AUTO.md").exists() is bool(changes)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "verdict", "restarts"), RESTART, ids=names(RESTART))
def test_a_service_is_restarted_at_most_once_and_the_report_says_whether(
    database: Database,
    cycles: Cycles,
    engine: Engine,
    run_container: RunContainer,
    steps: list[str],
    verdict: str,
    restarts: int,
) -> None:
    cycles.environment["DOCKER_HOST"] = engine.host
    container = run_container("catalyst-trading", SAYS_STARTED, "--stop-signal=KILL")
    sent = send(database, 'TASK: restart_service\nPARAMS: {"service": "trading"}')
    behind = send(database, "TASK: disk_space")

    kill_at_each(steps, cycles, database)
    settle(cycles, database)
    cycles.run()

    assert outcome(database, sent) == verdict
    assert engine.docker("logs", container).count("started") == 1 + restarts
    assert outcome(database, behind) == "success"


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "verdict", "restarts"), RESTART_ALL, ids=names(RESTART_ALL))
def test_all_services_are_restarted_at_most_once_and_the_report_says_which(
    database: Database,
    cycles: Cycles,
    engine: Engine,
    run_container: RunContainer,
    steps: list[str],
    verdict: str,
    restarts: tuple[int, int],
) -> None:
    services = ("trading", "scanner")
    cycles.environment.update(DOCKER_HOST=engine.host, TRADING_SERVICES=",".join(services))
    containers = [
        run_container(f"catalyst-{service}", SAYS_STARTED, "--stop-signal=KILL")
        for service in services
    ]
    sent = send(database, "TASK: restart_all_services")

    kill_at_each(steps, cycles, database)
    settle(cycles, database)

    assert outcome(database, sent) == verdict
    starts = [engine.docker("logs", container).count("started") for container in containers]
    assert starts == [1 + count for count in restarts]
    (report,) = finals(database, sent)
    named = [service for service, count in zip(services, restarts, strict=True) if not count]
    assert verdict == "success" or f"not up: {', '.join(named)}" in report["body"]


# For what they hold: the whole one is kept, then the short one.
REFUSE_ROWS = (
    "ALTER TABLE claude_messages ADD CONSTRAINT no CHECK (msg_type <> 'response') NOT VALID"
)
ACCEPT_ROWS = "ALTER TABLE claude_messages DROP CONSTRAINT no"


@pytest.mark.parametrize(("keeping", "delivering"), OUTBOX)
def test_a_report_on_its_way_through_the_outbox_is_stored_once(
    database: Database, cycles: Cycles, tmp_path: Path, keeping: str, delivering: list[str]
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = send(database, add_marker(path))
    database.execute(REFUSE_ROWS)

    cycles.kill(keeping)
    database.execute(ACCEPT_ROWS)
    kill_at_each(delivering, cycles, database)
    settle(cycles, database)
    cycles.run()

    assert outcome(database, sent) == "success"
    assert markers(path) == 1
    left = [path.suffix for path in (tmp_path / "state").glob("*/outbox/*")]
    # What a dead process left half written goes once it is certain that it is dead.
    assert left == ([".new"] if keeping == "before the writing of what is kept 2" else [])


def test_a_queue_that_retries_after_a_crash_would_change_the_file_twice(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    """The negative control: rescue by time alone, which is what most queues do."""
    path = tmp_path / "services" / "notes.md"
    sent = send(database, add_marker(path))

    cycles.kill(AFTER_RUN)
    database.execute("UPDATE claude_messages SET status = 'pending' WHERE id = %s", (sent,))
    cycles.run()

    assert markers(path) == 2

"""When a cycle stops: signals, limits, a switched-off agent, and the state that it leaves."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cycles import (
    Cycles,
    Health,
    add_marker,
    end,
    lock_is_waited_for,
    markers,
    no_claims,
    outcome,
)
from support.docker_engine import wait_for
from support.postgres import Database, message, messages, send, state

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_the_running_task_finish_and_no_other_begin(
    database: Database, cycles: Cycles, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "services" / "notes.md"
    running, waiting = send(database, add_marker(path)), send(database, "TASK: disk_space")

    with cycles.held("before the swap") as process:
        process.send_signal(number)
        process.send_signal(number)
    finished = end(process)

    assert finished.returncode == 0, finished.stderr
    assert f"signal {number.value}: no further task is claimed" in finished.stderr
    assert outcome(database, running) == "success"
    assert markers(path) == 1
    assert message(database, waiting)["status"] == "pending"
    assert state(database)["current_mode"] == "sleeping"
    cycles.run()
    assert outcome(database, waiting) == "success"


def test_a_signal_during_a_subprocess_does_not_reach_it(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    """Ctrl-C in a terminal goes to the whole foreground group; a task has its own."""
    sent = send(database, "TASK: disk_space")

    with cycles.held("before the reading of a command") as process:
        process.send_signal(signal.SIGINT)
    finished = end(process)

    assert finished.returncode == 0
    assert outcome(database, sent) == "success"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_claim_ends_the_cycle_with_0(
    database: Database, cycles: Cycles, number: signal.Signals
) -> None:
    sent = send(database, "TASK: disk_space")

    with cycles.held("before the waking") as process:
        process.send_signal(number)
    finished = end(process)

    assert finished.returncode == 0, finished.stderr
    assert message(database, sent)["status"] == "pending"
    assert state(database)["current_mode"] == "sleeping"


def test_a_signal_while_a_report_is_being_stored_gives_the_claim_that_comes_with_it_back(
    database: Database, cycles: Cycles
) -> None:
    first, second = send(database, "TASK: disk_space"), send(database, "TASK: disk_space")

    with ExitStack() as locked:
        with cycles.held("before the report") as process:
            locked.enter_context(no_claims(database))
        wait_for(lambda: lock_is_waited_for(database))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "no further task is claimed" not in process.stderr.readline():
            pass
    finished = end(process)

    assert finished.returncode == 0
    assert outcome(database, first) == "success"
    assert f"#{second}: given back, the cycle ends" in finished.stderr
    assert message(database, second)["status"] == "pending"
    cycles.run()
    assert outcome(database, second) == "success"


def test_without_handling_the_signal_the_task_would_die_unreported(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    """The negative control: the same signal, before the cycle has taken care of it."""
    send(database, "TASK: disk_space")

    with cycles.held("before the cycle") as process:
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: process.poll() is not None)

    assert end(process).returncode == -signal.SIGTERM


def test_so_many_tasks_run_in_one_cycle_and_the_rest_in_the_next(
    database: Database, cycles: Cycles
) -> None:
    rejected = send(database, "nonsense")
    sent = [send(database, "TASK: disk_space") for _ in range(5)]

    def left() -> int:
        return len(messages(database, msg_type="task", status="pending"))

    counts = [(cycles.run(MAX_TASKS_PER_RUN="2").returncode, left()) for _ in range(3)]

    assert counts == [(0, 3), (0, 1), (0, 0)]
    assert outcome(database, rejected) == "rejected"
    assert [outcome(database, id) for id in sent] == ["success"] * 5


@pytest.mark.slow
def test_no_task_is_claimed_when_the_cycles_time_is_over(
    database: Database, cycles: Cycles
) -> None:
    first, second = send(database, "TASK: disk_space"), send(database, "TASK: disk_space")

    with cycles.held("after the run", RUN_SECONDS="3") as process:
        time.sleep(3.1)  # the clock that counts is the process's own
    finished = end(process)

    assert finished.returncode == 0
    assert outcome(database, first) == "success"
    assert message(database, second)["status"] == "pending"


@pytest.mark.parametrize("mode", ["paused", "retired"])
def test_a_switched_off_agent_does_nothing_and_keeps_its_mode(
    database: Database, cycles: Cycles, mode: str
) -> None:
    cycles.run()
    sent = send(database, "TASK: disk_space")
    before = message(database, sent)
    database.execute("UPDATE claude_state SET current_mode = %s, last_wake_at = NULL", (mode,))

    finished = cycles.run()

    assert finished.returncode == 0
    assert f"public_claude is {mode}: nothing done" in finished.stderr
    assert message(database, sent) == before
    assert (state(database)["current_mode"], len(messages(database))) == (mode, 1)
    assert state(database)["last_wake_at"] is not None

    database.execute("UPDATE claude_state SET current_mode = 'sleeping'")
    cycles.run()
    assert outcome(database, sent) == "success"


@pytest.mark.parametrize("mode", ["paused", "retired"])
def test_an_agent_switched_off_in_mid_cycle_claims_no_more(
    database: Database, cycles: Cycles, mode: str
) -> None:
    running, waiting = send(database, "TASK: disk_space"), send(database, "TASK: disk_space")

    with cycles.held("before the run") as process:
        database.execute("UPDATE claude_state SET current_mode = %s", (mode,))
    finished = end(process)

    assert finished.returncode == 0
    assert outcome(database, running) == "success"
    assert message(database, waiting)["status"] == "pending"
    assert state(database)["current_mode"] == mode


def test_the_state_row_is_what_a_monitor_expects(
    database: Database, cycles: Cycles, health: Health
) -> None:
    assert cycles.run().returncode == 0
    idle = state(database)
    assert (idle["current_mode"], idle["status_message"]) == ("sleeping", "Nothing to do")
    assert idle["last_wake_at"] is not None
    assert idle["last_poll_at"] is not None
    assert (idle["last_action_at"], idle["last_error"], idle["last_error_at"]) == (None,) * 3

    send(database, f'TASK: service_health\nPARAMS: {{"port": {health.port}}}')
    with cycles.held("before the run", HEALTH_PORTS=health.port) as process:
        assert state(database)["current_mode"] == "awake"
    end(process)
    acted = state(database)
    assert acted["current_mode"] == "sleeping"
    assert acted["status_message"] == "Executed 1 tasks, 0 others settled without running"
    assert acted["last_action_at"] is not None
    assert acted["error_count_today"] == 0

    stale = "SELECT count(*) FROM claude_messages WHERE to_agent = 'public_claude' AND {}"
    assert database.execute(stale.format("status = 'pending'")) == [(0,)]

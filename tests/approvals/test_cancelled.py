"""A sender takes a task back: it does not run, its request leaves the phone, no report is owed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.approval_setup import Desk, opened_desk
from support.cycles import ACCEPT_REPORTS, REFUSE_REPORTS, Cycles, end, outcome
from support.postgres import PROGRAM_FOLDER, Database, message, reports, send

CANCEL = "UPDATE claude_messages SET status = 'cancelled' WHERE id = %s RETURNING id"
Cancel = Callable[[int], list[tuple[int]]]


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


@pytest.fixture(params=["open", "roles"])
def roles(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "roles")


@pytest.fixture
def cancel(database: Database, roles: bool) -> Cancel:
    """Return a function that takes a task back, as anybody can or as only its sender may."""
    sender = database
    if roles:
        database.execute((PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text())
        sender = Database(database.url.replace("//postgres@", "//big_bro@"))
    return lambda task: sender.execute(CANCEL, (task,))


def test_a_pending_task_that_is_taken_back_does_not_run(desk: Desk, cancel: Cancel) -> None:
    task, behind = send(desk.database, "TASK: list_tasks"), send(desk.database, "TASK: list_tasks")

    cancel(task)
    desk.cycle()

    assert message(desk.database, task)["status"] == "cancelled"
    assert reports(desk.database, task) == []
    assert desk.verdict(behind) == "success"


def test_a_request_that_is_taken_back_leaves_the_phone_with_the_next_cycle(
    desk: Desk, cancel: Cancel
) -> None:
    task, card = desk.ask()

    cancel(task)
    desk.cycle()
    desk.set(card, "status = 'approved'")  # a tap on what the phone still showed
    desk.cycle()

    assert message(desk.database, card["id"])["processed_at"] is not None
    assert message(desk.database, task)["status"] == "cancelled"
    assert desk.runs(task) == 0
    assert [report["data"]["final"] for report in reports(desk.database, task)] == [False]


@pytest.mark.parametrize("step", ["before the run", "before the report"])
def test_a_task_that_runs_already_is_not_taken_back(
    step: str, roles: bool, database: Database, cycles: Cycles, cancel: Cancel
) -> None:
    """A sender may set what waits; what is at work goes on, and its report comes."""
    task, behind = send(database, "TASK: list_tasks"), send(database, "TASK: list_tasks")

    with cycles.held(step) as process:
        changed = cancel(task)
    end(process)

    assert changed == ([] if roles else [(task,)])
    assert [outcome(database, id) for id in (task, behind)] == ["success"] * 2


def test_the_report_of_a_task_that_was_taken_back_too_late_is_delivered_later(
    database: Database, cycles: Cycles, roles: bool, cancel: Cancel
) -> None:
    task = send(database, "TASK: list_tasks")
    database.execute(REFUSE_REPORTS)
    cycles.run()

    cancel(task)
    database.execute(ACCEPT_REPORTS)
    cycles.run()

    assert outcome(database, task) == "success"

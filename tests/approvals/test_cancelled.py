"""A sender takes a task back: it does not run, its request leaves the phone, no report is owed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.approval_setup import Desk, opened_desk
from support.cycles import Cycles, end, outcome
from support.postgres import PROGRAM_FOLDER, Database, message, reports, send

CANCEL = "UPDATE claude_messages SET status = 'cancelled' WHERE id = %s"


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


@pytest.fixture(params=["open", "roles"])
def cancel(request: pytest.FixtureRequest, desk: Desk) -> Callable[[int], None]:
    """Return a function that takes a task back, as anybody can or as only its sender may."""
    sender = desk.database
    if request.param == "roles":
        roles = PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql"
        desk.database.execute(roles.read_text())
        sender = Database(desk.database.url.replace("//postgres@", "//big_bro@"))

    def run(task: int) -> None:
        sender.execute(CANCEL, (task,))

    return run


def test_a_pending_task_that_is_taken_back_does_not_run(
    desk: Desk, cancel: Callable[[int], None]
) -> None:
    task, behind = send(desk.database, "TASK: list_tasks"), send(desk.database, "TASK: list_tasks")

    cancel(task)
    desk.cycle()

    assert message(desk.database, task)["status"] == "cancelled"
    assert reports(desk.database, task) == []
    assert desk.verdict(behind) == "success"


def test_a_request_that_is_taken_back_leaves_the_phone_with_the_next_cycle(
    desk: Desk, cancel: Callable[[int], None]
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


def test_a_task_that_runs_already_is_not_taken_back(database: Database, cycles: Cycles) -> None:
    """A sender may set what waits; what is at work belongs to its claim."""
    roles = PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql"
    database.execute(roles.read_text())
    sender = Database(database.url.replace("//postgres@", "//big_bro@"))
    task = send(database, "TASK: list_tasks")

    with cycles.held("before the run") as process:
        changed = sender.execute(f"{CANCEL} RETURNING id", (task,))
    end(process)

    assert changed == []
    assert outcome(database, task) == "success"

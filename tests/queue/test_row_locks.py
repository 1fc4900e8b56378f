"""Rows that another login keeps locked: each is left for a later cycle, and holds up no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.cycles import Cycles, add_marker, end, markers, outcome
from support.postgres import PROGRAM_FOLDER, Database, decide, escalations, message, send

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.settings import Settings
from task_executor import WHITELIST

pytestmark = pytest.mark.slow

ROLES = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text()
ENLARGE = """
UPDATE claude_messages
   SET data = (SELECT jsonb_build_object('x', string_agg(md5(n::text), ''))
                 FROM generate_series(1, 4000) AS n)
 WHERE id = ANY(%s)
"""
TASKS = ("disk_space", "memory_usage", "list_tasks")
# A lock that is waited for costs so long, and then the cycle.
LIMIT = 'STATEMENT_LIMIT="1s"'


def login(database: Database, name: str) -> Database:
    return Database(database.url.replace("//postgres@", f"//{name}@"))


@pytest.fixture
def names(database: Database) -> dict[str, str]:
    """Run roles.sql: each agent locks only what it may change. Return a cycle's settings."""
    database.execute(ROLES)
    return {
        "RESEARCH_DATABASE_URL": login(database, "public_claude").url,
        "TASK_SENDERS": "big_bro,dev_claude",
    }


@contextmanager
def locked(database: Database, name: str, rows: list[int]) -> Iterator[None]:
    """Keep rows locked in a session of that agent."""
    with login(database, name).cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM claude_messages WHERE id = ANY(%s) FOR UPDATE", (rows,))
        assert len(cursor.fetchall()) == len(rows)
        yield


@pytest.mark.parametrize("sender", ["big_bro", "craig_desktop"])
def test_locked_tasks_that_are_only_to_be_refused_hold_up_nobody(
    sender: str, database: Database, cycles: Cycles, names: dict[str, str]
) -> None:
    refused = [send(database, "TASK: list_tasks", from_agent=sender) for _ in range(4)]
    database.execute(ENLARGE, (refused,))
    urgent = send(database, "TASK: list_tasks", from_agent="dev_claude", priority="urgent")

    with locked(database, sender, refused):
        cycle = cycles.run(LIMIT, **names)

    assert cycle.returncode == 0, cycle.stderr
    assert "ERROR" not in cycle.stderr
    assert outcome(database, urgent) == "success"
    assert {message(database, task)["status"] for task in refused} == {"pending"}
    assert cycles.run(**names).returncode == 0
    assert {outcome(database, task) for task in refused} == {"rejected"}


@pytest.mark.parametrize("holder", ["big_bro", "craig_mobile"])
@pytest.mark.parametrize("decision", ["approved", "denied", "expired"])
def test_locked_tasks_that_wait_for_approval_hold_up_nobody(
    decision: str, holder: str, database: Database, cycles: Cycles, names: dict[str, str]
) -> None:
    names["TASKS_REQUIRING_APPROVAL"] = ",".join(TASKS)
    asked = [send(database, f"TASK: {name}") for name in TASKS]
    assert cycles.run(**names).returncode == 0
    cards = [escalations(database, task)[0] for task in asked]
    for card in cards:
        if decision == "expired":
            late = "UPDATE claude_messages SET expires_at = now() WHERE id = %s"
            database.execute(late, (card["id"],))
        else:
            decide(database, card, decision)
    urgent = send(database, "TASK: db_agent_status", from_agent="dev_claude", priority="urgent")
    rows = asked if holder == "big_bro" else [card["id"] for card in cards]

    with locked(database, holder, rows):
        cycle = cycles.run(LIMIT, **names)

    assert cycle.returncode == 0, cycle.stderr
    assert "ERROR" not in cycle.stderr
    assert outcome(database, urgent) == "success"
    assert {message(database, task)["status"] for task in asked} == {"escalated"}
    assert cycles.run(**names).returncode == 0
    verdict = {"approved": "success"}.get(decision, decision)
    assert {outcome(database, task) for task in asked} == {verdict}


def test_a_task_that_is_locked_while_it_is_at_work_is_reported_later_and_holds_up_nobody(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    """Its sender gets the lock where he asked for it while the claim was written."""
    path = tmp_path / "services" / "notes.md"
    sent, behind = send(database, add_marker(path)), send(database, "TASK: list_tasks")
    with ExitStack() as stack:
        with cycles.held("before the report") as process:
            stack.enter_context(locked(database, "postgres", [sent]))
        first = end(process)
        later = send(database, "TASK: list_tasks")
        second = cycles.run()

    assert (first.returncode, second.returncode) == (1, 1)
    assert f"#{sent}: its report still waits in " in second.stderr
    assert [outcome(database, task) for task in (behind, later)] == ["success"] * 2
    assert cycles.run().returncode == 0
    assert outcome(database, sent) == "success"
    assert markers(path) == 1


def test_a_request_that_is_locked_is_withdrawn_later(
    database: Database, cycles: Cycles, names: dict[str, str]
) -> None:
    asked = [send(database, f"TASK: unknown_{number}") for number in range(2)]
    cycles.run(**names)
    cards = [escalations(database, task)[0]["id"] for task in asked]
    taken_back = "UPDATE claude_messages SET status = 'cancelled' WHERE id = ANY(%s)"
    database.execute(taken_back, (asked,))

    with locked(database, "craig_mobile", cards[:1]):
        cycle = cycles.run(LIMIT, **names)
    left = [message(database, card)["status"] for card in cards]
    cycles.run(**names)

    assert "ERROR" not in cycle.stderr
    assert left == ["pending", "expired"]
    assert message(database, cards[0])["status"] == "expired"


def test_tasks_that_wait_are_ended_only_while_the_cycle_may_go_on(
    database: Database, cycles: Cycles, agent: Connection, settings: Settings
) -> None:
    asked = [send(database, f"TASK: unknown_{number}") for number in range(3)]
    cycles.run()
    for task in asked:
        decide(database, escalations(database, task)[0], "denied")

    _, ended = decisions.settle(Agent(settings, agent, WHITELIST), iter([True, False]).__next__)

    assert ended == 1
    assert [message(database, task)["status"] for task in asked] == [
        "processed", "escalated", "escalated"
    ]  # fmt: skip

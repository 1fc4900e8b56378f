"""A report that brings the next claim with it, in one transaction: what `finish_and_claim_next` may
do to the queue, and that the report never depends on the claim."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cycles import (
    Cycles,
    add_marker,
    end_leases,
    finals,
    lose_the_next_answer,
    markers,
    no_claims,
    outcome,
    settle,
)
from support.postgres import Database, message, on_every_schema, send
from support.transitions import claim, finish, finish_and_claim, nothing_to_claim, take_over

from catalyst_heartbeat.queue import connection
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.connection import Database as Connection


def statuses(database: Database) -> list[str]:
    return [
        status
        for (status,) in database.execute(
            "SELECT status FROM claude_messages WHERE msg_type = 'task' ORDER BY id"
        )
    ]


@on_every_schema
def test_the_next_claim_is_what_the_ordinary_one_would_have_been(
    database: Database, agent: Connection
) -> None:
    sent = [send(database, "TASK: disk_space", priority=name) for name in ("high", "low", "normal")]
    held = claim(agent)

    ours, following = finish_and_claim(agent, held)

    assert ours
    assert following is not None
    assert (following.id, following.message.attempt, following.message.reported) == (
        sent[2],
        1,
        False,
    )
    assert following.token != held.token
    assert message(database, sent[2])["data"]["claim"]["token"] == following.token
    assert statuses(database) == ["processed", "pending", "processing"]
    assert len(finals(database, sent[0])) == 1
    assert nothing_to_claim(agent)


def test_an_empty_queue_brings_no_claim(database: Database, agent: Connection) -> None:
    sent = send(database, "TASK: disk_space")

    assert finish_and_claim(agent, claim(agent)) == (True, None)
    assert len(finals(database, sent)) == 1


@on_every_schema
def test_whoever_lost_the_claim_gets_no_other(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    lost_task, _ = send(database, "TASK: disk_space"), send(database, "TASK: disk_space")
    lost = claim(agent)
    end_leases(database)
    held = take_over(sibling)
    assert held is not None

    assert finish_and_claim(agent, lost) == (False, None)
    assert statuses(database) == ["processing", "pending"]
    assert finish(sibling, held)
    assert finish_and_claim(agent, lost) == (False, None)
    assert statuses(database) == ["processed", "pending"]
    assert len(finals(database, lost_task)) == 1


@pytest.mark.parametrize("mode", ["paused", "retired"])
def test_an_agent_that_is_switched_off_meanwhile_reports_and_claims_no_more(
    database: Database, agent: Connection, mode: str
) -> None:
    for _ in range(2):
        send(database, "TASK: disk_space")
    agent_state.wake(agent, "craig_mobile")
    held = claim(agent)
    database.execute("UPDATE claude_state SET current_mode = %s", (mode,))

    assert finish_and_claim(agent, held) == (True, None)
    assert statuses(database) == ["processed", "pending"]


def test_another_task_at_work_keeps_the_next_one_waiting(
    database: Database, agent: Connection
) -> None:
    for _ in range(2):
        send(database, "TASK: disk_space")
    held = claim(agent)
    send(database, "TASK: disk_space", status="processing")

    assert finish_and_claim(agent, held) == (True, None)
    assert statuses(database) == ["processed", "pending", "processing"]


def test_a_final_report_that_is_there_already_costs_only_the_claim(
    database: Database, agent: Connection
) -> None:
    sent = [send(database, "TASK: disk_space") for _ in range(2)]
    held = claim(agent)
    planted = {"from_agent": "public_claude", "msg_type": "response", "reply_to_id": sent[0]}
    send(database, "fake", **planted, data={"final": True})

    assert finish_and_claim(agent, held) == (True, None)
    assert statuses(database) == ["processed", "pending"]
    assert len(finals(database, sent[0])) == 1


def test_a_claim_that_the_database_refuses_does_not_hold_up_the_report(
    database: Database, agent: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that claims wait for is held by somebody who does not let go."""
    sent = [send(database, "TASK: disk_space") for _ in range(2)]
    held = claim(agent)
    monkeypatch.setattr(connection, "STATEMENT_LIMIT", "300ms")

    with no_claims(database):
        assert finish_and_claim(agent, held) == (True, None)
        assert statuses(database) == ["processed", "pending"]
    assert len(finals(database, sent[0])) == 1


def test_an_answer_that_was_lost_costs_neither_the_report_nor_the_claim(
    database: Database, agent: Connection
) -> None:
    sent = [send(database, "TASK: disk_space") for _ in range(2)]
    held = claim(agent)
    lose_the_next_answer(agent)

    ours, following = finish_and_claim(agent, held)

    assert ours
    assert following is not None
    assert (following.id, following.message.attempt) == (sent[1], 1)
    assert statuses(database) == ["processed", "processing"]
    assert len(finals(database, sent[0])) == 1
    assert finish(agent, following)


@pytest.mark.parametrize(
    ("step", "verdict", "changes"),
    [("before the report with the next claim", "success", 1),
     ("after the report with the next claim", "failed", 0)],
)  # fmt: skip
def test_a_kill_around_it_leaves_the_next_task_unclaimed_or_not_started(
    database: Database, cycles: Cycles, tmp_path: Path, step: str, verdict: str, changes: int
) -> None:
    path = tmp_path / "services" / "notes.md"
    first, change = send(database, "TASK: disk_space"), send(database, add_marker(path))

    cycles.kill(step)
    settle(cycles, database)

    assert outcome(database, first) == "success"
    assert outcome(database, change) == verdict
    assert markers(path) == changes

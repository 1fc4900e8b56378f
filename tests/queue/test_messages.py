"""Each transition on the real SQL, and what a lost claim may still write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.cycles import end_leases, finals
from support.postgres import Database, message, on_every_schema, reports, send, state
from support.transitions import (
    REPORT,
    TERMS,
    ask,
    claim,
    finish,
    in_every_way,
    take_over,
    use_approval,
)

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.queue import claims, endings, listing
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.claims import Claim
from catalyst_heartbeat.queue.connection import Database as Connection


@on_every_schema
@in_every_way
def test_the_report_and_the_end_of_the_claim_are_one_transaction(
    database: Database, agent: Connection, finish: Finish
) -> None:
    sent = send(database, "TASK: disk_space", priority="high", thread_id=77)
    held = claim(agent)

    assert finish(agent, held)

    (report,) = reports(database, sent)
    assert message(database, sent)["status"] == "processed"
    assert message(database, sent)["processed_at"] is not None
    assert {name: report[name] for name in ("from_agent", "to_agent", "priority", "thread_id")} == {
        "from_agent": "public_claude",
        "to_agent": "big_bro",
        "priority": "high",
        "thread_id": 77,
    }
    assert (report["status"], report["expires_at"], report["body"]) == (
        "pending",
        None,
        REPORT.body,
    )


def test_a_report_answers_in_the_tasks_own_thread_and_a_known_priority(
    database: Database, agent: Connection
) -> None:
    sent = send(database, "TASK: disk_space", priority="as soon as you can")

    finish(agent, claim(agent))

    (report,) = reports(database, sent)
    assert (report["thread_id"], report["priority"]) == (sent, "normal")


@on_every_schema
@in_every_way
def test_a_report_that_is_sent_twice_is_stored_once(
    database: Database, agent: Connection, finish: Finish
) -> None:
    sent = send(database, "TASK: disk_space")
    held = claim(agent)

    assert [finish(agent, held), finish(agent, held)] == [True, True]
    assert len(finals(database, sent)) == 1


@on_every_schema
@in_every_way
def test_whoever_lost_the_claim_writes_nothing(
    database: Database, agent: Connection, sibling: Connection, finish: Finish
) -> None:
    sent = send(database, "TASK: disk_space")
    lost = claim(agent)
    end_leases(database)
    held = take_over(sibling)
    assert held is not None
    before = message(database, sent)

    assert not finish(agent, lost)
    assert not ask(agent, lost)
    assert not endings.close(agent, lost.id, lost.token)
    assert not endings.release(agent, lost.id, lost.token)
    assert message(database, sent) == before
    assert reports(database, sent) == []

    assert finish(sibling, held)
    assert not finish(agent, lost)
    assert len(finals(database, sent)) == 1


Finish = Callable[[Connection, Claim], bool]


@in_every_way
@pytest.mark.parametrize(
    "deed", ["UPDATE claude_messages SET status = 'processed'", "DELETE FROM claude_messages"]
)
def test_a_task_that_somebody_closed_or_deleted_while_it_ran_has_no_report(
    database: Database, agent: Connection, finish: Finish, deed: str
) -> None:
    send(database, "TASK: disk_space")
    held = claim(agent)
    database.execute(deed)
    left = database.rows("SELECT * FROM claude_messages")

    assert not finish(agent, held)
    assert not ask(agent, held)
    assert database.rows("SELECT * FROM claude_messages") == left


def test_two_recoveries_cannot_both_take_a_task_over(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    send(database, "TASK: disk_space")
    first = claim(agent)
    end_leases(database)
    (found,) = listing.at_work(agent)

    taken = claims.claim_interrupted(sibling, TERMS, found.id, found.claim_digest, 60)

    assert claims.claim_interrupted(agent, TERMS, found.id, found.claim_digest, 60) is None
    assert taken is not None
    assert (taken.message.attempt, taken.message.claimed_at) == (1, first.message.claimed_at)
    assert endings.release(sibling, taken.id, taken.token)
    assert claim(agent).message.attempt == 2


@in_every_way
def test_a_report_that_was_planted_meanwhile_stays_the_only_one(
    database: Database, agent: Connection, finish: Finish
) -> None:
    sent = send(database, "TASK: disk_space")
    held = claim(agent)
    planted = {"from_agent": "public_claude", "msg_type": "response", "reply_to_id": sent}
    send(database, "fake", **planted, data={"final": True})

    assert finish(agent, held)
    assert len(finals(database, sent)) == 1
    assert message(database, sent)["status"] == "processed"


NONSENSE = (
    "null",
    "5",
    '"text"',
    "[1, 2]",
    '{"claim": null}',
    '{"claim": "x"}',
    '{"claim": {"attempt": "many", "token": [1], "pid": {}, "lease_until": 7}}',
    '{"claim": {"attempt": 1e300, "host": "\\u202e", "lease_until": "tomorrow"}}',
)


@on_every_schema
def test_whatever_data_holds_a_task_can_be_claimed_taken_over_and_ended(
    database: Database, agent: Connection
) -> None:
    for data in NONSENSE:
        sent = send(database, "TASK: disk_space")
        spoil = "UPDATE claude_messages SET data = %s, status = %s WHERE id = %s"
        database.execute(spoil, (data, "processing", sent))

        taken = take_over(agent)
        assert taken is not None, data
        assert taken.message.attempt == 0, data
        assert endings.release(agent, taken.id, taken.token)
        database.execute(spoil, (data, "pending", sent))
        assert finish(agent, claim(agent))
        assert len(finals(database, sent)) == 1, data


@on_every_schema
def test_an_escalation_its_notice_and_the_new_status_are_one_transaction(
    database: Database, agent: Connection
) -> None:
    sent = send(database, "TASK: reboot")
    held = claim(agent)

    assert [ask(agent, held), ask(agent, held)] == [True, True]

    (card,) = messages_of(database, "escalation")
    (notice,) = reports(database, sent)
    assert (card["reply_to_id"], card["thread_id"], card["priority"]) == (sent, sent, "high")
    assert (card["to_agent"], card["status"], card["requires_response"]) == (
        "craig_mobile",
        "pending",
        True,
    )
    assert notice["data"]["final"] is False
    assert message(database, sent)["status"] == "escalated"


def messages_of(database: Database, kind: str) -> list[dict[str, Any]]:
    return database.rows("SELECT * FROM claude_messages WHERE msg_type = %s ORDER BY id", (kind,))


@on_every_schema
def test_an_approval_is_used_once(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    sent = send(database, "TASK: reboot")
    ask(agent, claim(agent))
    database.execute("UPDATE claude_messages SET status = 'approved' WHERE msg_type = 'escalation'")
    (waiting,) = decisions.waiting(agent, "craig_mobile")

    held = use_approval(agent, waiting)

    assert held is not None
    assert (held.id, held.message.card_id, held.message.attempt) == (sent, waiting.card_id, 2)
    assert use_approval(sibling, waiting) is None
    (card,) = messages_of(database, "escalation")
    assert (card["status"], card["data"]["decision"]) == ("processed", "approved")
    assert finish(agent, held)


@on_every_schema
def test_rest_writes_an_errors_count_text_and_time_together(
    database: Database, agent: Connection
) -> None:
    agent_state.wake(agent, "craig_mobile")
    agent_state.rest(agent, "Nothing to do", acted=False, error=None)
    calm = state(database)
    assert (calm["current_mode"], calm["status_message"]) == ("sleeping", "Nothing to do")
    assert (calm["error_count_today"], calm["last_error"], calm["last_error_at"]) == (0, None, None)
    assert calm["last_action_at"] is None

    for _ in range(2):
        agent_state.rest(agent, "Executed 1 tasks", acted=True, error="trouble")
    agent_state.rest(agent, "Nothing to do", acted=False, error=None)
    troubled = state(database)
    assert (troubled["error_count_today"], troubled["last_error"]) == (2, "trouble")
    assert troubled["last_error_at"] is not None
    assert troubled["last_action_at"] is not None


@pytest.mark.parametrize(("error", "count"), [(None, 0), ("trouble", 1)])
def test_errors_are_counted_anew_each_day(
    database: Database, agent: Connection, error: str | None, count: int
) -> None:
    agent_state.wake(agent, "craig_mobile")
    database.execute(
        """UPDATE claude_state SET error_count_today = 7, last_error = 'old',
                                   last_error_at = now() - interval '25 hours'"""
    )

    agent_state.rest(agent, "", acted=False, error=error)

    assert state(database)["error_count_today"] == count


def test_the_first_look_sees_each_kind_of_work_and_nobody_elses(
    database: Database, agent: Connection
) -> None:
    def work() -> bool:
        return agent_state.wake(agent, "craig_mobile")[1]

    send(database, "not for this agent alone", to_agent="all")
    send(database, "TASK: disk_space", to_agent="intl_claude")
    send(database, "just mail", msg_type="message")
    answer = {"from_agent": "craig_mobile", "msg_type": "response"}
    send(database, "Hello", **answer, subject="Approved: my holidays")
    assert not work()

    sent = send(database, "TASK: disk_space")
    assert work()
    held = claim(agent)
    assert work()
    assert ask(agent, held)
    assert not work()
    card, which = "UPDATE claude_messages", "WHERE msg_type = 'escalation'"
    for over in ("status = 'approved'", "status = 'denied'", "expires_at = now()"):
        database.execute(f"{card} SET status = 'pending', expires_at = 'tomorrow' {which}")
        assert not work()
        database.execute(f"{card} SET {over} {which}")
        assert work()
    database.execute(f"{card} SET status = 'pending', expires_at = 'tomorrow' {which}")
    for status in ("escalated", "cancelled"):
        database.execute(f"{card} SET status = %s WHERE id = %s", (status, sent))
        assert work() is (status == "cancelled")
    database.execute(f"{card} SET status = 'expired' {which}")
    assert not work()
    send(database, "APPROVED", **answer, subject="Approved: Permission #1: reboot")
    assert work()

"""Each transition on the real SQL: who gets which task, and what a lost claim may still write."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest

import messages
import statements
from connection import Database as Connection
from messages import Claim
from reports import Report
from task_executor import TIMEOUTS
from tests.cycles import end_leases, finals
from tests.docker_engine import wait_for
from tests.postgres import Database, message, on_every_schema, reports, send, state

EXPIRY_HOURS = 24
REPORT = Report("Task Report: Test", "✅ SUCCESS", {"final": True, "outcome": "success"})
CARD = Report("Permission #1: reboot", "Run reboot?", {"task": "reboot", "params": {}})
NOTICE = Report("Task Report: Test", "⏳ ESCALATED", {"final": False, "outcome": "escalated"})
TOMORROW = 4102444800.0


def claim(agent: Connection) -> Claim:
    held = messages.claim_next(agent, EXPIRY_HOURS, TIMEOUTS)
    assert held is not None
    return held


def nothing_to_claim(agent: Connection) -> bool:
    return messages.claim_next(agent, EXPIRY_HOURS, TIMEOUTS) is None


def finish(agent: Connection, held: Claim) -> bool:
    return messages.finish(agent, held.id, held.token, "processed", REPORT)


def take_over(agent: Connection) -> Claim | None:
    (found,) = messages.at_work(agent)
    return messages.claim_interrupted(agent, found, 60)


@on_every_schema
def test_a_claim_is_durable_and_says_who_holds_it_until_when(
    database: Database, agent: Connection
) -> None:
    sent = send(database, "TASK: disk_space", data={"kept": [1]})

    held = claim(agent)

    row = message(database, sent)
    assert (held.id, held.body, held.attempt, held.reported) == (sent, "TASK: disk_space", 1, False)
    assert (row["status"], row["data"]["kept"]) == ("processing", [1])
    assert row["data"]["claim"] | {"lease_until": ""} == {
        "token": held.token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "attempt": 1,
        "lease_until": "",
    }
    assert lease_seconds(database, sent) == TIMEOUTS["disk_space"] + 30
    assert row["read_at"] is not None


def lease_seconds(database: Database, id: int) -> float:
    """Return how long a lease is, by the database's clock."""
    ((seconds,),) = database.execute(
        """SELECT EXTRACT(EPOCH FROM (data #>> '{claim,lease_until}')::timestamptz - read_at)
             FROM claude_messages WHERE id = %s""",
        (id,),
    )
    return float(round(seconds))


def test_a_lease_lasts_as_long_as_its_task_may_run_and_a_grace(
    database: Database, agent: Connection
) -> None:
    expected = {
        "TASK: restart_service\nPARAMS: {}": 90,
        "\r\n  TASK:\tdocker_ps \r\n": 60,
        "\ufeffTASK: docker_ps": 150,
        "TASK: no_such_task": 150,
        None: 150,
        "": 150,
    }
    leases = {}
    for body in expected:
        sent = send(database, body)
        held = claim(agent)
        leases[body] = lease_seconds(database, sent)
        finish(agent, held)

    assert leases == expected


@on_every_schema
def test_tasks_are_claimed_by_priority_then_age_then_id(
    database: Database, agent: Connection
) -> None:
    def sent(priority: str | None, hours_ago: int) -> int:
        id = send(database, "TASK: disk_space", priority=priority)
        database.execute(
            "UPDATE claude_messages SET created_at = '2026-01-02'::timestamptz"
            " - make_interval(hours => %s), expires_at = 'infinity' WHERE id = %s",
            (hours_ago, id),
        )
        return id

    unknown, none = sent("asap", 9), sent(None, 8)
    low, normal, high = sent("low", 7), sent("normal", 6), sent("high", 5)
    newer, older, same_age = sent("urgent", 1), sent("urgent", 2), sent("urgent", 2)

    claimed = []
    for _ in range(8):
        held = claim(agent)
        claimed.append(held.id)
        finish(agent, held)

    assert claimed == [older, same_age, newer, high, normal, low, unknown, none]


def test_one_task_of_an_agent_is_processed_at_a_time(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    send(database, "TASK: disk_space")
    send(database, "TASK: disk_space")
    other_agents = send(database, "TASK: disk_space", to_agent="intl_claude")
    held = claim(agent)

    assert nothing_to_claim(agent)
    assert nothing_to_claim(sibling)
    sibling.agent = "intl_claude"
    assert claim(sibling).id == other_agents

    sibling.agent = "public_claude"
    finish(agent, held)
    assert claim(sibling).id != held.id


def test_skipping_locked_rows_alone_would_process_two_tasks_at_a_time(database: Database) -> None:
    """The negative control: the usual queue's claim, twice, before the first is committed."""
    send(database, "TASK: disk_space")
    send(database, "TASK: disk_space")
    usual = (
        "UPDATE claude_messages SET status = 'processing' WHERE id = (SELECT id FROM"
        " claude_messages WHERE status = 'pending' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
    )

    with closing(psycopg2.connect(database.url)) as one, one.cursor() as cursor:
        cursor.execute(usual)
        database.execute(usual)
        one.commit()

    assert [row["status"] for row in database.rows("SELECT status FROM claude_messages")] == [
        "processing",
        "processing",
    ]


def test_a_claim_waits_for_another_that_is_being_written(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    """Neither sees the other's row yet, so each would take one."""
    sent = [send(database, "TASK: disk_space") for _ in range(2)]
    messages.wake(agent)
    assert agent.conn is not None
    agent.conn.autocommit = False
    with ThreadPoolExecutor(1) as pool:
        held = claim(agent)

        waiting = pool.submit(messages.claim_next, sibling, EXPIRY_HOURS, TIMEOUTS)
        wait_for(lambda: waiting.done() or lock_is_waited_for(database), 10)
        agent.conn.commit()

        assert waiting.result() is None
    assert held.id == sent[0]


def lock_is_waited_for(database: Database) -> bool:
    query = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return database.execute(f"SELECT EXISTS ({query})") == [(True,)]


def test_a_row_that_somebody_else_holds_is_skipped(database: Database, agent: Connection) -> None:
    locked = send(database, "TASK: disk_space", priority="urgent")
    free = send(database, "TASK: disk_space")

    with closing(psycopg2.connect(database.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute("SELECT FROM claude_messages WHERE id = %s FOR UPDATE", (locked,))

        assert claim(agent).id == free


def test_the_deadline_is_expires_at_or_else_an_age(database: Database, agent: Connection) -> None:
    expected = {
        ("now() - interval '23 hours 59 minutes'", "NULL"): False,
        ("now() - interval '24 hours'", "NULL"): True,
        ("now() - interval '30 days'", "now() + interval '1 minute'"): False,
        ("now()", "now() - interval '1 second'"): True,
        ("now()", "'-infinity'"): True,
        ("'infinity'", "NULL"): False,
        ("'-infinity'", "NULL"): True,
        ("'1970-01-01'", "NULL"): True,
        ("'294276-12-31'", "NULL"): False,
        ("NULL", "NULL"): True,
        ("NULL", "'infinity'"): False,
    }
    too_late = {}
    for created_at, expires_at in expected:
        sent = send(database, "TASK: disk_space")
        database.execute(
            f"UPDATE claude_messages SET created_at = {created_at}, expires_at = {expires_at}"
            f" WHERE id = {sent}"
        )
        held = claim(agent)
        too_late[created_at, expires_at] = held.too_late
        finish(agent, held)

    assert too_late == expected


@pytest.mark.parametrize("mode", ["paused", "retired"])
def test_nothing_is_claimed_once_the_agent_is_switched_off(
    database: Database, agent: Connection, mode: str
) -> None:
    send(database, "TASK: disk_space")
    asked = send(database, "TASK: disk_space", priority="urgent")
    ask(agent, claim(agent))
    database.execute("UPDATE claude_messages SET status = 'approved' WHERE msg_type = 'escalation'")
    messages.wake(agent)
    database.execute("UPDATE claude_state SET current_mode = %s", (mode,))

    (waiting,) = messages.waiting(agent, "craig_mobile")
    assert waiting.id == asked
    assert messages.claim_approved(agent, waiting, TIMEOUTS) is None
    assert nothing_to_claim(agent)
    assert messages.wake(agent) == mode
    messages.rest(agent, "", acted=False, error=None)
    assert state(database)["current_mode"] == mode


def ask(agent: Connection, held: Claim) -> bool:
    return messages.escalate(agent, held, "craig_mobile", CARD, TOMORROW, NOTICE)


@on_every_schema
def test_the_report_and_the_end_of_the_claim_are_one_transaction(
    database: Database, agent: Connection
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
def test_a_report_that_is_sent_twice_is_stored_once(database: Database, agent: Connection) -> None:
    sent = send(database, "TASK: disk_space")
    held = claim(agent)

    assert [finish(agent, held), finish(agent, held)] == [True, True]
    assert len(finals(database, sent)) == 1


@on_every_schema
def test_whoever_lost_the_claim_writes_nothing(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    sent = send(database, "TASK: disk_space")
    lost = claim(agent)
    end_leases(database)
    held = take_over(sibling)
    assert held is not None
    before = message(database, sent)

    assert not finish(agent, lost)
    assert not ask(agent, lost)
    assert not messages.close(agent, lost.id, lost.token)
    assert not messages.release(agent, lost.id, lost.token)
    assert message(database, sent) == before
    assert reports(database, sent) == []

    assert finish(sibling, held)
    assert not finish(agent, lost)
    assert len(finals(database, sent)) == 1


def test_ending_a_task_by_its_id_alone_would_report_it_twice(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    """The negative control: the usual update, without the claim's token and the unique index."""
    sent = send(database, "TASK: disk_space")
    claim(agent)
    end_leases(database)
    held = take_over(sibling)
    assert held is not None
    finish(sibling, held)
    database.execute("DROP INDEX idx_one_final_report")

    database.execute("UPDATE claude_messages SET status = 'processed' WHERE id = %s", (sent,))
    send(
        database,
        "late",
        from_agent="public_claude",
        msg_type="response",
        reply_to_id=sent,
        data={"final": True},
    )

    assert len(finals(database, sent)) == 2


def test_two_recoveries_cannot_both_take_a_task_over(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    send(database, "TASK: disk_space")
    first = claim(agent)
    end_leases(database)
    (found,) = messages.at_work(agent)

    taken = messages.claim_interrupted(sibling, found, 60)

    assert messages.claim_interrupted(agent, found, 60) is None
    assert taken is not None
    assert (taken.attempt, taken.claimed_at) == (1, first.claimed_at)
    assert messages.release(sibling, taken.id, taken.token)
    assert claim(agent).attempt == 2


def test_a_task_with_a_final_report_says_so_when_it_is_claimed(
    database: Database, agent: Connection
) -> None:
    sent = send(database, "TASK: disk_space")
    planted = {"from_agent": "public_claude", "msg_type": "response", "reply_to_id": sent}
    send(database, "fake", **planted, data={"final": True})

    held = claim(agent)

    assert held.reported
    assert messages.close(agent, held.id, held.token)
    assert message(database, sent)["status"] == "processed"


def test_a_report_that_was_planted_meanwhile_stays_the_only_one(
    database: Database, agent: Connection
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
        assert taken.attempt == 0, data
        assert messages.release(agent, taken.id, taken.token)
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
    (waiting,) = messages.waiting(agent, "craig_mobile")

    held = messages.claim_approved(agent, waiting, TIMEOUTS)

    assert held is not None
    assert (held.id, held.escalation_id, held.attempt) == (sent, waiting.escalation_id, 2)
    assert messages.claim_approved(sibling, waiting, TIMEOUTS) is None
    (card,) = messages_of(database, "escalation")
    assert (card["status"], card["data"]["decision"]) == ("processed", "approved")
    assert not messages.refuse(sibling, waiting, "processed", "denied", REPORT)
    assert finish(agent, held)


@on_every_schema
def test_rest_writes_an_errors_count_text_and_time_together(
    database: Database, agent: Connection
) -> None:
    messages.wake(agent)
    messages.rest(agent, "Nothing to do", acted=False, error=None)
    calm = state(database)
    assert (calm["current_mode"], calm["status_message"]) == ("sleeping", "Nothing to do")
    assert (calm["error_count_today"], calm["last_error"], calm["last_error_at"]) == (0, None, None)
    assert calm["last_action_at"] is None

    for _ in range(2):
        messages.rest(agent, "Executed 1 tasks", acted=True, error="trouble")
    messages.rest(agent, "Nothing to do", acted=False, error=None)
    troubled = state(database)
    assert (troubled["error_count_today"], troubled["last_error"]) == (2, "trouble")
    assert troubled["last_error_at"] is not None
    assert troubled["last_action_at"] is not None


@pytest.mark.parametrize(("error", "count"), [(None, 0), ("trouble", 1)])
def test_errors_are_counted_anew_each_day(
    database: Database, agent: Connection, error: str | None, count: int
) -> None:
    messages.wake(agent)
    database.execute(
        """UPDATE claude_state SET error_count_today = 7, last_error = 'old',
                                   last_error_at = now() - interval '25 hours'"""
    )

    messages.rest(agent, "", acted=False, error=error)

    assert state(database)["error_count_today"] == count


def test_the_first_look_sees_each_kind_of_work_and_nobody_elses(
    database: Database, agent: Connection
) -> None:
    def seen() -> list[str]:
        work = messages.look(agent, "craig_mobile")
        return [kind for kind, there in work._asdict().items() if there]

    send(database, "not for this agent alone", to_agent="all")
    send(database, "TASK: disk_space", to_agent="intl_claude")
    send(database, "just mail", msg_type="message")
    assert seen() == []

    send(database, "TASK: disk_space")
    assert seen() == ["pending"]
    ask(agent, claim(agent))
    assert seen() == ["escalated"]
    send(database, "TASK: disk_space")
    claim(agent)
    assert seen() == ["processing", "escalated"]
    send(database, "APPROVED", from_agent="craig_mobile", msg_type="response")
    assert seen() == ["processing", "escalated", "receipts"]


def test_a_missing_column_is_named(database: Database, agent: Connection) -> None:
    messages.check_schema(agent)
    database.execute("ALTER TABLE claude_messages DROP COLUMN thread_id")
    database.execute("DROP TABLE claude_observations")

    with pytest.raises(psycopg2.errors.UndefinedColumn) as raised:
        messages.check_schema(agent)

    assert str(raised.value).startswith(
        "missing claude_messages.thread_id, claude_observations.id,"
    )


def test_a_claim_reads_one_entry_of_the_queues_index(database: Database) -> None:
    database.execute(
        """INSERT INTO claude_messages (from_agent, to_agent, msg_type, body, status)
           SELECT 'big_bro', 'public_claude', 'task', 'TASK: disk_space',
                  CASE WHEN n %% 2 = 0 THEN 'pending' ELSE 'processed' END
             FROM generate_series(1, 20000) AS n""",
        (),
    )
    database.execute("VACUUM ANALYZE claude_messages")

    plan = explained(database)

    assert "idx_task_queue" in plan
    assert "Seq Scan on claude_messages" not in plan
    assert '"Sort"' not in plan


def explained(database: Database) -> str:
    params = {"agent": "public_claude", "expiry_hours": EXPIRY_HOURS}
    query = "EXPLAIN (FORMAT JSON) " + statements.NEXT_PENDING + "SELECT * FROM next"
    return json.dumps(database.execute(query, params)[0][0])

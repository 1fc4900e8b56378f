"""Claims on the real SQL: who gets which task, when, and for how long."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest
from support.cycles import lock_is_waited_for
from support.docker_engine import wait_for
from support.plans import plan_of_a_claim
from support.postgres import Database, message, on_every_schema, send, state
from support.transitions import TERMS, TIMEOUTS, ask, claim, finish, nothing_to_claim, use_approval

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.queue import claims
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.connection import Database as Connection


@on_every_schema
def test_a_claim_is_durable_and_says_who_holds_it_until_when(
    database: Database, agent: Connection
) -> None:
    sent = send(database, "TASK: disk_space", data={"kept": [1]})

    held = claim(agent)

    row = message(database, sent)
    assert (held.id, held.message.body, held.message.attempt, held.message.reported) == (
        sent,
        "TASK: disk_space",
        1,
        False,
    )
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

    unknown, none = sent("URGENT", 9), sent(None, 8)
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
    agent_state.wake(sibling, "craig_mobile")
    assert claim(sibling).id == other_agents

    sibling.agent = "public_claude"
    finish(agent, held)
    assert claim(sibling).id != held.id


def test_a_claim_waits_for_another_that_is_being_written(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    """Neither sees the other's row yet, so each would take one."""
    sent = [send(database, "TASK: disk_space") for _ in range(2)]
    agent_state.wake(agent, "craig_mobile")
    agent_state.wake(sibling, "craig_mobile")
    assert agent.conn is not None
    agent.conn.autocommit = False
    with ThreadPoolExecutor(1) as pool:
        held = claim(agent)

        waiting = pool.submit(claims.claim_next, sibling, TERMS)
        wait_for(lambda: waiting.done() or lock_is_waited_for(database))
        agent.conn.commit()

        assert waiting.result() is None
    assert held.id == sent[0]


def test_a_row_that_somebody_else_holds_is_skipped(database: Database, agent: Connection) -> None:
    locked = send(database, "TASK: disk_space", priority="urgent")
    free = send(database, "TASK: disk_space")

    with closing(psycopg2.connect(database.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute("SELECT FROM claude_messages WHERE id = %s FOR UPDATE", (locked,))

        assert claim(agent).id == free


def test_a_reply_that_is_being_inserted_does_not_let_another_task_go_first(
    database: Database, agent: Connection
) -> None:
    urgent = send(database, "TASK: disk_space", priority="urgent")
    send(database, "TASK: disk_space")

    with closing(psycopg2.connect(database.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute(
            "INSERT INTO claude_messages (from_agent, to_agent, msg_type, reply_to_id)"
            " VALUES ('intl_claude', 'big_bro', 'message', %s)",
            (urgent,),
        )

        assert claim(agent).id == urgent


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
        too_late[created_at, expires_at] = held.message.too_late
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
    agent_state.wake(agent, "craig_mobile")
    database.execute("UPDATE claude_state SET current_mode = %s", (mode,))

    (waiting,) = decisions.waiting(agent, "craig_mobile")
    assert waiting.id == asked
    assert use_approval(agent, waiting) is None
    assert nothing_to_claim(agent)
    assert agent_state.wake(agent, "craig_mobile")[0] == mode
    agent_state.rest(agent, "", acted=False, error=None)
    assert state(database)["current_mode"] == mode


def test_a_claim_reads_one_entry_of_the_queues_index(database: Database) -> None:
    database.execute(
        """INSERT INTO claude_messages (from_agent, to_agent, msg_type, body, status)
           SELECT 'big_bro', 'public_claude', 'task', 'TASK: disk_space',
                  CASE WHEN n %% 2 = 0 THEN 'pending' ELSE 'processed' END
             FROM generate_series(1, 20000) AS n""",
        (),
    )
    database.execute("VACUUM ANALYZE claude_messages")

    plan = json.dumps(plan_of_a_claim(database))

    assert "idx_task_queue_by_sender" in plan
    assert "Seq Scan on claude_messages" not in plan

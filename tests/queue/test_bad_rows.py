"""Rows that no statement gets past: each is ended, or left and told, and those behind it go on."""

from __future__ import annotations

from contextlib import closing

import psycopg2
import pytest
from support.cycles import Cycles, decided, finals, open_tasks, outcome
from support.postgres import Database, decide, escalations, message, send, state

from catalyst_heartbeat.queue import listing
from catalyst_heartbeat.queue.connection import Database as Connection

pytestmark = pytest.mark.slow

# A trigger of another program that does not like some rows.
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this row'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON claude_messages FOR EACH ROW WHEN ({which})
    EXECUTE FUNCTION refuse()
"""
ACCEPT = "DROP TRIGGER refuse ON claude_messages"
INCOMPRESSIBLE = (
    "SELECT jsonb_build_object('x', string_agg(md5(n::text), '')) FROM generate_series(1, {}) AS n"
)
# What is large lies in a table of its own, of which a broken disk may lose a part.
DAMAGE = """
SET allow_system_table_mods = on;
UPDATE pg_class SET relkind = 'r' WHERE oid = '{table}'::regclass;
DELETE FROM {table};
UPDATE pg_class SET relkind = 't' WHERE oid = '{table}'::regclass;
"""


def refuse(database: Database, which: str) -> None:
    database.execute(REFUSE.format(which=which))


def enlarge(database: Database, column: str, task: int, lines: int) -> None:
    large = f"({INCOMPRESSIBLE.format(lines)})"
    value = f"{large} ->> 'x'" if column == "body" else large
    database.execute(f"UPDATE claude_messages SET {column} = {value} WHERE id = {task}")


def test_a_row_that_takes_no_claim_is_rejected_with_what_the_database_said(
    database: Database, cycles: Cycles
) -> None:
    first, bad, last = (send(database, "TASK: list_tasks") for _ in range(3))
    refuse(database, f"NEW.id = {bad} AND NEW.status = 'processing'")

    cycle = cycles.run()

    assert cycle.returncode == 0, cycle.stderr
    verdicts = [outcome(database, task) for task in (first, bad, last)]
    assert verdicts == ["success", "rejected", "success"]
    assert "the database cannot claim it: not this row" in finals(database, bad)[0]["body"]


def test_a_row_that_takes_nothing_is_left_and_told_and_the_others_go_on(
    database: Database, cycles: Cycles
) -> None:
    names = ("big_bro", "stranger")
    urgent = [send(database, "TASK: list_tasks", priority="urgent", from_agent=n) for n in names]
    large = [send(database, "TASK: list_tasks", from_agent=name) for name in names]
    for task in large:
        enlarge(database, "data", task, 4000)
    first, bad, last = (send(database, "TASK: list_tasks") for _ in range(3))
    stuck = sorted([*urgent, *large, bad])
    refuse(database, f"OLD.id IN ({', '.join(map(str, stuck))})")

    codes = [cycles.run().returncode for _ in range(2)]

    assert codes == [1, 1]
    assert [outcome(database, task) for task in (first, last)] == ["success"] * 2
    assert open_tasks(database) == stuck
    said = state(database)
    assert said["current_mode"] == "sleeping"
    assert said["last_error"].startswith("5 tasks can be neither run nor refused")
    assert "not this row" in said["last_error"]

    database.execute(ACCEPT)

    assert cycles.run().returncode == 0
    assert open_tasks(database) == []
    assert outcome(database, bad) == "success"


@pytest.mark.parametrize("column", ["body", "data"])
def test_a_row_of_which_the_disk_lost_a_part_is_rejected(
    column: str, database: Database, cycles: Cycles
) -> None:
    first, bad, last = (send(database, "TASK: list_tasks") for _ in range(3))
    enlarge(database, column, bad, 1000)
    ((table,),) = database.execute(
        "SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'claude_messages'"
    )
    database.execute(DAMAGE.format(table=table))

    cycle = cycles.run()

    assert cycle.returncode == 0, cycle.stderr
    assert [outcome(database, task) for task in (first, last)] == ["success"] * 2
    query = "SELECT data ->> 'outcome' FROM claude_messages WHERE reply_to_id = %s"
    assert database.execute(query, (bad,)) == [("rejected",)]
    assert open_tasks(database) == []


def test_an_approval_that_takes_no_claim_holds_up_nobody(
    database: Database, cycles: Cycles
) -> None:
    names = {"TASKS_REQUIRING_APPROVAL": "disk_space"}
    asked = decided(database, cycles, "disk_space", "approved", **names)
    behind = send(database, "TASK: list_tasks")
    refuse(database, f"NEW.id = {asked}")

    assert cycles.run(**names).returncode == 1

    assert outcome(database, behind) == "success"
    assert message(database, asked)["status"] == "escalated"
    assert f"#{asked}" in state(database)["last_error"]
    database.execute(ACCEPT)
    assert cycles.run(**names).returncode == 0
    assert outcome(database, asked) == "success"


def test_a_receipt_that_takes_no_mark_holds_up_nobody(database: Database, cycles: Cycles) -> None:
    asked = send(database, "TASK: rm_rf")
    cycles.run()
    receipt = decide(database, escalations(database, asked)[0], "denied")
    refuse(database, f"NEW.id = {receipt}")
    behind = send(database, "TASK: list_tasks")

    cycles.run()

    assert (outcome(database, asked), outcome(database, behind)) == ("denied", "success")


@pytest.mark.parametrize("locked", ["the task", "the card", "the receipt"])
@pytest.mark.parametrize("decision", ["approved", "denied"])
def test_a_row_that_somebody_locks_holds_up_no_other(
    decision: str, locked: str, database: Database, cycles: Cycles
) -> None:
    names = {"TASKS_REQUIRING_APPROVAL": "disk_space"}
    asked = send(database, "TASK: disk_space")
    cycles.run(**names)
    (card,) = escalations(database, asked)
    receipt = decide(database, card, decision)
    behind = send(database, "TASK: list_tasks")
    row = {"the task": asked, "the card": card["id"], "the receipt": receipt}[locked]

    with closing(psycopg2.connect(database.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute("SELECT FROM claude_messages WHERE id = %s FOR UPDATE", (row,))
        cycles.run('STATEMENT_LIMIT="1s"', **names)

    assert outcome(database, behind) == "success"
    cycles.run(**names)
    assert outcome(database, asked) == {"approved": "success", "denied": "denied"}[decision]


def test_what_is_only_refused_is_refused_after_the_queue(
    database: Database, cycles: Cycles
) -> None:
    strangers = [send(database, "TASK: list_tasks", from_agent="mallory") for _ in range(3)]
    large, task = (send(database, "TASK: list_tasks", priority="low") for _ in range(2))
    for sent in (*strangers, large):
        enlarge(database, "data", sent, 4000)

    assert cycles.run().returncode == 0

    answers = database.execute(
        "SELECT reply_to_id FROM claude_messages WHERE msg_type = 'response' ORDER BY id"
    )
    assert [id for (id,) in answers] == [task, *strangers, large]
    assert {outcome(database, sent) for sent in (*strangers, large)} == {"rejected"}
    assert outcome(database, task) == "success"


def test_data_that_only_its_compression_makes_small_is_no_claim_that_is_read(
    database: Database, agent: Connection
) -> None:
    """Its text, and a checksum of that, would be made for each row that anybody planted."""
    claim = "jsonb_build_object('claim', jsonb_build_object('token', repeat('x', 5000000)))"
    small, sent = (send(database, "TASK: x", status="processing", data={}) for _ in range(2))
    database.execute(f"UPDATE claude_messages SET data = {claim} WHERE id = {sent}")

    assert [(task.id, task.large_data, task.claim_digest) for task in listing.at_work(agent)] == [
        (small, False, None),
        (sent, True, None),
    ]


def test_of_many_tasks_at_work_the_first_are_read(database: Database, agent: Connection) -> None:
    sent = [send(database, "TASK: x", status="processing") for _ in range(110)]

    assert [task.id for task in listing.at_work(agent)] == sent[:100]


@pytest.mark.slow
def test_a_hundred_thousand_urgent_rows_of_a_stranger_wait_behind_one_task(
    database: Database, cycles: Cycles
) -> None:
    database.execute(
        "INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body,"
        " status) SELECT 'mallory', 'public_claude', 'task', 'urgent', 'x', 'TASK: list_tasks',"
        " 'pending' FROM generate_series(1, 100000)"
    )
    task = send(database, "TASK: list_tasks", priority="low")

    cycle = cycles.run(RUN_SECONDS="5")

    assert cycle.returncode == 0, cycle.stderr
    assert outcome(database, task) == "success"
    ((first,),) = database.execute(
        "SELECT min(id) FROM claude_messages WHERE msg_type = 'response'"
    )
    assert message(database, first)["reply_to_id"] == task

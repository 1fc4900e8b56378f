"""The statement that deletes what is old: whole conversations, by way of an index."""

from __future__ import annotations

from contextlib import closing

import psycopg2
import pytest
from support.postgres import OUR_SCHEMA, PROGRAM_FOLDER, Database, on_every_schema, send

DELETE_OLD = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/delete_old.sql").read_text()
SCRIPT = (PROGRAM_FOLDER / OUR_SCHEMA).read_text()
OLD, YOUNG = "2020-01-01", "2100-01-01"


def conversation(database: Database, created_at: str, status: str) -> list[int]:
    """A task with a notice, a request, a report, an answer to that and a task that follows it."""
    task = send(database, "TASK: rm_rf", created_at=created_at, status=status)
    old = {"created_at": created_at, "status": "processed"}
    notice = send(database, "x", msg_type="response", reply_to_id=task, **old)
    request = send(database, "x", msg_type="escalation", reply_to_id=task, **old)
    report = send(
        database, "x", msg_type="response", reply_to_id=task, **{**old, "status": "pending"}
    )
    thanks = send(database, "x", msg_type="message", reply_to_id=report, **old)
    further = send(database, "TASK: x", reply_to_id=report, **old)
    return [task, notice, request, report, thanks, further]


def remaining(database: Database) -> list[int]:
    return [id for (id,) in database.execute("SELECT id FROM claude_messages ORDER BY id")]


@on_every_schema
def test_old_tasks_go_with_all_that_answers_them(database: Database) -> None:
    for status in ("processed", "expired", "cancelled"):
        conversation(database, OLD, status)
    young = conversation(database, YOUNG, "processed")
    note = send(database, "x", msg_type="message", created_at=OLD, status="processed")

    database.execute(DELETE_OLD)

    assert remaining(database) == [*young, note]


@on_every_schema
def test_the_approvers_old_receipts_go_and_other_answers_to_nothing_stay(
    database: Database,
) -> None:
    def receipt(subject: str, **columns: str) -> int:
        columns = {"msg_type": "response", "created_at": OLD, "status": "processed", **columns}
        return send(database, "x", subject=subject, **columns)

    for word in ("Approved", "Denied"):
        receipt(f"{word}: Permission #1: rm_rf")
    kept = [
        receipt("Denied: Permission #1: rm_rf", status="pending"),
        receipt("Denied: Permission #1: rm_rf", created_at=YOUNG),
        receipt("Approved: Permission #1: rm_rf", msg_type="message"),
        receipt("Approved: holiday"),
    ]

    database.execute(DELETE_OLD)

    assert remaining(database) == kept


@pytest.mark.parametrize("status", ["pending", "processing", "escalated"])
def test_what_has_not_ended_stays_whole(status: str, database: Database) -> None:
    *kept, _ = conversation(database, OLD, status)  # what followed has a conversation of its own

    database.execute(DELETE_OLD)

    assert remaining(database) == kept


@pytest.mark.parametrize(
    "change", [f"created_at = '{YOUNG}'", "created_at = NULL", "msg_type = 'task', status = NULL"]
)
def test_one_young_or_open_answer_keeps_the_conversation(change: str, database: Database) -> None:
    task, *_, thanks, further = conversation(database, OLD, "processed")
    database.execute(f"UPDATE claude_messages SET {change} WHERE id = %s", (thanks,))

    database.execute(DELETE_OLD)

    assert remaining(database) == list(range(task, further))


def test_a_message_that_answers_itself_goes_too(database: Database) -> None:
    first = send(database, "x", created_at=OLD, status="processed")
    second = send(database, "x", created_at=OLD, status="processed", reply_to_id=first)
    database.execute("UPDATE claude_messages SET reply_to_id = %s WHERE id = %s", (second, first))

    database.execute(DELETE_OLD)

    assert remaining(database) == []


def scans_of_the_table(database: Database) -> int:
    with closing(psycopg2.connect(database.url)) as conn, conn.cursor() as cursor:
        cursor.execute(DELETE_OLD)
        assert cursor.rowcount == 2000
        cursor.execute(
            "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'claude_messages'"
        )
        ((scans,),) = cursor.fetchall()
        conn.rollback()
    return int(scans)


@pytest.mark.slow
def test_the_table_is_not_read_once_for_each_row_that_goes(database: Database) -> None:
    for answers in ("NULL::integer", "n"):
        database.execute(
            "INSERT INTO claude_messages (from_agent, to_agent, msg_type, body, status,"
            " created_at, reply_to_id) SELECT 'a', 'b', 'task', 'x', 'processed',"
            f" CASE WHEN n <= 1000 THEN timestamptz '{OLD}' ELSE '{YOUNG}' END, {answers}"
            " FROM generate_series(1, 10000) AS n"
        )

    with_index = scans_of_the_table(database)
    database.execute("ANALYZE claude_messages")
    analyzed = scans_of_the_table(database)
    database.execute("DROP INDEX idx_msg_reply")

    assert max(with_index, analyzed) < 10
    assert scans_of_the_table(database) >= 2000


@on_every_schema
def test_schema_sql_adds_its_indexes_to_tables_that_there_are(database: Database) -> None:
    database.execute(SCRIPT)
    database.execute(SCRIPT)

    indexes = dict(database.execute("SELECT indexname, indexdef FROM pg_indexes"))
    assert indexes["idx_msg_reply"].endswith("(reply_to_id)")
    assert "(to_agent, from_agent, " in indexes["idx_task_queue_by_sender"]

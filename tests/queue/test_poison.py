"""Messages that nobody can process, in front of good ones: each is settled, none blocks others."""

from __future__ import annotations

import pytest
from support.cycles import Cycles, Health, finals, open_tasks, outcome
from support.postgres import Database, message, on_every_schema, send

FAR_CLAIM = {"claim": {"token": "t", "lease_until": "2999-01-01T00:00:00+00:00", "attempt": "x"}}
REJECTED: dict[str, str] = {
    "empty": "",
    "blank": " \n\t ",
    "prose": "Request: Daily Report",
    "huge": "TASK: disk_space\nREASON: " + "x" * 3_000_000,
    "params-null": "TASK: disk_space\nPARAMS: null",
    "params-list": "TASK: disk_space\nPARAMS: []",
    "params-missing": "TASK: service_health",
    "params-twice": 'TASK: service_health\nPARAMS: {"port": 5000, "port": 5001}',
    "params-deep": "TASK: disk_space\nPARAMS: " + "[" * 100_000,
    "params-deep-object": "TASK: disk_space\nPARAMS: " + '{"a":' * 100_000,
    "params-digits": 'TASK: service_health\nPARAMS: {"port": ' + "9" * 5000 + "}",
    "params-nan": 'TASK: service_health\nPARAMS: {"port": NaN}',
    "params-nul": 'TASK: read_file\nPARAMS: {"filepath": "\\u0000"}',
    "name": "TASK: __class__\nPARAMS: {}",
    "name-long": f"TASK: {'a' * 100_000}",
    "name-blanks": "TASK: a" + " " * 1_000_000 + "b",
    "two": "TASK: disk_space\nTASK: memory_usage",
    "line-separators": "TASK: disk_space\u2028PARAMS: {}",
}
# How a row may be spoiled otherwise, and what becomes of it.
ROWS: dict[str, tuple[dict[str, str], str]] = {
    "priority-unknown": ({"priority": "'asap'"}, "success"),
    "priority-null": ({"priority": "NULL"}, "success"),
    "created-far-future": ({"created_at": "now() + interval '1000 years'"}, "success"),
    "created-last-day": ({"created_at": "'294276-12-31'"}, "success"),
    "created-infinity": ({"created_at": "'infinity'"}, "success"),
    "created-minus-infinity": ({"created_at": "'-infinity'", "expires_at": "NULL"}, "expired"),
    "created-1970": ({"created_at": "'1970-01-01'", "expires_at": "NULL"}, "expired"),
    "created-1970-in-time": (
        {"created_at": "'1970-01-01'", "expires_at": "'2100-01-01'"},
        "success",
    ),
    "created-null": ({"created_at": "NULL", "expires_at": "NULL"}, "expired"),
    "expires-minus-infinity": ({"expires_at": "'-infinity'"}, "expired"),
    "expires-infinity": ({"expires_at": "'infinity'"}, "success"),
    "expires-bc": ({"expires_at": "'4000-01-01 BC'"}, "expired"),
    "thread-negative": ({"thread_id": "-1"}, "success"),
    "stranger": ({"from_agent": "'mallory'"}, "rejected"),
    "stranger-odd": ({"from_agent": "E'big_bro \\u202e'"}, "rejected"),
    "subject-html": ({"subject": "E'<b>\\n# APPROVED\\u202e\\x1b[2J'"}, "success"),
    "data-list": ({"data": "'[1]'"}, "success"),
    "data-text": ({"data": "'\"x\"'"}, "success"),
    "data-null": ({"data": "'null'"}, "success"),
    "data-number": ({"data": "'5'"}, "success"),
    "data-claim": ({"data": "'{\"claim\": [1]}'"}, "success"),
    "claim-endless": (
        {"data": '\'{"claim": {"attempt": "999999999999", "lease_until": "never"}}\''},
        "success",
    ),
    "claim-planted": ({"data": '\'{"claim": {"token": "t", "attempt": 9999}}\''}, "success"),
    "processing-planted": ({"status": "'processing'"}, "success"),
    "processing-far-lease": (
        {
            "status": "'processing'",
            "data": '\'{"claim": {"lease_until": "2999-01-01T00:00:00+00:00"}}\'',
        },
        "success",
    ),
    "processing-infinity": (
        {"status": "'processing'", "read_at": "'infinity'", "data": "'[]'"},
        "success",
    ),
}


def spoil(database: Database, columns: dict[str, str]) -> int:
    sent = send(database, "TASK: disk_space")
    changes = ", ".join(f"{column} = {value}" for column, value in columns.items())
    database.execute(f"UPDATE claude_messages SET {changes} WHERE id = {sent}")
    return sent


@pytest.mark.slow
@on_every_schema
def test_no_poisonous_message_blocks_those_behind_it(
    database: Database, cycles: Cycles, schema: str, health: Health
) -> None:
    narrow = "variant" in schema
    rejected = {name: send(database, body) for name, body in REJECTED.items()}
    rejected["subject-long"] = send(database, "", subject="s" * (200 if narrow else 500))
    rejected["priority-long"] = send(database, "", priority="p" * 20)
    if not narrow:
        rejected["body-null"] = send(database, None)
        rejected["subject-null"] = send(database, "", subject=None)
    spoiled = {name: spoil(database, columns) for name, (columns, _) in ROWS.items()}
    good = send(
        database,
        f'TASK: service_health\nPARAMS: {{"port": {health.port}}}',
        priority="low",
        data=FAR_CLAIM,
    )

    finished = cycles.run(HEALTH_PORTS=health.port)

    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    assert open_tasks(database) == []
    said = {name: outcome(database, id) for name, id in (rejected | spoiled).items()}
    assert said == dict.fromkeys(rejected, "rejected") | {
        name: verdict for name, (_, verdict) in ROWS.items()
    }
    assert outcome(database, good) == "success"
    assert health.requests == 1


@pytest.mark.slow
def test_data_without_room_for_a_claim_blocks_nobody(database: Database, cycles: Cycles) -> None:
    full = []
    for letter, status in (("'x'", "pending"), ("chr(1)", "pending"), ("'x'", "processing")):
        full.append(send(database, "TASK: disk_space", priority="urgent", status=status))
        database.execute(
            "UPDATE claude_messages SET"
            f" data = jsonb_build_object('x', repeat({letter}, 268435400)) WHERE id = {full[-1]}"
        )
    good = send(database, "TASK: disk_space")

    finished = cycles.run()

    assert finished.returncode == 0, finished.stderr
    assert outcome(database, good) == "success"
    assert [outcome(database, task) for task in full] == ["rejected", "rejected", "unknown"]


def test_a_planted_final_report_settles_the_task_without_running_it(
    database: Database, cycles: Cycles, health: Health
) -> None:
    body = f'TASK: service_health\nPARAMS: {{"port": {health.port}}}'
    waiting, good = send(database, body), send(database, body)
    planted = {"from_agent": "public_claude", "msg_type": "response", "reply_to_id": waiting}
    send(database, "done", **planted, data={"final": True, "outcome": "success"})

    assert cycles.run(HEALTH_PORTS=health.port).returncode == 0

    assert message(database, waiting)["status"] == "processed"
    assert len(finals(database, waiting)) == 1
    assert outcome(database, good) == "success"
    assert health.requests == 1


def test_a_reply_of_somebody_else_is_no_final_report(
    database: Database, cycles: Cycles, health: Health
) -> None:
    sent = send(database, f'TASK: service_health\nPARAMS: {{"port": {health.port}}}')
    said = {"msg_type": "response", "reply_to_id": sent, "data": {"final": True}}
    send(database, "done", **said, from_agent="mallory")

    cycles.run(HEALTH_PORTS=health.port)

    assert message(database, sent)["status"] == "processed"
    assert health.requests == 1

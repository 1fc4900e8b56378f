"""The matrix of roles.sql: rows of every kind, and what somebody may try on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg2
from support.postgres import Database

AGENTS = ("big_bro", "public_claude", "intl_claude", "dev_claude", "craig_desktop", "craig_mobile")
EVERYBODY = set(AGENTS)
NOBODY: set[str] = set()
BIG_BRO, EXECUTOR, APPROVER = {"big_bro"}, {"public_claude"}, {"craig_mobile"}

CARD_DATA = '\'{"task": "rm_rf", "params": {}, "digest": "abc"}\''
# Row number -> from, to, type, status, data
ROWS = {
    1: ("big_bro", "public_claude", "task", "pending", "'{\"ticket\": 5}'"),
    2: ("big_bro", "public_claude", "task", "processing", '\'{"claim": {"token": "t"}}\''),
    3: ("big_bro", "intl_claude", "task", "pending", "NULL"),
    4: ("public_claude", "big_bro", "response", "pending", '\'{"outcome": "failed"}\''),
    5: ("public_claude", "craig_mobile", "escalation", "pending", CARD_DATA),
    6: ("public_claude", "craig_mobile", "escalation", "approved", CARD_DATA),
    7: ("public_claude", "craig_mobile", "escalation", "denied", CARD_DATA),
    8: ("public_claude", "craig_mobile", "escalation", "processed", CARD_DATA),
    9: ("public_claude", "craig_mobile", "escalation", "expired", CARD_DATA),
    10: ("public_claude", "public_claude", "escalation", "pending", CARD_DATA),
    11: ("craig_mobile", "public_claude", "response", "pending", "NULL"),
    12: ("big_bro", "all", "message", "pending", "NULL"),
    13: ("big_bro", "public_claude", "task", "pending", "'[1, 2]'"),
    14: ("public_claude", "craig_mobile", "escalation", None, CARD_DATA),
    15: ("big_bro", "public_claude", "task", "escalated", "NULL"),
    16: ("big_bro", "public_claude", "task", "processed", "NULL"),
}


class Action(NamedTuple):
    """A statement, in which {me} is the role that sends it, and who may send it."""

    name: str
    statement: str
    allowed: set[str]


def insert(allowed: set[str], name: str, **columns: str) -> Action:
    values = {"from_agent": "'{me}'", "to_agent": "'public_claude'", "msg_type": "'task'"} | columns
    statement = (
        f"INSERT INTO claude_messages ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    )
    return Action(name, statement, allowed)


def update(allowed: set[str], name: str, row: int, change: str) -> Action:
    return Action(name, f"UPDATE claude_messages SET {change} WHERE id = {row}", allowed)


def lock(allowed: set[str], name: str, rows: str) -> Action:
    return Action(f"lock {name}", f"SELECT FROM {rows} FOR KEY SHARE", allowed)


def note(key: str) -> str:
    return f"data = COALESCE(data, '{{{{}}}}') || jsonb_build_object('{key}', 1)"


ACTIONS = [
    # Sending
    insert(EVERYBODY, "send as oneself"),
    insert(EVERYBODY, "send with data", data="'[1]'", subject="'x'", body="'TASK: x'"),
    insert(EVERYBODY, "ask the approver", msg_type="'escalation'", to_agent="'craig_mobile'"),
    insert(BIG_BRO, "send as big_bro", from_agent="'big_bro'"),
    insert(NOBODY, "send as Big_Bro", from_agent="'Big_Bro'"),
    insert(NOBODY, "send as big_bro and a blank", from_agent="'big_bro '"),
    insert(NOBODY, "send as nobody known", from_agent="''"),
    insert(APPROVER, "send as the approver", from_agent="'craig_mobile'", msg_type="'response'"),
    insert(
        EXECUTOR,
        "report as the executor",
        from_agent="'public_claude'",
        to_agent="'big_bro'",
        msg_type="'response'",
    ),
    insert(
        NOBODY,
        "ask, and approve it in one",
        msg_type="'escalation'",
        to_agent="'craig_mobile'",
        status="'approved'",
    ),
    insert(NOBODY, "send a claimed task", status="'processing'"),
    insert(NOBODY, "send an escalated task", status="'escalated'"),
    insert(NOBODY, "send without a status", status="NULL"),
    insert(NOBODY, "choose the number", id="1000"),
    insert(NOBODY, "date it back", created_at="'1970-01-01'"),
    insert(NOBODY, "say when it was processed", processed_at="now()"),
    Action(
        "send as the group",
        "SET ROLE claude_agents; INSERT INTO claude_messages (from_agent, to_agent, msg_type)"
        " VALUES ('claude_agents', 'public_claude', 'task')",
        NOBODY,
    ),
    Action(
        "copy another's message as oneself and keep its sender",
        "INSERT INTO claude_messages (from_agent, to_agent, msg_type, body)"
        " SELECT from_agent, to_agent, msg_type, body FROM claude_messages WHERE id = 12",
        BIG_BRO,
    ),
    # Working on tasks
    update(EXECUTOR, "claim", 1, f"status = 'processing', read_at = now(), {note('claim')}"),
    update(EXECUTOR, "note the escalation", 2, f"status = 'escalated', {note('escalation')}"),
    update(EXECUTOR, "finish", 2, "status = 'processed', processed_at = now()"),
    update(EXECUTOR, "release", 2, "status = 'pending'"),
    update(
        EXECUTOR,
        "claim over a list",
        13,
        "status = 'processing', data = jsonb_build_object('data', data, 'claim', 1)",
    ),
    update({"intl_claude"}, "claim another agent's task", 3, f"status = 'x', {note('claim')}"),
    update(NOBODY, "change the sender's data", 1, note("ticket")),
    update(NOBODY, "add to the sender's data", 1, note("approved")),
    update(NOBODY, "forget the sender's data", 1, "data = NULL"),
    update(NOBODY, "drop a key of the sender", 1, "data = data - 'ticket'"),
    update(NOBODY, "replace a list", 13, "data = '{{\"claim\": 1}}'"),
    # Taking a task back
    update(BIG_BRO | EXECUTOR, "take back a pending task", 1, "status = 'cancelled'"),
    update(BIG_BRO | EXECUTOR, "take back an escalated task", 15, "status = 'cancelled'"),
    update(EXECUTOR, "take back a task at work", 2, "status = 'cancelled'"),
    update(EXECUTOR, "take back a task that is done", 16, "status = 'cancelled'"),
    update(NOBODY, "take back a broadcast", 12, "status = 'cancelled'"),
    update(EXECUTOR, "call a pending task done", 1, "status = 'processed'"),
    update(EXECUTOR, "leave a pending task as it is", 1, "status = status"),
    *(
        update(EXECUTOR, f"take a task back and set {column}", 1, f"status = 'cancelled', {change}")
        for column, change in (
            ("read_at", "read_at = now()"),
            ("processed_at", "processed_at = now()"),
            ("data", note("claim")),
        )
    ),
    # Locking. A sender may lock what it may take back: a claim skips that.
    lock(BIG_BRO | EXECUTOR, "a pending task", "claude_messages WHERE id = 1"),
    lock(EXECUTOR, "a task at work", "claude_messages WHERE id = 2"),
    lock(BIG_BRO, "a report", "claude_messages WHERE id = 4"),
    lock(EXECUTOR | APPROVER, "a request", "claude_messages WHERE id = 5"),
    lock(EXECUTOR, "an agent's state", "claude_state WHERE agent_id = 'public_claude'"),
    *(
        Action(f"lock {table} in {mode}", f"LOCK TABLE {table} IN {mode} MODE", allowed)
        for table in ("claude_messages", "claude_state", "claude_observations")
        for mode, allowed in (
            ("ACCESS SHARE", EVERYBODY),
            ("ROW SHARE", NOBODY),
            ("ROW EXCLUSIVE", NOBODY),
            ("SHARE UPDATE EXCLUSIVE", NOBODY),
            ("SHARE", NOBODY),
            ("SHARE ROW EXCLUSIVE", NOBODY),
            ("EXCLUSIVE", NOBODY),
            ("ACCESS EXCLUSIVE", NOBODY),
        )
    ),
    # Mail
    update(BIG_BRO, "mark a report read", 4, "status = 'read', read_at = now()"),
    update(NOBODY, "turn a report into a success", 4, 'data = \'{{"outcome": "success"}}\''),
    update(EXECUTOR, "mark a receipt", 11, "status = 'processed', processed_at = now()"),
    update(NOBODY, "take a broadcast away", 12, "status = 'processed'"),
    # Deciding
    update(APPROVER, "approve", 5, "status = 'approved', read_at = now()"),
    update(APPROVER, "deny", 5, "status = 'denied', read_at = now()"),
    update(NOBODY, "approve what one asked oneself", 10, "status = 'approved'"),
    update(NOBODY, "approve after denying", 7, "status = 'approved'"),
    update(NOBODY, "deny after approving", 6, "status = 'denied'"),
    update(NOBODY, "approve what was used", 8, "status = 'approved'"),
    update(NOBODY, "approve what expired", 9, "status = 'approved'"),
    update(NOBODY, "approve what has no status", 14, "status = 'approved'"),
    update(NOBODY, "take an approval back", 6, "status = 'pending'"),
    update(NOBODY, "open a used request again", 8, "status = 'pending'"),
    update(NOBODY, "give a request no status", 5, "status = NULL"),
    update(NOBODY, "give a request another status", 5, "status = 'Approved'"),
    update(EXECUTOR | APPROVER, "tap twice", 6, "status = 'approved', read_at = now()"),
    update(EXECUTOR, "use", 6, f"status = 'processed', processed_at = now(), {note('decision')}"),
    update(EXECUTOR, "note who used it", 6, f"status = 'processed', {note('used_by')}"),
    update(EXECUTOR, "close a denied one", 7, f"status = 'processed', {note('decision')}"),
    update(EXECUTOR, "let one expire", 5, f"status = 'expired', {note('decision')}"),
    update(EXECUTOR, "let an approved one expire", 6, "status = 'expired'"),
    update(NOBODY, "change what was asked", 5, note("params")),
    update(NOBODY, "change what was approved", 6, note("digest")),
    update(NOBODY, "forget what was asked", 5, "data = '{{}}'"),
    # State and observations
    Action(
        "write one's own state",
        "INSERT INTO claude_state (agent_id, current_mode) VALUES ('{me}', 'awake')"
        " ON CONFLICT (agent_id) DO UPDATE SET current_mode = 'awake', last_wake_at = now()",
        EVERYBODY,
    ),
    Action(
        "write another's state",
        "INSERT INTO claude_state (agent_id, current_mode) VALUES ('intl_claude', 'awake')"
        " ON CONFLICT (agent_id) DO UPDATE SET current_mode = 'awake'",
        {"intl_claude"},
    ),
    Action(
        "pause another",
        "UPDATE claude_state SET current_mode = 'paused' WHERE agent_id = 'public_claude'",
        EXECUTOR,
    ),
    Action(
        "become another",
        "UPDATE claude_state SET agent_id = 'somebody' WHERE agent_id = 'public_claude'",
        NOBODY,
    ),
    Action(
        "observe as oneself",
        "INSERT INTO claude_observations (agent_id, observation_type, subject, content)"
        " VALUES ('{me}', 'system', 'x', 'y')",
        EVERYBODY,
    ),
    Action(
        "observe as another",
        "INSERT INTO claude_observations (agent_id, content) VALUES ('dev_claude', 'y')",
        {"dev_claude"},
    ),
    Action("change an observation", "UPDATE claude_observations SET content = 'z'", NOBODY),
    # Reading, and what nobody does
    *(
        Action(f"{verb} {table}", f"{statement} {table}", allowed)
        for table in ("claude_messages", "claude_state", "claude_observations")
        for verb, statement, allowed in (
            ("read", "SELECT * FROM", EVERYBODY),
            ("delete from", "DELETE FROM", NOBODY),
            ("empty", "TRUNCATE", NOBODY),
        )
    ),
    *(
        Action(f"move the numbers of {table}", f"SELECT setval('{table}_id_seq', 5000)", NOBODY)
        for table in ("claude_messages", "claude_observations")
    ),
    # What would stand between others and the tables
    Action("make a schema", "CREATE SCHEMA public_claude", NOBODY),
    Action("make a table", "CREATE TABLE claude_new ()", NOBODY),
    Action("make a view", "CREATE VIEW claude_new AS SELECT", NOBODY),
    Action("make a temporary table", "CREATE TEMPORARY TABLE claude_messages ()", NOBODY),
    Action(
        "make a function",
        "CREATE FUNCTION hashtextextended(text, integer) RETURNS bigint RETURN 1",
        NOBODY,
    ),
    *(
        Action(
            f"make a trigger on {table}",
            f"CREATE TRIGGER x BEFORE UPDATE ON {table} FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            NOBODY,
        )
        for table in ("claude_messages", "claude_state", "claude_observations")
    ),
    *(
        update(NOBODY, f"change {change.split()[0]} of #{row}", row, change)
        for row in (1, 4, 5, 6)
        for change in (
            "from_agent = '{me}'",
            "to_agent = '{me}'",
            "msg_type = 'message'",
            "priority = 'urgent'",
            "subject = 'x'",
            "body = 'TASK: x'",
            "reply_to_id = 3",
            "thread_id = 3",
            "created_at = now()",
            "expires_at = now()",
            "requires_response = true",
            "id = 1000",
        )
    ),
]


def reaches_a_row(conn: Any, statement: str, role: str) -> bool:
    """Try a statement and take it back; tell whether it was let through and reached any row."""
    with conn.cursor() as cursor:
        try:
            cursor.execute(statement.format(me=role))
        except psycopg2.errors.InsufficientPrivilege:
            return False
        finally:
            conn.rollback()
        return bool(cursor.rowcount != 0)


def fill(database: Database) -> None:
    for id, (sender, receiver, kind, status, data) in ROWS.items():
        database.execute(
            "INSERT INTO claude_messages (id, from_agent, to_agent, msg_type, status, subject,"
            f" body, data) VALUES (%s, %s, %s, %s, %s, 'Test', 'TASK: docker_ps', {data})",
            (id, sender, receiver, kind, status),
        )
    database.execute("SELECT setval('claude_messages_id_seq', 100)")
    database.execute("INSERT INTO claude_state (agent_id) VALUES ('public_claude')")
    database.execute("INSERT INTO claude_observations (agent_id, content) VALUES ('big_bro', 'x')")

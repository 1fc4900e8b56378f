"""Databases of their own for the tests, and what a test says about the rows in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extras import Json

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

# So much memory must be free for the servers of all workers.
ROOM_BYTES = 4 * 1024**3
PROGRAM_FOLDER = Path(__file__).resolve().parent.parent.parent
OUR_SCHEMA = "catalyst_heartbeat/sql/schema.sql"
SCHEMAS = (
    OUR_SCHEMA,
    "tests/support/production_schema.sql",
    "tests/support/variant_schema.sql",
)

# For a test that must hold on every schema found in the wild: @on_every_schema
on_every_schema = pytest.mark.parametrize("schema", SCHEMAS, indirect=True)


@contextmanager
def own_server() -> Iterator[EmbeddedPostgres]:
    """Start a server, in memory where there is room: a database costs a sixth there."""
    disk, memory = tempfile.gettempdir(), os.environ.get("TESTS_MEMORY")
    if memory and shutil.disk_usage(memory).free > ROOM_BYTES:
        tempfile.tempdir = memory
    with EmbeddedPostgres(fsync=False) as server:
        tempfile.tempdir = disk
        yield server


@dataclass(frozen=True)
class Database:
    """One database of the test server; each statement has a connection and commit of its own."""

    url: str

    def execute(self, statement: str | sql.Composable, params: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, [] for one that returns none."""
        with self.cursor() as cursor:
            cursor.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def rows(self, query: str, params: Any = None) -> list[dict[str, Any]]:
        """Run a query and return its rows as dicts."""
        with self.cursor() as cursor:
            cursor.execute(query, params)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        with closing(psycopg2.connect(self.url)) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                yield cursor


def require(available: object, reason: str) -> None:
    """Skip the test where a service is missing; fail where services are promised."""
    if available:
        return
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def new_database(server: EmbeddedPostgres, name: str, schema: str = OUR_SCHEMA) -> Database:
    """Create a database of that schema, which is the path of an SQL file in the project."""
    create(server, name)
    database = Database(server.url(name))
    database.execute((PROGRAM_FOLDER / schema).read_text())
    return database


def clone(server: EmbeddedPostgres, template: str, name: str) -> Database:
    create(server, name, template)
    return Database(server.url(name))


def create(server: EmbeddedPostgres, name: str, template: str = "template1") -> None:
    # Cheaper than WAL for so few pages.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    maintain(server, statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop(server: EmbeddedPostgres, name: str) -> None:
    maintain(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def maintain(server: EmbeddedPostgres, statement: sql.Composable) -> None:
    Database(server.url()).execute(statement)


def send(database: Database, body: str | None, **columns: Any) -> int:
    """Insert a message as big_bro does, a pending task unless `columns` say otherwise."""
    values = {
        "from_agent": "big_bro",
        "to_agent": "public_claude",
        "msg_type": "task",
        "subject": "Test",
        "body": body,
        "priority": "normal",
        "status": "pending",
        **columns,
    }
    statement = sql.SQL("INSERT INTO claude_messages ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join([sql.Placeholder()] * len(values)),
    )
    adapted = [Json(value) if isinstance(value, dict) else value for value in values.values()]
    return int(database.execute(statement, adapted)[0][0])


def message(database: Database, message_id: int) -> dict[str, Any]:
    (row,) = database.rows("SELECT * FROM claude_messages WHERE id = %s", (message_id,))
    return row


def messages(database: Database, **columns: Any) -> list[dict[str, Any]]:
    """Return the messages with these values, oldest first."""
    conditions = [f"{column} = %({column})s" for column in columns] or ["TRUE"]
    where = " AND ".join(conditions)
    return database.rows(f"SELECT * FROM claude_messages WHERE {where} ORDER BY id", columns)


def reports(database: Database, message_id: int) -> list[dict[str, Any]]:
    """Return the reports on a task, interim ones too, oldest first."""
    return messages(database, reply_to_id=message_id, msg_type="response")


def escalations(database: Database, message_id: int) -> list[dict[str, Any]]:
    return messages(database, reply_to_id=message_id, msg_type="escalation")


def decide(database: Database, escalation: dict[str, Any], status: str, body: str = "") -> int:
    """Approve or deny as the phone dashboard does: the status, then separately a receipt."""
    database.execute(
        "UPDATE claude_messages SET status = %s, read_at = now() WHERE id = %s",
        (status, escalation["id"]),
    )
    return send(
        database,
        body or status.upper(),
        from_agent="craig_mobile",
        to_agent=escalation["from_agent"],
        msg_type="response",
        subject=f"{status.capitalize()}: {escalation['subject']}",
    )


def state(database: Database, agent: str = "public_claude") -> dict[str, Any]:
    (row,) = database.rows("SELECT * FROM claude_state WHERE agent_id = %s", (agent,))
    return row

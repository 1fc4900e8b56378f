"""connection.py: whatever a server, a database or a login has as a default, and what it says."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from support.cycles import Cycles, end
from support.postgres import (
    OUR_SCHEMA,
    PROGRAM_FOLDER,
    Database,
    drop,
    maintain,
    message,
    messages,
    new_database,
    reports,
    send,
    state,
)

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import connection
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.connection import DatabaseLost, DatabaseUnfit, first_line

pytestmark = pytest.mark.slow

Heartbeat = Callable[..., subprocess.CompletedProcess[str]]

TURNED = {
    "client_encoding": "sql_ascii",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "search_path": "nowhere",
    "DateStyle": "SQL, DMY",
    "TimeZone": "Asia/Shanghai",
    "standard_conforming_strings": "off",
    "statement_timeout": "50ms",
    "lock_timeout": "1ms",
    "synchronous_commit": "off",
    "extra_float_digits": "-15",
    "row_security": "off",
    "quote_all_identifiers": "on",
    "idle_in_transaction_session_timeout": "1",
    "transaction_timeout": "50ms",
    "exit_on_error": "on",
    "transform_null_equals": "on",
}
TEXT = "d’é ⚠️ C:\\new 'größer'\n"
TABLES = (PROGRAM_FOLDER / OUR_SCHEMA).read_text()


def name_of(database: Database) -> str:
    return str(database.execute("SELECT current_database()")[0][0])


@pytest.mark.parametrize("names", [*([name] for name in TURNED), list(TURNED)], ids="-".join)
def test_no_default_of_a_database_changes_what_a_cycle_does(
    names: list[str],
    database: Database,
    postgres: EmbeddedPostgres,
    heartbeat: Heartbeat,
    tmp_path: Path,
) -> None:
    path = tmp_path / "services" / "notes.md"
    body = "TASK: write_file\nPARAMS: " + json.dumps(
        {"filepath": str(path), "content": TEXT}, ensure_ascii=False
    )
    sent = [send(database, body), send(database, "TASK: unknown"), send(database, "nonsense")]
    name = sql.Identifier(name_of(database))
    for turned in names:
        set_to = sql.SQL("ALTER DATABASE {} SET {} = {}")
        value = sql.SQL(", ").join(map(sql.Literal, TURNED[turned].split(", ")))
        maintain(postgres, set_to.format(name, sql.Identifier(turned), value))

    results = [heartbeat(), heartbeat("--check"), heartbeat("--status")]
    maintain(postgres, sql.SQL("ALTER DATABASE {} RESET ALL").format(name))

    assert [result.returncode for result in results] == [0, 0, 0], results
    verdicts = [reports(database, id)[-1]["data"]["outcome"] for id in sent]
    assert verdicts == ["success", "escalated", "rejected"]
    assert path.read_text() == TEXT
    assert "+d’é" in reports(database, sent[0])[0]["body"]
    assert [message(database, id)["status"] for id in sent] == [
        "processed",
        "escalated",
        "processed",
    ]


def test_a_statement_brings_its_settings_along_and_leaves_none_behind(agent: Connection) -> None:
    names = (
        "transaction_isolation", "transaction_read_only", "statement_timeout", "search_path",
        "TimeZone", "DateStyle", "synchronous_commit", "client_encoding", "extra_float_digits",
        "row_security", "quote_all_identifiers", "idle_in_transaction_session_timeout",
    )  # fmt: skip
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)

    (row,) = agent.fetch(shown)

    assert row == (
        "read committed", "off", "15s", "public, pg_temp", "UTC", "ISO, MDY", "on", "UTF8", "1",
        "on", "off", "0",
    )  # fmt: skip
    assert agent.conn
    with agent.conn.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchall() == [("0",)]


def test_what_ends_a_session_by_itself_is_turned_off(
    database: Database, postgres: EmbeddedPostgres
) -> None:
    """A wait for a row or a refusal would be a lost connection: the same again and again."""
    name = name_of(database)
    for turned in ("transaction_timeout = 300", "exit_on_error = on", "transform_null_equals = on"):
        maintain(postgres, sql.SQL(f"ALTER DATABASE {name} SET {turned}"))

    with closing(Connection(database.url, "public_claude", patient=False)) as agent:
        assert agent.fetch("SELECT pg_sleep(0.6)") == [("",)]
        assert agent.fetch("SELECT 1 = NULL") == [(None,)]
        with pytest.raises(psycopg2.errors.DivisionByZero):
            agent.fetch("SELECT 1 / 0")


def test_no_literal_of_a_statement_has_a_backslash() -> None:
    """With standard_conforming_strings off it would be another one."""
    roles = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text()
    statements = roles.split("$rights$")[1:2]
    for path in PROGRAM_FOLDER.glob("catalyst_heartbeat/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = getattr(node, "value", None) if isinstance(node, ast.Assign) else None
            if isinstance(value, ast.Constant) and re.search("SELECT|UPDATE", str(value.value)):
                statements.append(str(value.value))

    assert len(statements) > 30
    assert [found for found in statements if "\\" in found] == []


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_a_report_is_found_before_anything_is_claimed(
    encoding: str, postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    name = f"in_{encoding.lower()}"
    maintain(postgres, sql.SQL(f"CREATE DATABASE {name} ENCODING {encoding} TEMPLATE template0"))
    narrow = Database(postgres.url(name))
    narrow.execute(TABLES)
    sent = send(narrow, "TASK: disk_space")

    results = [
        heartbeat(*options, RESEARCH_DATABASE_URL=narrow.url)
        for options in ([], ["--check"], ["--status"], ["--init-db"])
    ]
    after = message(narrow, sent)
    drop(postgres, name)

    for result in results:
        assert result.returncode == 1
        said = result.stdout + result.stderr
        assert f"the database's encoding is {encoding}" in said
        assert "ENCODING 'UTF8'" in said
        assert "Traceback" not in said
    assert len(results[0].stderr.splitlines()) == 1
    assert (after["status"], after["data"]) == ("pending", None)


def test_a_standby_is_found_before_anything_is_claimed(
    own_postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    bus = new_database(own_postgres, "bus")
    sent = send(bus, "TASK: disk_space")
    own_postgres.stop()
    (own_postgres.folder / "data" / "standby.signal").touch()
    own_postgres.start()

    cycle, check = (
        heartbeat(*options, RESEARCH_DATABASE_URL=bus.url) for options in ([], ["--check"])
    )

    assert (cycle.returncode, check.returncode) == (1, 1)
    assert len(cycle.stderr.splitlines()) == 1
    assert "is a standby" in cycle.stderr
    assert "FAIL database" in check.stdout
    assert message(bus, sent)["status"] == "pending"


def schema_with_tables(database: Database, schema: str, owner: str = "postgres") -> None:
    database.execute(
        f'CREATE SCHEMA "{schema}"; SET search_path = "{schema}"; {TABLES}'
        f'; ALTER TABLE "{schema}".claude_messages OWNER TO "{owner}"'
    )


@pytest.fixture
def login(database: Database, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A login that is no superuser and may use what is in public."""
    name = f"login_of_{name_of(database)}"
    database.execute(
        f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA public TO {name};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}"
    )
    yield name
    database.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def url_of(database: Database, login: str) -> str:
    return database.url.replace("//postgres@", f"//{login}@")


@contextmanager
def database_without_tables(postgres: EmbeddedPostgres, *roles: str) -> Iterator[Database]:
    """Yield a new database beside new roles of the server."""
    for role in roles:
        maintain(postgres, sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    maintain(postgres, sql.SQL("CREATE DATABASE without_tables"))
    try:
        yield Database(postgres.url("without_tables"))
    finally:
        drop(postgres, "without_tables")
        for role in roles:
            maintain(postgres, sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_tables_are_found_in_whatever_schema_they_are(
    postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    with database_without_tables(postgres) as database:
        schema_with_tables(database, "The Bus%")
        result = heartbeat(RESEARCH_DATABASE_URL=database.url)
        rows = database.execute('SELECT current_mode FROM "The Bus%".claude_state')

    assert result.returncode == 0, result.stderr
    assert rows == [("sleeping",)]


def test_a_schema_named_like_the_login_never_shadows_the_tables(
    database: Database, login: str, heartbeat: Heartbeat
) -> None:
    schema_with_tables(database, login, login)
    sent = send(database, "TASK: unknown")
    database.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {login} TO {login}")

    result = heartbeat(RESEARCH_DATABASE_URL=url_of(database, login))

    assert result.returncode == 0, result.stderr
    assert message(database, sent)["status"] == "escalated"
    assert database.execute(f"SELECT * FROM {login}.claude_state") == []


def test_of_several_schemas_the_one_of_the_database_s_owner_holds_the_tables(
    postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    with database_without_tables(postgres, "shadow") as database:
        schema_with_tables(database, "bus")
        schema_with_tables(database, "aaa", "shadow")
        found = heartbeat(RESEARCH_DATABASE_URL=database.url)
        rows = database.execute("SELECT current_mode FROM bus.claude_state")
        schema_with_tables(database, "another")
        torn = heartbeat(RESEARCH_DATABASE_URL=database.url)

    assert (found.returncode, torn.returncode) == (0, 1), found.stderr
    assert rows == [("sleeping",)]
    assert "claude_messages is in the schemas another, bus: take USAGE" in torn.stderr


def test_tables_made_in_public_later_are_not_taken_for_those_in_a_schema_of_their_own(
    postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    with database_without_tables(postgres, "bus_owner", "intruder") as database:
        schema_with_tables(database, "research", "bus_owner")
        before = heartbeat(RESEARCH_DATABASE_URL=database.url)
        database.execute(f"{TABLES}; ALTER TABLE public.claude_messages OWNER TO intruder")
        after = heartbeat(RESEARCH_DATABASE_URL=database.url)
        rows = database.execute("SELECT * FROM public.claude_state")

    assert (before.returncode, after.returncode) == (0, 1), before.stderr
    assert "claude_messages is in the schemas public, research: take USAGE" in after.stderr
    assert rows == []


@pytest.mark.parametrize(
    "value", ["a\x00b", "\ud800", {"a": object()}, 1 << 70_000], ids=["nul", "half", "dict", "big"]
)
def test_what_cannot_be_sent_is_refused_like_what_the_database_refuses(
    value: object, agent: Connection
) -> None:
    with pytest.raises(psycopg2.Error):
        agent.fetch("SELECT %(value)s::text", {"value": value})

    assert agent.fetch("SELECT 1") == [(1,)]


@pytest.mark.slow
def test_a_deadlock_is_tried_again(
    database: Database, agent: Connection, sibling: Connection
) -> None:
    one, two = send(database, "1"), send(database, "2")
    both = """
        UPDATE claude_messages SET subject = %(name)s WHERE id = %(first)s;
        SELECT pg_sleep(0.3);
        UPDATE claude_messages SET subject = %(name)s WHERE id = %(second)s RETURNING subject"""
    rows: list[object] = []

    def work(connected: Connection, first: int, second: int) -> None:
        params = {"name": str(first), "first": first, "second": second}
        rows.extend(connected.fetch(both, params))

    # Both threads share the driver's one wait callback, which sets nothing of its own.
    threads = [
        threading.Thread(target=work, args=args)
        for args in ((agent, one, two), (sibling, two, one))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(rows) == 2
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert database.execute(count) != [(0,)]


def test_of_several_hosts_the_one_that_answered_is_quoted(
    database: Database, postgres: EmbeddedPostgres, heartbeat: Heartbeat
) -> None:
    hosts = f"%2Fnowhere,{str(postgres.folder).replace('/', '%2F')},%2Fnowhere2"

    result = heartbeat("--status", RESEARCH_DATABASE_URL=f"postgresql://postgres@{hosts}/nodb")

    assert result.returncode == 1
    assert 'FATAL:  database "nodb" does not exist' in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "query", ["sslmode=perhaps", "port=99999999", "target_session_attrs=any-of-them"]
)
def test_a_bad_value_in_the_url_is_a_fault_of_the_settings(
    query: str, heartbeat: Heartbeat
) -> None:
    result = heartbeat(RESEARCH_DATABASE_URL=f"postgresql://u:hunter22@127.0.0.1:1/d?{query}")

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "hunter22" not in result.stderr


@contextmanager
def speaking(answer: bytes) -> Iterator[str]:
    """Listen as a server that says only this; yield its URL."""

    def serve() -> None:
        conn, _ = server.accept()
        with conn:
            conn.recv(4096)
            conn.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"postgresql://u:p@127.0.0.1:{server.getsockname()[1]}/d?sslmode=disable"
        thread.join(10)


def test_a_server_that_speaks_latin_1_is_a_server_that_refuses() -> None:
    fields = b"SFATAL\0VFATAL\0C28000\0M" + "Passwort für u".encode("latin-1") + b"\0\0"
    answer = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields

    with (
        speaking(answer) as url,
        closing(Connection(url, "public_claude", patient=False)) as agent,
        pytest.raises(DatabaseLost, match=r"database not reachable: \w"),
    ):
        agent.fetch("SELECT 1")


def test_a_wait_for_one_of_few_connections_is_one_line_and_no_error(
    database: Database, login: str, cycles: Cycles
) -> None:
    url = url_of(database, login)
    database.execute(f"ALTER ROLE {login} CONNECTION LIMIT 1")
    sent = send(database, "TASK: disk_space")

    with closing(psycopg2.connect(url)):
        process = cycles.start("", "", "RECONNECT_SECONDS=0", RESEARCH_DATABASE_URL=url)
        assert process.stderr
        first = process.stderr.readline()
    finished = end(process)

    assert "waiting for a connection" in first
    assert finished.returncode == 0, finished.stderr
    assert not {"waiting", "WARNING", "ERROR"} & set(finished.stderr.split())
    assert message(database, sent)["status"] == "processed"
    assert not state(database)["error_count_today"]


@pytest.mark.parametrize(
    "said",
    [
        "FATAL:  sorry, too many clients already",
        'FATAL:  too many connections for role "public_claude"',
        'FATAL:  too many connections for database "bus"',
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
        "FATAL:  no more connections allowed (max_client_conn)",
        "FATAL:  MaxClientsInSessionMode: max clients reached",
    ],
)
def test_a_full_server_or_pooler_is_told_from_one_that_is_down(said: str) -> None:
    assert connection.NO_SLOT.search(said)
    assert not connection.NO_SLOT.search("FATAL:  the database system is starting up")


def test_a_login_without_rights_is_told_in_one_line(
    database: Database, login: str, heartbeat: Heartbeat
) -> None:
    database.execute(f"REVOKE ALL ON claude_state FROM {login}")

    result = heartbeat(RESEARCH_DATABASE_URL=url_of(database, login))

    assert result.returncode == 1
    assert "permission denied for table claude_state" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert messages(database, msg_type="response") == []


def test_the_first_line_of_an_error_is_its_cause() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    one, two = (f'connection to server at "{host}" failed: FATAL:  ' for host in "ab")
    tried = f"{one}no database\n{two}wrong password\n{two}no pg_hba.conf entry, no encryption\n"
    assert first_line(ValueError(tried)) == f"{two}wrong password"
    assert isinstance(DatabaseUnfit("x"), DatabaseLost)

"""The cycle's one database connection: bounded waits, and reconnecting when it is lost."""

from __future__ import annotations

import logging
import select
import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from catalyst_heartbeat.settings import SettingsError

log = logging.getLogger("heartbeat")

CONNECT_SECONDS = 10
# SET LOCAL: a pooler would hand a session's setting on to strangers.
STATEMENT_LIMIT = "SET LOCAL statement_timeout = '15s'; "
# A server that stopped answering is given up a little later than its own limit.
ANSWER_SECONDS = 20
RECONNECT_SECONDS = 30
LONGEST_PAUSE_SECONDS = 5.0

Row = tuple[Any, ...]
LOST = (psycopg2.OperationalError, psycopg2.InterfaceError)


class DatabaseLost(Exception):
    """The database could not be reached for RECONNECT_SECONDS."""


class Database:
    """One connection that sends each statement in its own transaction.

    A statement whose connection is lost is sent again on a new one, so every statement must be
    safe to repeat. Without `patient` one attempt to connect is all: a person waits.
    """

    def __init__(self, url: str, agent: str, *, patient: bool = True) -> None:
        self.url = url
        self.agent = agent
        self.patient = patient
        self.conn: extensions.connection | None = None

    def fetch(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement and return its rows, trying for RECONNECT_SECONDS to get through.

        Raises DatabaseLost when that fails, psycopg2.Error when the database refuses.
        """
        deadline = time.monotonic() + (RECONNECT_SECONDS if self.patient else 0)
        pause = 0.1
        while True:
            try:
                return self.fetch_once(statement, params)
            except LOST as error:
                if self.conn is not None and not self.conn.closed:
                    raise
                reason = first_line(error)
                if time.monotonic() + pause > deadline:
                    raise DatabaseLost(reason) from error
                log.warning("database lost, trying again in %.1f s: %s", pause, reason)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def query(self, statement: str, params: dict[str, Any]) -> list[Row]:
        """Run a statement that may only read; any attempt to write is an error."""
        return self.fetch("SET TRANSACTION READ ONLY; " + statement, params)

    def fetch_once(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement on the connection that there is, or on a new one."""
        if self.conn is None or self.conn.closed:
            self.conn = connect(self.url, self.agent)
        with self.conn.cursor() as cursor:
            cursor.execute(STATEMENT_LIMIT + statement, params)
            return cursor.fetchall() if cursor.description else []

    def run_script(self, script: str) -> None:
        """Run the statements of a file in one transaction, however long they take."""
        with connect(self.url, self.agent) as conn, conn.cursor() as cursor:
            extensions.set_wait_callback(None)
            cursor.execute(script)

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()


def connect(url: str, agent: str) -> extensions.connection:
    """Open a connection in autocommit mode.

    Raises SettingsError for a malformed URL, psycopg2.OperationalError when nobody answers.
    """
    # With a wait callback the driver would ignore connect_timeout.
    extensions.set_wait_callback(None)
    try:
        extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:
        # The driver's own message quotes the URL, password and all.
        raise SettingsError("RESEARCH_DATABASE_URL: not a valid PostgreSQL URL") from None
    conn = psycopg2.connect(
        url,
        connect_timeout=CONNECT_SECONDS,
        application_name=f"heartbeat {agent}",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=ANSWER_SECONDS * 1000,
    )
    conn.autocommit = True
    extensions.set_wait_callback(wait_for_answer)
    return conn


def wait_for_answer(conn: extensions.connection) -> None:
    """Wait until the server has answered, but no longer than ANSWER_SECONDS."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (state := conn.poll()) != extensions.POLL_OK:
        reads, writes = ([conn], []) if state == extensions.POLL_READ else ([], [conn])
        left = max(0.0, deadline - time.monotonic())
        if not any(select.select(reads, writes, [], left)):
            raise psycopg2.OperationalError(f"no answer within {ANSWER_SECONDS} s")


def first_line(error: BaseException) -> str:
    """Return what an error says, without the details that a driver puts on further lines."""
    return str(error).strip().partition("\n")[0]

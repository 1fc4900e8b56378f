"""The cycle's one database connection: bounded waits, and reconnecting when it is lost.

Nothing that the server, the database or the login has as a default is trusted: what a statement
depends on goes with it, since a pooler may run each in another session. What cannot be set is
looked at once after connecting, before anything is claimed.
"""

from __future__ import annotations

import logging
import os
import re
import select
import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from catalyst_heartbeat.configured_secrets import collect_secrets, hide
from catalyst_heartbeat.settings import SettingsError

log = logging.getLogger("heartbeat")

CONNECT_SECONDS = 10
STATEMENT_LIMIT = "15s"
# A server that stopped answering is given up a little later than its own limit.
ANSWER_SECONDS = 20
RECONNECT_SECONDS = 30
# For one of few connections that many agents share, before anything is claimed.
SLOT_SECONDS = 300
LONGEST_PAUSE_SECONDS = 5.0

Row = tuple[Any, ...]
LOST = (psycopg2.OperationalError, psycopg2.InterfaceError)
# Classes of SQLSTATE: a value, a constraint, a size, a trigger that raises, damage.
FAULTS_OF_A_ROW = ("22", "23", "54", "P0", "XX")
# What the driver itself raises on what it cannot send: NUL, half a surrogate pair, ...
UNSENDABLE = (ArithmeticError, MemoryError, RecursionError, TypeError, ValueError)
ANSWER = re.compile(r" failed: \w+:  ")
NO_SLOT = re.compile(
    r"too many (clients|connections)|slots are reserved|no more connections|max(imum)? clients?\b",
    re.IGNORECASE,
)

# LOCAL: a pooler would hand a session's settings on to strangers.
SETTINGS = """\
SET TRANSACTION ISOLATION LEVEL READ COMMITTED, {access}; \
SET LOCAL statement_timeout = '{limit}'; SET LOCAL lock_timeout = 0; {newer}\
SET LOCAL search_path = {schema}, pg_temp; \
SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, MDY'; \
SET LOCAL synchronous_commit = on; SET LOCAL extra_float_digits = 1; \
SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL row_security = on; \
SET LOCAL quote_all_identifiers = off; SET LOCAL transform_null_equals = off; \
SET LOCAL exit_on_error = off; """
# Known since PostgreSQL 17. What ends a session between its statements, `idle_session_timeout`, no
# statement can bring along: a new connection is made.
NO_TRANSACTION_TIMEOUT = "SET LOCAL transaction_timeout = 0; "

LOOK_AROUND = """
-- What cannot be set; and where the tables are, but never where "$user" would look first.
SELECT current_setting('server_encoding'), pg_is_in_recovery(), current_user::text,
       ARRAY(SELECT relnamespace::regnamespace::text FROM pg_class
              WHERE relname = 'claude_messages' AND relpersistence <> 't'
                AND relnamespace::regnamespace::text
                    NOT IN (quote_ident(session_user), quote_ident(current_user))
                AND has_schema_privilege(relnamespace, 'USAGE'))
"""

OWNED = """
-- The schemas in which claude_messages belongs to whom the database belongs to, or to a superuser.
SELECT relnamespace::regnamespace::text
  FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
 WHERE relname = 'claude_messages'
   AND (rolsuper OR relowner = (SELECT datdba FROM pg_database
                                 WHERE datname = current_database()))
"""


class DatabaseLost(Exception):
    """No statement gets through: the database could not be reached for RECONNECT_SECONDS."""


class DatabaseUnfit(DatabaseLost):
    """The database that was reached cannot be worked with; the message says what to change."""


class Unsendable(psycopg2.DataError):
    """The driver cannot send a value."""


class Database:
    """One connection that sends each statement in its own transaction.

    A statement whose connection is lost is sent again on a new one, so every statement must be
    safe to repeat. Without `patient` one attempt to connect is all: a person waits. Where it is
    `read_only` the server refuses every write.
    """

    def __init__(
        self, url: str, agent: str, *, patient: bool = True, read_only: bool = False
    ) -> None:
        self.url = url
        self.agent = agent
        self.patient = patient
        self.access = "READ ONLY" if read_only else "READ WRITE"
        self.conn: extensions.connection | None = None
        self.schema = "public"
        self.said_to_wait = False

    def fetch(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement and return its rows, trying for RECONNECT_SECONDS to get through.

        Raises DatabaseLost when that fails, psycopg2.Error when the database refuses.
        """
        started = time.monotonic()
        pause = 0.1
        while True:
            try:
                return self.fetch_once(statement, params)
            except LOST as error:
                if not self.may_repeat(error):
                    raise
                reason = self.reason(error)
                if time.monotonic() + pause > started + self.patience(reason):
                    raise DatabaseLost(f"database not reachable: {reason}") from error
                self.say(reason, pause)
            # At random, so that agents which start in the same second do not meet again and again.
            time.sleep(pause * (0.5 + os.urandom(1)[0] / 512))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def may_repeat(self, error: BaseException) -> bool:
        """Tell a lost connection, or a transaction that stood in another's way, from a refusal."""
        lost = self.conn is None or self.conn.closed
        return bool(lost) or isinstance(error, extensions.TransactionRollbackError)

    def patience(self, reason: str) -> float:
        """Return for how many seconds it is worth while to try."""
        if not self.patient:
            return 0
        return SLOT_SECONDS if self.conn is None and NO_SLOT.search(reason) else RECONNECT_SECONDS

    def say(self, reason: str, pause: float) -> None:
        """Log each loss, but a wait for a connection once."""
        if not NO_SLOT.search(reason):
            log.warning("database lost, trying again in %.1f s: %s", pause, reason)
        elif not self.said_to_wait:
            self.said_to_wait = True
            log.info("waiting for a connection, all are taken: %s", reason)

    def reason(self, error: BaseException) -> str:
        """Return why a connection failed, without any part of the URL's password."""
        return hide(first_line(error), collect_secrets({"": self.url}))

    def query(self, statement: str, params: dict[str, Any]) -> list[Row]:
        """Run a statement that may only read; any attempt to write is an error."""
        return self.fetch("SET TRANSACTION READ ONLY; " + statement, params)

    def fetch_once(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement on the connection that there is, or on a new one."""
        return send(self.connected(), self.access, self.schema, statement, params)

    def run_script(self, script: str) -> None:
        """Run the statements of a file in one transaction, however long they take."""
        conn = self.connected()
        extensions.set_wait_callback(None)
        send(conn, self.access, self.schema, "SET LOCAL statement_timeout = 0; " + script)

    def connected(self) -> extensions.connection:
        if self.conn is None or self.conn.closed:
            conn = connect(self.url, self.agent)
            self.schema = schema_of_tables(conn)
            self.conn = conn
        return self.conn

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()


class Rehearsal(Database):
    """A connection on which everything may be tried: it is one transaction, never committed."""

    def __init__(self, url: str, agent: str) -> None:
        super().__init__(url, agent, patient=False)
        super().fetch("BEGIN")

    def fetch_once(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement in the transaction; on another connection it would be committed."""
        if self.conn is None:
            return super().fetch_once(statement, params)
        return send(self.conn, self.access, self.schema, statement, params)


def connect(url: str, agent: str) -> extensions.connection:
    """Open a connection in autocommit mode.

    Raises SettingsError for a bad value in the URL, psycopg2.OperationalError when nobody answers.
    """
    forget_other_servers()
    # With a wait callback the driver would ignore connect_timeout.
    extensions.set_wait_callback(None)
    try:
        conn = psycopg2.connect(
            url,
            client_encoding="UTF8",
            connect_timeout=CONNECT_SECONDS,
            application_name=f"heartbeat {agent}",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=ANSWER_SECONDS * 1000,
        )
    except psycopg2.OperationalError as error:
        if str(error).startswith("invalid "):  # what libpq says before it tries any host
            raise SettingsError(f"the database's URL: {first_line(error)}") from None
        raise
    except UnicodeDecodeError as error:  # a server that speaks another language in Latin-1
        raise psycopg2.OperationalError(error.object.decode(errors="replace")) from error
    conn.autocommit = True
    extensions.set_wait_callback(wait_for_answer)
    return conn


def forget_other_servers() -> None:
    """Remove what libpq would let override what a URL leaves open, such as PGHOSTADDR."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def schema_of_tables(conn: extensions.connection) -> str:
    """Return the schema of the tables, quoted; raise DatabaseUnfit where nothing can be stored."""
    encoding, standby, login, schemas = look(conn, LOOK_AROUND)[0]
    if encoding != "UTF8":
        raise DatabaseUnfit(
            f"the database's encoding is {encoding}, which cannot hold every report; "
            "move the tables to one made with ENCODING 'UTF8'"
        )
    if standby:
        raise DatabaseUnfit(
            "the server is a standby, which takes no report; name the primary in the URL, "
            "or both hosts and target_session_attrs=primary"
        )
    if len(schemas) > 1:
        owned = [schema for (schema,) in look(conn, OWNED) if schema in schemas]
        schemas = owned or schemas
    # No name stands above another: in public anybody may have been able to create.
    if len(schemas) > 1:
        raise DatabaseUnfit(
            f"claude_messages is in the schemas {', '.join(sorted(schemas))}: take USAGE on all "
            f"but one of them from {login}"
        )
    return str(schemas[0]) if schemas else "public"


def look(conn: extensions.connection, query: str) -> list[Row]:
    return send(conn, "READ ONLY", "pg_catalog", query)


def send(
    conn: extensions.connection,
    access: str,
    schema: str,
    statement: str,
    params: dict[str, Any] | None = None,
) -> list[Row]:
    """Send a statement with all the settings it depends on, as one transaction."""
    newer = NO_TRANSACTION_TIMEOUT if conn.server_version >= 170000 else ""
    settings = SETTINGS.format(access=access, schema=schema, limit=STATEMENT_LIMIT, newer=newer)
    with conn.cursor() as cursor:
        try:
            cursor.execute(settings.encode() + cursor.mogrify(statement, params))
        except UNSENDABLE as error:
            raise Unsendable(f"cannot be sent: {first_line(error)}") from error
        return cursor.fetchall() if cursor.description else []


def wait_for_answer(conn: extensions.connection) -> None:
    """Wait until the server has answered, but no longer than ANSWER_SECONDS."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (state := conn.poll()) != extensions.POLL_OK:
        reads, writes = ([conn], []) if state == extensions.POLL_READ else ([], [conn])
        left = max(0.0, deadline - time.monotonic())
        if not any(select.select(reads, writes, [], left)):
            raise psycopg2.OperationalError(f"no answer within {ANSWER_SECONDS} s")


def first_line(error: BaseException) -> str:
    """Return the line of an error that names its cause, without a driver's details.

    Of several hosts that were tried, the last one that answered knows: its line has a severity.
    Of what one host answered the first counts: the second try is without TLS.
    """
    lines = str(error).strip().split("\n")
    answers = [line.partition(" failed: ")[::2] for line in lines if ANSWER.search(line)]
    told = [" failed: ".join(answer) for answer in answers if answer[0] == answers[-1][0]]
    return (told or lines)[0] or type(error).__name__


def is_fault_of_a_row(error: psycopg2.Error) -> bool:
    """Tell what one row causes by what it holds from what is wrong for every row."""
    return (error.pgcode or "").startswith(FAULTS_OF_A_ROW) or isinstance(error, Unsendable)

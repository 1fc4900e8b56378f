"""Behind PgBouncer in transaction mode, where every statement may run in another session."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg2.sql import SQL
from support.cycles import (
    HEARTBEATS,
    TASKS,
    Cycles,
    add_marker,
    end,
    end_leases,
    markers,
    numbered_edits,
    open_tasks,
    outcome,
    settle,
)
from support.docker_engine import wait_for
from support.postgres import (
    OUR_SCHEMA,
    PROGRAM_FOLDER,
    Database,
    decide,
    escalations,
    maintain,
    message,
    require,
    send,
)

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres, open_folder

pytestmark = pytest.mark.slow

CONFIGURATION = """
[databases]
* = host={server} port=5432 user=postgres
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = {size}
"""


class Pooler:
    """A running PgBouncer before a server."""

    def __init__(self, server: EmbeddedPostgres, program: str, size: int) -> None:
        self.program = program
        self.folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=open_folder()))
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which it refuses to be
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.configuration = self.folder / "pgbouncer.ini"
        self.configuration.write_text(
            CONFIGURATION.format(server=server.folder, folder=self.folder, size=size)
        )
        self.configuration.chmod(0o644)
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self.user,
            )
        wait_for((self.folder / ".s.PGSQL.6432").exists)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        (self.folder / ".s.PGSQL.6432").unlink()

    def url(self, database: Database) -> str:
        name = database.url.partition("@/")[2].partition("?")[0]
        return f"postgresql://postgres@/{name}?host={self.folder}&port=6432"


@contextmanager
def running_pooler(server: EmbeddedPostgres) -> Iterator[Pooler]:
    """Run a pooler with a single connection: whatever a session keeps, the next client gets."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    require(program, "needs pgbouncer")
    pooler = Pooler(server, str(program), size=1)
    try:
        yield pooler
    finally:
        pooler.kill()
        shutil.rmtree(pooler.folder)


@pytest.fixture
def pooler(postgres: EmbeddedPostgres) -> Iterator[Pooler]:
    with running_pooler(postgres) as pooler:
        yield pooler


@pytest.fixture
def pooled(pooler: Pooler, cycles: Cycles, database: Database) -> Cycles:
    cycles.environment["RESEARCH_DATABASE_URL"] = pooler.url(database)
    return cycles


def test_five_heartbeats_at_once_share_one_pooled_connection(
    database: Database, pooled: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "order.md"
    sent = [send(database, body) for body in numbered_edits(path, TASKS)]

    running = [pooled.start() for _ in range(HEARTBEATS)]
    finished = [end(process) for process in running]

    assert [heartbeat.returncode for heartbeat in finished] == [0] * HEARTBEATS
    assert open_tasks(database) == []
    assert path.read_text().split() == [*map(str, range(TASKS)), "END"]
    assert [outcome(database, id) for id in sent] == ["success"] * TASKS


def test_approval_crash_and_recovery_work_through_the_pooler(
    database: Database, pooled: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    asked = send(database, "TASK: disk_space", priority="urgent")
    change = send(database, add_marker(path))
    settings = {"TASKS_REQUIRING_APPROVAL": "disk_space"}

    pooled.kill("after the run", **settings)
    end_leases(database)
    assert pooled.run(**settings).returncode == 0
    decide(database, escalations(database, asked)[0], "approved")
    assert pooled.run(**settings).returncode == 0

    assert [outcome(database, id) for id in (asked, change)] == ["success", "success"]
    assert markers(path) == 1


def test_a_pooler_that_crashes_in_mid_cycle_costs_nothing(
    database: Database, pooled: Cycles, pooler: Pooler, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = send(database, add_marker(path))

    with pooled.held("after the run") as process:
        pooler.kill()
    pooler.start()
    finished = end(process)

    assert finished.returncode == 0, finished.stderr
    assert outcome(database, sent) == "success"
    assert markers(path) == 1


def test_nothing_of_a_cycle_stays_in_the_pooled_session(
    database: Database, pooled: Cycles, pooler: Pooler
) -> None:
    sent = send(database, "TASK: db_agent_status")
    settle(pooled, database)
    assert message(database, sent)["status"] == "processed"

    through = Database(pooler.url(database))

    assert through.execute("SHOW statement_timeout") == [("0",)]
    assert through.execute("SHOW transaction_read_only") == [("off",)]
    assert through.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.parametrize(
    ("unfit", "complaint"),
    [
        ("LATIN1", "the database's encoding is LATIN1"),
        ("SQL_ASCII", "the database's encoding is SQL_ASCII"),
        ("standby", "is a standby"),
    ],
)
def test_a_server_that_cannot_do_is_found_through_the_pooler_too(
    unfit: str, complaint: str, own_postgres: EmbeddedPostgres, cycles: Cycles
) -> None:
    encoding = "UTF8" if unfit == "standby" else unfit
    maintain(own_postgres, SQL(f"CREATE DATABASE bus ENCODING {encoding} TEMPLATE template0"))
    bus = Database(own_postgres.url("bus"))
    bus.execute((PROGRAM_FOLDER / OUR_SCHEMA).read_text())
    sent = send(bus, "TASK: disk_space")
    if unfit == "standby":
        own_postgres.stop()
        (own_postgres.folder / "data" / "standby.signal").touch()
        own_postgres.start()

    with running_pooler(own_postgres) as pooler:
        result = cycles.run(RESEARCH_DATABASE_URL=pooler.url(bus))

    assert result.returncode == 1
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert message(bus, sent)["status"] == "pending"


TURNED = (
    "client_encoding = sql_ascii",
    "default_transaction_isolation = serializable",
    "default_transaction_read_only = on",
    "search_path = nowhere",
    "DateStyle = SQL, DMY",
    "TimeZone = 'Asia/Shanghai'",
    "statement_timeout = '50ms'",
)


def test_no_default_and_no_leftover_in_a_pooled_session_counts(
    database: Database, pooled: Cycles, pooler: Pooler, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = send(database, add_marker(path))
    name = database.execute("SELECT current_database()")[0][0]
    for setting in TURNED:
        maintain(postgres, SQL(f"ALTER DATABASE {name} SET {setting}"))
        # What another client left in the one session that all share.
        Database(pooler.url(database)).execute(f"SET {setting}")

    results = [pooled.run(), pooled.run()]
    maintain(postgres, SQL(f"ALTER DATABASE {name} RESET ALL"))

    assert [result.returncode for result in results] == [0, 0], results
    assert outcome(database, sent) == "success"
    assert markers(path) == 1

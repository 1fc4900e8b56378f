"""Cycles that are struck at a named step, what they leave behind, and how it is counted."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions
from support.docker_engine import wait_for
from support.nursery import Heartbeat, Nursery
from support.postgres import Database, decide, escalations, reports, send

from catalyst_heartbeat.queue import claims, connection
from catalyst_heartbeat.queue import state as agent_state

# So many heartbeats start at once, and find so many tasks.
HEARTBEATS = 5
TASKS = 30
# The database refuses reports, as it does when its disk is full or it became read-only.
REFUSE_REPORTS = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_room BEFORE INSERT ON claude_messages FOR EACH ROW
    WHEN (NEW.msg_type = 'response') EXECUTE FUNCTION no_room()
"""
ACCEPT_REPORTS = "DROP FUNCTION no_room CASCADE"


@dataclass(frozen=True)
class Cycles:
    """Runs cycles of one agent, each in a process of its own."""

    nursery: Nursery
    environment: dict[str, str]
    folder: Path

    def start(
        self, step: str = "", action: str = "kill", *constants: str, **variables: str
    ) -> Heartbeat:
        """Start a cycle; see steps.py for what may happen to it."""
        environment = {**self.environment, **variables}
        return self.nursery.start(environment, (), step, action, constants)

    def run(self, *constants: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return end(self.start("", "", *constants, **variables))

    def kill(self, step: str, **variables: str) -> None:
        """Run a cycle that must get to that step, where it is killed."""
        finished = end(self.start(step, **variables))
        assert finished.returncode == -signal.SIGKILL, finished.stderr

    @contextmanager
    def held(self, step: str, *constants: str, **variables: str) -> Iterator[Heartbeat]:
        """Start a cycle and hold it at that step until the block ends."""
        place = Path(tempfile.mkdtemp(prefix="held-", dir=self.folder))
        process = self.start(step, str(place), *constants, **variables)
        try:
            wait_for(lambda: (place / "reached").exists() or process.poll() is not None)
            assert (place / "reached").exists(), end(process).stderr
            yield process
        finally:
            (place / "go").touch()


def end(heartbeat: Heartbeat) -> subprocess.CompletedProcess[str]:
    """Wait for a cycle's end."""
    return heartbeat.end()


@pytest.fixture
def cycles(nursery: Nursery, environment: dict[str, str], tmp_path: Path) -> Cycles:
    return Cycles(nursery, environment, tmp_path)


@pytest.fixture
def agent(database: Database) -> Iterator[connection.Database]:
    """The connection that a cycle of public_claude has."""
    yield from connected(database.url)


@pytest.fixture
def sibling(database: Database) -> Iterator[connection.Database]:
    """A second heartbeat's connection of the same agent."""
    yield from connected(database.url)


def connected(url: str) -> Iterator[connection.Database]:
    opened = connection.Database(url, "public_claude")
    agent_state.wake(opened, "craig_mobile")
    yield opened
    opened.close()


def lose_the_next_answer(agent: connection.Database) -> None:
    """Cut the connection once its next statement is committed."""
    assert agent.conn is not None
    descriptor = os.dup(agent.conn.fileno())
    real = socket.socket(fileno=descriptor)

    def wait_and_cut(conn: extensions.connection) -> None:
        extensions.set_wait_callback(connection.wait_for_answer)
        assert conn.poll() == extensions.POLL_READ
        select.select([real], [], [], 10)
        real.shutdown(socket.SHUT_RDWR)
        real.close()
        raise psycopg2.OperationalError("cut")

    extensions.set_wait_callback(wait_and_cut)


class Health(ThreadingHTTPServer):
    """A service whose health is asked for; counts how often."""

    daemon_threads = True
    requests = 0

    @property
    def port(self) -> str:
        return str(self.server_address[1])


@pytest.fixture
def health() -> Iterator[Health]:
    with Health(("127.0.0.1", 0), HealthHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class HealthHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Health)
        self.server.requests += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "healthy"}')

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the test's output is not this server's log."""


def end_leases(database: Database) -> None:
    """Let the time of every claim be over, without waiting for it."""
    database.execute(
        """UPDATE claude_messages
              SET data = jsonb_set(data, '{claim,lease_until}',
                                   to_jsonb(now() - interval '1 second'))
            WHERE status = 'processing' AND data -> 'claim' ->> 'lease_until' IS NOT NULL"""
    )


def finals(database: Database, message_id: int) -> list[dict[str, Any]]:
    """Return the final reports on a task: there must be one, ever."""
    return [report for report in reports(database, message_id) if report["data"]["final"]]


def outcome(database: Database, message_id: int) -> str:
    """Return what the one final report on a settled task says."""
    (report,) = finals(database, message_id)
    query = "SELECT status, processed_at IS NOT NULL FROM claude_messages WHERE id = %s"
    verdict = str(report["data"]["outcome"])
    status = "expired" if verdict == "expired" else "processed"
    assert database.execute(query, (message_id,)) == [(status, True)]
    return verdict


def settle(cycles: Cycles, database: Database, most: int = 10) -> None:
    """Run cycles, each after the leases of those before it, until no task is left."""
    for _ in range(most):
        end_leases(database)
        finished = cycles.run()
        assert finished.returncode == 0, finished.stderr
        if not open_tasks(database):
            return
    pytest.fail(f"not settled after {most} cycles: {open_tasks(database)}\n{finished.stderr}")


@contextmanager
def no_claims(database: Database) -> Iterator[None]:
    """Hold the lock that every claim of public_claude waits for."""
    lock = claims.LOCK % {"agent": "'public_claude'"}
    database.execute(
        "INSERT INTO claude_state (agent_id) VALUES ('public_claude') ON CONFLICT DO NOTHING"
    )
    with closing(psycopg2.connect(database.url)) as somebody, somebody.cursor() as cursor:
        cursor.execute(lock)
        yield


def lock_is_waited_for(database: Database) -> bool:
    query = "SELECT FROM pg_locks WHERE NOT granted"
    return database.execute(f"SELECT EXISTS ({query})") == [(True,)]


def add_marker(path: Path) -> str:
    """Return a task that adds a line to a file each time that it runs, and make the file."""
    path.write_text("END")
    params = {"filepath": str(path), "old_text": "END", "new_text": "marker\nEND"}
    return f"TASK: edit_file\nPARAMS: {json.dumps(params)}"


def markers(path: Path) -> int:
    return path.read_text().count("marker")


def decided(database: Database, cycles: Cycles, name: str, status: str, **settings: str) -> int:
    """Send a task that needs approval, let it be asked for, and decide it; return its id."""
    asked = send(database, f"TASK: {name}")
    cycles.run(**settings)
    decide(database, escalations(database, asked)[0], status)
    return asked


def open_tasks(database: Database) -> list[int]:
    """Return the ids of the tasks without their end."""
    rows = database.execute(
        """SELECT id FROM claude_messages
            WHERE msg_type = 'task' AND status IN ('pending', 'processing') ORDER BY id"""
    )
    return [id for (id,) in rows]


def numbered_edits(path: Path, count: int) -> list[str]:
    """Return tasks that each add their number to one file; the file shows which ran, and when."""
    path.write_text("END")
    return [
        "TASK: edit_file\nPARAMS: "
        + json.dumps({"filepath": str(path), "old_text": "END", "new_text": f"{number}\nEND"})
        for number in range(count)
    ]

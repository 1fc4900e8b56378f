"""What a cycle costs: round trips, imports, the rows that a claim touches, short cuts."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.plans import buffers, find, plan_of_a_claim
from support.postgres import (
    PROGRAM_FOLDER,
    Database,
    decide,
    drop,
    escalations,
    new_database,
    reports,
    send,
)

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

Heartbeat = Callable[..., CompletedProcess[str]]

MOST_IDLE_ROUND_TRIPS = 3
HISTORY, PENDING = 100_000, 100_000
# To find the next row: a path down one index, the row itself, and the three checks beside it.
MOST_BUFFERS_TO_FIND = 25
# A page of the index holds over a hundred entries of rows that are dead and not yet vacuumed.
MOST_BUFFERS_BEHIND_THE_DEAD = 120
# To change it: a new version of the row, and an entry in each index of the table.
MOST_BUFFERS_TO_CLAIM = 120


class Wire:
    """Stands between a client and the server, and counts what the client asks."""

    def __init__(self, server: Path, folder: Path) -> None:
        self.server = server
        self.queries = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self.server / ".s.PGSQL.5432"))
            threading.Thread(target=self.ask, args=(client, server), daemon=True).start()
            threading.Thread(target=pump, args=(server, client), daemon=True).start()

    def ask(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on the start and then message after message, counting the queries."""
        with suppress(OSError), client.makefile("rb") as stream, server:  # either side may end it
            size = stream.read(4)
            server.sendall(size + stream.read(int.from_bytes(size, "big") - 4))
            while kind := stream.read(1):
                size = stream.read(4)
                server.sendall(kind + size + stream.read(int.from_bytes(size, "big") - 4))
                self.queries += kind not in b"pX"

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), source, target:
        while chunk := source.recv(65536):
            target.sendall(chunk)


@pytest.fixture
def round_trips(
    postgres: EmbeddedPostgres, database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> Iterator[Callable[[], int]]:
    """Return a function that runs a cycle and returns how many round trips it took."""
    with closing(Wire(postgres.folder, tmp_path)) as wire:
        url = database.url.replace(str(postgres.folder), str(tmp_path))

        def run() -> int:
            wire.queries = 0
            result = heartbeat(RESEARCH_DATABASE_URL=url)
            assert result.returncode == 0, result.stderr
            return wire.queries

        yield run


def test_an_idle_cycle_takes_few_round_trips(round_trips: Callable[[], int]) -> None:
    assert 1 <= round_trips() <= MOST_IDLE_ROUND_TRIPS
    assert 1 <= round_trips() <= MOST_IDLE_ROUND_TRIPS


def test_a_request_that_waits_for_the_approver_costs_an_idle_cycle_nothing(
    database: Database, heartbeat: Heartbeat, round_trips: Callable[[], int]
) -> None:
    task = send(database, "TASK: rm_rf")
    heartbeat()

    waiting = round_trips()
    decide(database, escalations(database, task)[0], "denied")
    decided = round_trips()

    assert waiting <= MOST_IDLE_ROUND_TRIPS < decided
    assert reports(database, task)[-1]["data"]["outcome"] == "denied"


def test_a_task_costs_one_round_trip_for_its_report_and_the_next_claim(
    database: Database, round_trips: Callable[[], int]
) -> None:
    taken = []
    for count in (1, 2, 7):
        for _ in range(count):
            send(database, "TASK: list_tasks")
        taken.append(round_trips())

    assert [after - before for before, after in itertools.pairwise(taken)] == [1, 5]
    assert taken[0] > MOST_IDLE_ROUND_TRIPS


@pytest.mark.parametrize(
    ("body", "loaded", "spared"),
    [
        (
            None,
            {"psycopg2"},
            {"pydantic", "docker", "catalyst_heartbeat.cycle", "catalyst_heartbeat.report"},
        ),
        (
            "TASK: list_tasks",
            {"pydantic", "catalyst_heartbeat.cycle", "catalyst_heartbeat.report"},
            {"docker"},
        ),
        ("TASK: docker_ps", {"pydantic", "docker"}, set()),
    ],
)
def test_a_cycle_loads_only_what_its_tasks_need(
    body: str | None,
    loaded: set[str],
    spared: set[str],
    database: Database,
    environment: dict[str, str],
) -> None:
    if body:
        send(database, body)

    result = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", PROGRAM_FOLDER / "heartbeat_public.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    modules = set(re.findall(r"^import time: .*\| +(\S+)$", result.stderr, re.M))
    assert loaded <= modules
    assert not spared & modules


@pytest.fixture(scope="module")
def crowded(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A database of 100,000 processed tasks and 100,000 pending ones."""
    database = new_database(postgres, "crowded")
    fill = """
        INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, status)
        SELECT 'big_bro', 'public_claude', 'task', 'Test', 'TASK: list_tasks', %s
          FROM generate_series(1, %s)"""
    database.execute("ALTER TABLE claude_messages SET (autovacuum_enabled = off)")
    database.execute(fill, ("processed", HISTORY))
    database.execute(fill, ("pending", PENDING))
    database.execute("VACUUM ANALYZE claude_messages")
    yield database
    drop(postgres, "crowded")


def buffers_of_a_claim(database: Database) -> tuple[int, int]:
    """Return the buffers read to find the row, and those of all of a claim."""
    plan = plan_of_a_claim(database)
    return buffers(find(plan, "CTE next")), buffers(plan)


def test_a_claim_among_200_000_rows_reads_a_handful_of_buffers(crowded: Database) -> None:
    to_find, in_all = buffers_of_a_claim(crowded)

    assert to_find <= MOST_BUFFERS_TO_FIND
    assert in_all <= MOST_BUFFERS_TO_CLAIM


def test_a_claim_reads_none_of_the_reports_that_the_statistics_do_not_know(
    database: Database,
) -> None:
    """In a long cycle the agent's own reports pile up, and the planner still knows of none."""
    database.execute("ALTER TABLE claude_messages SET (autovacuum_enabled = off)")
    for _ in range(10):
        send(database, "TASK: list_tasks")
    fill = """
        INSERT INTO claude_messages (from_agent, to_agent, msg_type, status)
        SELECT 'big_bro', 'public_claude', 'task', 'processed' FROM generate_series(1, 4000)"""
    report = """
        INSERT INTO claude_messages (from_agent, to_agent, msg_type, reply_to_id, data, body)
        SELECT 'public_claude', 'big_bro', 'response', id, '{"final": true}', repeat('text ', 200)
          FROM claude_messages WHERE status = 'processed'"""
    database.execute(fill)
    database.execute("VACUUM ANALYZE claude_messages")
    database.execute(report)

    _, in_all = buffers_of_a_claim(database)

    assert in_all <= MOST_BUFFERS_TO_CLAIM


def test_a_claim_in_a_burst_that_the_statistics_do_not_know_sorts_no_queue(
    database: Database,
) -> None:
    database.execute("ALTER TABLE claude_messages SET (autovacuum_enabled = off)")
    fill = """
        INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, status)
        SELECT %s, 'public_claude', 'task', %s, %s FROM generate_series(1, 10000)"""
    database.execute(fill, ("big_bro", "normal", "processed"))
    database.execute("VACUUM ANALYZE claude_messages")
    database.execute(fill, ("stranger", "urgent", "pending"))
    database.execute(fill, ("big_bro", "normal", "pending"))

    to_find, _ = buffers_of_a_claim(database)

    assert to_find <= MOST_BUFFERS_TO_FIND


def test_a_claim_behind_10_000_dead_rows_reads_none_of_them(crowded: Database) -> None:
    done = "UPDATE claude_messages SET status = 'processed' WHERE status = 'pending' AND id <= %s"
    crowded.execute(done, (HISTORY + 10_000,))

    to_find, _ = buffers_of_a_claim(crowded)

    crowded.execute("UPDATE claude_messages SET status = 'pending' WHERE id > %s", (HISTORY,))
    crowded.execute("VACUUM ANALYZE claude_messages")
    assert to_find <= MOST_BUFFERS_BEHIND_THE_DEAD


def test_without_its_index_a_claim_would_read_the_whole_queue(crowded: Database) -> None:
    (definition,) = crowded.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexname = 'idx_task_queue_by_sender'"
    )[0]
    crowded.execute("DROP INDEX idx_task_queue_by_sender")

    to_find, _ = buffers_of_a_claim(crowded)

    crowded.execute(definition)
    assert to_find > 5 * MOST_BUFFERS_TO_FIND

"""The database goes away at any moment: stopped, restarted, cut off, silent, answers lost."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from support.cycles import (
    Cycles,
    add_marker,
    end,
    end_leases,
    finals,
    lose_the_next_answer,
    markers,
    open_tasks,
    outcome,
    settle,
)
from support.docker_engine import wait_for
from support.postgres import Database, escalations, message, new_database, reports, send, state
from support.transitions import TERMS

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import claims, connection
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.connection import Database as Connection

BEFORE_REPORT = "before the report"
STEPS = (
    "before the waking",
    "before the claim",
    "after the claim",
    "before the run",
    "after the run",
    BEFORE_REPORT,
    "after the report",
    "before the rest",
)
GIVE_UP_SOON = "RECONNECT_SECONDS=1"
OF_THE_HEARTBEAT = "application_name = 'heartbeat public_claude'"


@pytest.fixture
def own_cycles(own_postgres: EmbeddedPostgres, cycles: Cycles) -> Cycles:
    """Cycles on a server that the test may stop."""
    cycles.environment["RESEARCH_DATABASE_URL"] = own_postgres.url("bus")
    return cycles


@pytest.fixture
def own_database(own_postgres: EmbeddedPostgres) -> Database:
    return new_database(own_postgres, "bus")


def notes(folder: Path, name: str) -> Path:
    return folder / "services" / f"{name}.md"


@pytest.mark.slow
def test_a_server_that_crashes_and_comes_back_in_mid_cycle_costs_nothing(
    own_database: Database, own_cycles: Cycles, own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    for number, step in enumerate(STEPS):
        path = notes(tmp_path, str(number))
        sent = send(own_database, add_marker(path))

        with own_cycles.held(step) as process:
            own_postgres.stop("immediate")
        own_postgres.start()
        finished = end(process)

        assert finished.returncode == 0, (step, finished.stderr)
        assert "Traceback" not in finished.stderr
        assert outcome(own_database, sent) == "success", step
        assert markers(path) == 1, step


@pytest.mark.slow
def test_a_server_that_stays_away_leaves_one_truthful_report(
    own_database: Database, own_cycles: Cycles, own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    outbox = tmp_path / "state/public_claude/outbox"
    for number, step in enumerate(STEPS):
        path = notes(tmp_path, str(number))
        sent = send(own_database, add_marker(path))

        with own_cycles.held(step, GIVE_UP_SOON) as process:
            own_postgres.stop("immediate")
        finished = end(process)
        waiting = list(outbox.glob("*.json"))
        own_postgres.start()
        settle(own_cycles, own_database)

        assert finished.returncode == 1, (step, finished.stderr)
        assert "Traceback" not in finished.stderr
        ran = step in ("before the run", "after the run", BEFORE_REPORT)
        assert len(waiting) == int(ran), step
        # What is claimed cannot be decided on without the database: it never ran, and says so.
        undecided = step == "after the claim"
        assert outcome(own_database, sent) == ("failed" if undecided else "success"), step
        assert markers(path) == int(not undecided), step
        assert not list(outbox.glob("*.json"))


def test_a_cycle_without_a_database_tries_for_a_while_and_ends_with_1(cycles: Cycles) -> None:
    nowhere = f"postgresql://nobody@/bus?host={cycles.folder}"

    finished = cycles.run(GIVE_UP_SOON, RESEARCH_DATABASE_URL=nowhere)

    assert finished.returncode == 1
    lines = finished.stderr.splitlines()
    assert "WARNING database lost, trying again in 0.1 s: " in lines[0]
    assert re.search(r"ERROR database not reachable: connection to server .* failed", lines[-1])
    assert "Traceback" not in finished.stderr


def test_a_connection_that_the_server_cuts_is_made_anew(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    for number, step in enumerate(STEPS[1:]):
        path = notes(tmp_path, str(number))
        sent = send(database, add_marker(path))

        with cycles.held(step) as process:
            cut = database.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OF_THE_HEARTBEAT}"
                " AND datname = current_database()"
            )
        finished = end(process)

        assert cut == [(True,)]
        assert finished.returncode == 0, (step, finished.stderr)
        assert "database lost, trying again" in finished.stderr
        assert outcome(database, sent) == "success", step
        assert finals(database, sent)[0]["data"]["attempt"] == 1
        assert markers(path) == 1, step


class Lossy:
    """Stands between a cycle and its server and loses one statement, or its answer."""

    def __init__(self, server: Path, place: Path, lost: int, what: str) -> None:
        self.server, self.lost, self.what = server, lost, what
        self.seen = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(place / ".s.PGSQL.5432"))
        self.listener.listen()

    def serve(self) -> None:
        """Carry one connection after the other until the listener is shut down."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as upstream:
                upstream.connect(str(self.server / ".s.PGSQL.5432"))
                self.carry(client, upstream)

    def carry(self, client: socket.socket, upstream: socket.socket) -> None:
        back = threading.Thread(target=self.carry_back, args=(upstream, client))
        back.start()
        while chunk := client.recv(1 << 20):
            self.seen += chunk.startswith(b"Q")
            if self.seen == self.lost and self.what == "statement":
                break
            upstream.sendall(chunk)
        self.shut(client, upstream)
        back.join()

    def carry_back(self, upstream: socket.socket, client: socket.socket) -> None:
        while chunk := upstream.recv(1 << 20):
            if self.seen == self.lost and self.what == "answer":
                break
            client.sendall(chunk)
        self.seen += self.seen == self.lost
        self.shut(client, upstream)

    def shut(self, *sides: socket.socket) -> None:
        for side in sides:
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def lossy(server: EmbeddedPostgres, place: Path, lost: int, what: str) -> Iterator[Lossy]:
    place.mkdir()
    proxy = Lossy(server.folder, place, lost, what)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    yield proxy
    proxy.listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    proxy.listener.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["statement", "answer"])
def test_every_statement_and_every_answer_may_be_lost(
    database: Database, postgres: EmbeddedPostgres, cycles: Cycles, tmp_path: Path, what: str
) -> None:
    """An answer is lost after the server has committed; then the statement is sent again."""
    name = database.url.partition("@/")[2].partition("?")[0]
    for lost in range(1, 100):
        path = notes(tmp_path, str(lost))
        asked = json.dumps({"filepath": str(path)})
        sent = [
            send(database, add_marker(path)),
            send(database, f"TASK: read_file\nPARAMS: {asked}"),
        ]

        place = tmp_path / f"{what[0]}{lost}"  # a socket's path has few characters
        with lossy(postgres, place, lost, what) as proxy:
            url = f"postgresql://postgres@/{name}?host={place}"
            finished = cycles.run(
                RESEARCH_DATABASE_URL=url,
                TASKS_REQUIRING_APPROVAL="read_file",
                MAX_OPEN_ESCALATIONS="100",
            )

        if proxy.seen < lost:
            break
        assert finished.returncode == 0, (lost, finished.stderr)
        assert finished.stderr.count("database lost, trying again") == 1, (lost, finished.stderr)
        assert outcome(database, sent[0]) == "success", lost
        assert finals(database, sent[0])[0]["data"]["attempt"] == 1, lost
        assert markers(path) == 1, lost
        assert message(database, sent[1])["status"] == "escalated", (lost, finished.stderr)
        assert len(escalations(database, sent[1])) == len(reports(database, sent[1])) == 1, lost
    assert lost > 8


@pytest.mark.slow
def test_an_answer_lost_at_recovery_leaves_the_task_for_the_next_cycle(
    database: Database, postgres: EmbeddedPostgres, cycles: Cycles, tmp_path: Path
) -> None:
    name = database.url.partition("@/")[2].partition("?")[0]
    for lost in range(1, 100):
        path = notes(tmp_path, str(lost))
        sent = send(database, add_marker(path))
        cycles.kill("after the run")
        end_leases(database)

        with lossy(postgres, tmp_path / f"r{lost}", lost, "answer") as proxy:
            url = f"postgresql://postgres@/{name}?host={tmp_path}/r{lost}"
            finished = cycles.run(RESEARCH_DATABASE_URL=url)
        assert finished.returncode == 0, (lost, finished.stderr)
        settle(cycles, database)

        assert outcome(database, sent) == "success", lost
        assert markers(path) == 1, lost
        if proxy.seen < lost:
            break


def test_a_claim_whose_answer_was_lost_keeps_its_deadline(
    database: Database, agent: Connection
) -> None:
    send(database, "TASK: disk_space")
    database.execute("UPDATE claude_messages SET expires_at = now() - interval '1 hour'")
    agent_state.wake(agent, "craig_mobile")
    lose_the_next_answer(agent)

    held = claims.claim_next(agent, TERMS)

    assert held is not None
    assert held.message.too_late


def test_a_server_that_hangs_is_given_up_and_its_late_answer_changes_nothing(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = notes(tmp_path, "hangs")
    sent = send(database, add_marker(path))

    with cycles.held("before the report", "ANSWER_SECONDS=1") as process:
        ((backend,),) = database.execute(
            f"SELECT pid FROM pg_stat_activity WHERE {OF_THE_HEARTBEAT}"
            " AND datname = current_database()"
        )
        os.kill(backend, signal.SIGSTOP)
    try:
        finished = end(process)
    finally:
        os.kill(backend, signal.SIGCONT)
    backends = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_for(lambda: database.execute(backends, (backend,)) == [(0,)])

    assert finished.returncode == 0, finished.stderr
    assert "no answer within 1 s" in finished.stderr
    assert outcome(database, sent) == "success"
    assert markers(path) == 1


def test_a_task_claimed_too_long_ago_is_given_back_and_not_run_beyond_its_lease(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = notes(tmp_path, "slow")
    sent = send(database, add_marker(path))

    with cycles.held("after the claim", "LATEST_START_SECONDS=1.0") as process:
        time.sleep(1.1)  # the clock that counts is the process's own
    finished = end(process)

    assert finished.returncode == 0
    assert f"#{sent} edit_file: given back, too little of its lease was left" in finished.stderr
    assert outcome(database, sent) == "success"
    assert finals(database, sent)[0]["data"]["attempt"] >= 2
    assert markers(path) == 1


def test_a_statement_that_takes_too_long_is_ended_and_not_repeated(
    agent: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STATEMENT_LIMIT", "200ms")

    with pytest.raises(psycopg2.errors.QueryCanceled):
        agent.fetch("SELECT pg_sleep(30)")

    assert agent.fetch("SELECT 1") == [(1,)]


def test_waits_are_bounded_and_no_limit_outlives_its_statement(agent: Connection) -> None:
    assert agent.fetch("SHOW statement_timeout") == [("15s",)]
    assert agent.conn is not None
    with agent.conn.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchall() == [("0",)]
    sent = agent.conn.info.dsn_parameters
    names = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count")
    assert [sent[name] for name in names] == ["10", "10", "5", "3"]
    assert sent["tcp_user_timeout"] == str(connection.ANSWER_SECONDS * 1000)
    assert not sent.get("options")


def test_a_query_for_a_task_cannot_write(database: Database, agent: Connection) -> None:
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        agent.query("DELETE FROM claude_messages", {})


def test_a_cycle_that_fails_says_why_and_notes_it_in_the_agents_state(
    database: Database, cycles: Cycles
) -> None:
    send(database, "TASK: disk_space")
    database.execute("ALTER TABLE claude_observations RENAME TO elsewhere")

    failed = cycles.run()
    noted = state(database)
    database.execute("ALTER TABLE elsewhere RENAME TO claude_observations")
    settle(cycles, database)

    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "ERROR schema incomplete" in line
    assert "claude_observations" in line
    assert (noted["current_mode"], noted["error_count_today"]) == ("sleeping", 1)
    assert "claude_observations" in noted["last_error"]
    assert noted["last_error_at"] is not None
    assert open_tasks(database) == []

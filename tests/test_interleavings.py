"""Random interleavings of claim, run, finish, lose, recover and release on the real SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import messages
import outbox
import recovery
from connection import Database as Connection
from messages import AtWork, Claim
from reports import Report
from settings import Settings
from task_executor import TIMEOUTS
from tests.cycles import end_leases
from tests.postgres import Database, send

WORKERS = st.integers(0, 2)
MOST_ATTEMPTS = 3
# Nothing on this machine can tell whether the change happened: it always ends as UNKNOWN.
CHANGE, READ = "TASK: restart_dashboard", "TASK: disk_space"


class Worker:
    """A heartbeat that may stop for any time between two of its steps."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url, "public_claude")
        self.held: Claim | None = None
        self.ran = False
        self.seen: list[AtWork] = []
        self.recovered: tuple[Claim, Report | None] | None = None


def report(verdict: str) -> Report:
    return Report("Task Report: Test", verdict, {"final": True, "outcome": verdict})


def interleavings(
    database: Database, settings: Settings, workers: list[Worker]
) -> type[RuleBasedStateMachine]:
    """Return the machine for one database."""

    class Interleavings(RuleBasedStateMachine):
        @initialize()
        def begin_anew(self) -> None:
            database.execute("TRUNCATE claude_messages, claude_state")
            for path in outbox.waiting(settings):
                path.unlink()
            for worker in workers:
                worker.held, worker.seen, worker.recovered = None, [], None
            self.runs: Counter[int] = Counter()

        @rule(body=st.sampled_from([CHANGE, READ]), priority=st.sampled_from(["normal", "high"]))
        def send_a_task(self, body: str, priority: str) -> None:
            send(database, body, priority=priority)

        @rule(worker=WORKERS)
        def claim(self, worker: int) -> None:
            held = messages.claim_next(workers[worker].connection, 24, TIMEOUTS)
            workers[worker].held, workers[worker].ran = held, False

        @rule(worker=WORKERS)
        def run(self, worker: int) -> None:
            held = workers[worker].held
            if held and not workers[worker].ran and not held.reported:
                workers[worker].ran = True
                self.runs[held.id] += 1

        @rule(worker=WORKERS, stored=st.booleans())
        def finish(self, worker: int, stored: bool) -> None:
            held, workers[worker].held = workers[worker].held, None
            if held and workers[worker].ran:
                if stored:
                    finish_with(workers[worker], held, report("success"))
                else:
                    outbox.store(settings, held.id, held.token, "processed", report("success"))

        @rule(worker=WORKERS)
        def finish_but_lose_the_answer(self, worker: int) -> None:
            held = workers[worker].held
            if held and workers[worker].ran:
                finish_with(workers[worker], held, report("success"))

        @rule(worker=WORKERS)
        def give_back_without_running(self, worker: int) -> None:
            held = workers[worker].held
            if held and not workers[worker].ran:
                messages.release(workers[worker].connection, held.id, held.token)
                workers[worker].held = None

        @rule()
        def let_all_leases_end(self) -> None:
            end_leases(database)

        @rule(worker=WORKERS)
        def look_who_is_at_work(self, worker: int) -> None:
            found = messages.at_work(workers[worker].connection)
            workers[worker].seen = [one for one in found if not recovery.lease_is_live(one)]

        @rule(worker=WORKERS)
        def take_over(self, worker: int) -> None:
            if workers[worker].seen:
                found = workers[worker].seen.pop()
                conn = workers[worker].connection
                held = messages.claim_interrupted(conn, found, 60)
                if held:
                    outcome = recovery.find_outcome(conn, settings, held, found)
                    said = report(outcome.verdict) if outcome else None
                    workers[worker].recovered = held, said

        @rule(worker=WORKERS)
        def end_recovery(self, worker: int) -> None:
            recovered, workers[worker].recovered = workers[worker].recovered, None
            if recovered:
                held, said = recovered
                if said:
                    finish_with(workers[worker], held, said)
                else:
                    messages.release(workers[worker].connection, held.id, held.token)

        @invariant()
        def the_promises_hold(self) -> None:
            rows = tasks(database)
            assert sum(row["status"] == "processing" for row in rows) <= 1
            for row in rows:
                assert row["finals"] == (row["status"] == "processed"), row
                assert self.runs[row["id"]] <= (1 if row["body"] == CHANGE else MOST_ATTEMPTS)

    return Interleavings


def finish_with(worker: Worker, held: Claim, said: Report) -> None:
    messages.finish(worker.connection, held.id, held.token, "processed", said)


def tasks(database: Database) -> list[dict[str, Any]]:
    return database.rows(
        """SELECT id, body, status, (SELECT count(*) FROM claude_messages AS report
                                      WHERE report.reply_to_id = task.id) AS finals
             FROM claude_messages AS task WHERE msg_type = 'task'"""
    )


@contextmanager
def three_workers(url: str) -> Iterator[list[Worker]]:
    workers = [Worker(url) for _ in range(3)]
    with (
        closing(workers[0].connection),
        closing(workers[1].connection),
        closing(workers[2].connection),
    ):
        yield workers


@pytest.mark.slow
def test_no_interleaving_reports_twice_or_changes_twice(
    database: Database, settings: Settings
) -> None:
    database.execute("DROP INDEX idx_one_final_report")  # the statements alone must do
    with three_workers(database.url) as workers:
        run_state_machine_as_test(
            interleavings(database, settings, workers),
            settings=examples(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

"""Random interleavings of claim, run, finish, die, take over, recover, release on the real SQL."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.cycles import end_leases
from support.postgres import Database, send
from support.transitions import TERMS

from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.queue import claims, endings, listing, outbox, recovery
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.claims import Claim
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.queue.listing import AtWork
from catalyst_heartbeat.report import Report
from catalyst_heartbeat.settings import Settings
from task_executor import WHITELIST

EXAMPLES = 80
MOST_ATTEMPTS = 3
MOST_TASKS = 4
# Nothing on this machine can tell whether the change happened: it always ends as UNKNOWN.
CHANGE, READ = "TASK: restart_dashboard", "TASK: disk_space"
TASKS = """
SELECT id, body, status, (SELECT count(*) FROM claude_messages AS report
                           WHERE report.reply_to_id = task.id)
  FROM claude_messages AS task WHERE msg_type = 'task'
"""
HOLDER = "SELECT data #>> '{claim,token}' FROM claude_messages WHERE id = %(id)s"

Move = Callable[[], None]


class Worker:
    """A heartbeat that may stop for any time, or for ever, between two of its steps."""

    def __init__(self, conn: Connection, settings: Settings, runs: Counter[int]) -> None:
        self.conn = conn
        self.settings = settings
        self.runs = runs
        self.held: Claim | None = None
        self.ran = False
        self.seen: list[AtWork] = []
        self.recovered: tuple[Claim, Ending | None] | None = None

    def moves(self) -> Iterator[Move]:
        """Yield what this worker may do next."""
        if self.held is None:
            yield self.claim
        elif self.ran:
            yield from (partial(self.finish, self.held, how) for how in ("stored", "lost", "kept"))
            yield from [partial(self.finish_and_claim, self.held)] * 2
            yield self.die
        else:
            yield from [partial(self.run, self.held)] * 3
            yield partial(self.give_back, self.held)
            yield self.die
        if self.seen:
            yield self.take_over
        if self.recovered:
            yield partial(self.end_recovery, *self.recovered)

    def claim(self) -> None:
        self.hold(claims.claim_next(self.conn, TERMS))

    def hold(self, held: Claim | None) -> None:
        if held and held.message.reported:
            endings.close(self.conn, held.id, held.token)
        else:
            self.held = held

    def run(self, held: Claim) -> None:
        self.runs[held.id] += 1
        self.ran = True

    def finish(self, held: Claim, how: str) -> None:
        if how == "kept":
            outbox.write(outbox.kept_folder(self.settings, "outbox"), ending(held, "success"))
        else:
            self.finish_with(ending(held, "success"))
        if how != "lost":  # then it is sent once more
            self.die()

    def finish_and_claim(self, held: Claim) -> None:
        ours = self.is_ours(held)
        self.die()
        stored, following = claims.finish_and_claim_next(self.conn, ending(held, "success"), TERMS)
        assert stored is ours
        assert following is None or ours
        self.hold(following)

    def give_back(self, held: Claim) -> None:
        self.release(held)
        self.die()

    def die(self) -> None:
        self.held, self.ran = None, False

    def look_who_is_at_work(self) -> None:
        found = listing.at_work(self.conn)
        self.seen = [one for one in found if not recovery.lease_is_live(one)]

    def take_over(self) -> None:
        found = self.seen.pop()
        held = claims.claim_interrupted(self.conn, TERMS, found.id, found.claim_digest, 60)
        if held:
            agent = Agent(self.settings, self.conn, WHITELIST)
            outcome = recovery.find_outcome(held.message, found, agent)
            self.recovered = held, ending(held, outcome.verdict) if outcome else None

    def end_recovery(self, held: Claim, end: Ending | None) -> None:
        self.recovered = None
        if end:
            self.finish_with(end)
        else:
            self.release(held)

    def finish_with(self, end: Ending) -> None:
        ours = self.is_ours(end)
        assert endings.finish(self.conn, end) is ours

    def release(self, held: Claim) -> None:
        ours = self.is_ours(held)
        assert endings.release(self.conn, held.id, held.token) is ours

    def is_ours(self, held: Claim | Ending) -> bool:
        return self.conn.fetch(HOLDER, {"id": held.id}) == [(held.token,)]


def ending(held: Claim, verdict: str) -> Ending:
    data = {"final": True, "outcome": verdict}
    return Ending(held.id, held.token, "processed", Report("Task Report: Test", verdict, data))


def moves(database: Database, settings: Settings, workers: list[Worker]) -> list[Move]:
    """Return all that may happen next."""
    found: list[Move] = [move for worker in workers for move in worker.moves()]
    states = [status for _, _, status, _ in workers[0].conn.fetch(TASKS)]
    if "processing" in states:
        found.append(partial(end_leases, database))
        found += [worker.look_who_is_at_work for worker in workers]
    if len(states) - states.count("processed") < MOST_TASKS:
        found += [partial(send_task, database, body) for body in (CHANGE, READ)]
    if outbox.unsent(settings):
        found += [partial(deliver, worker.conn, settings) for worker in workers]
    return found


def send_task(database: Database, body: str) -> None:
    send(database, body)


def deliver(conn: Connection, settings: Settings) -> None:
    outbox.deliver(conn, settings)
    assert outbox.unsent(settings) == []


def check_promises(conn: Connection, runs: Counter[int]) -> None:
    tasks = conn.fetch(TASKS)
    for id, body, status, finals in tasks:
        assert finals == (status == "processed"), (id, body, status)
        assert runs[id] <= (1 if body == CHANGE else MOST_ATTEMPTS), (id, body)
    assert sum(status == "processing" for _, _, status, _ in tasks) <= 1


@pytest.mark.slow
def test_no_interleaving_reports_twice_or_changes_twice(
    database: Database, settings: Settings
) -> None:
    database.execute("DROP INDEX idx_one_final_report")  # the statements alone must do
    conns = [Connection(database.url, "public_claude") for _ in range(2)]
    agent_state.wake(conns[0], "craig_mobile")
    total: Counter[int] = Counter()

    @examples(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32), length=st.integers(40, 60))
    def interleave(seed: int, length: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - it must be repeatable
        runs: Counter[int] = Counter()
        workers = [Worker(conn, settings, runs) for conn in conns]
        for _ in range(length):
            chance.choice(moves(database, settings, workers))()
            check_promises(conns[0], runs)
        total.update(runs)
        database.execute("DELETE FROM claude_messages")
        for path in outbox.unsent(settings):
            path.unlink()

    with closing(conns[0]), closing(conns[1]):
        interleave()
    assert sum(total.values()) > EXAMPLES  # it was not all idling

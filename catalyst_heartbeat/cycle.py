"""The flow with work at hand."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping

import psycopg2

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.executor import run as executor_run
from catalyst_heartbeat.executor.decide import Agent, Job, check_names
from catalyst_heartbeat.executor.decide import validate as validate_request
from catalyst_heartbeat.outcome import Outcome, TaskRejected
from catalyst_heartbeat.queue import messages, outbox, recovery
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.queue.messages import LEASE_GRACE_SECONDS, AtWork, Claim, Ending
from catalyst_heartbeat.report import Original
from catalyst_heartbeat.report import report as make_report
from catalyst_heartbeat.request import Request, accept, task_name
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import Task

log = logging.getLogger("heartbeat")
# A task starts only so soon after its claim that its lease outlives its time limit.
LATEST_START_SECONDS = LEASE_GRACE_SECONDS - 5


class TooLate(Exception):
    """The message's deadline has passed."""


class LeaseTooShort(Exception):
    """Too much time went by since the claim, so the task must not be started any more."""


class ReportKept(Exception):
    """A report could not be stored and waits in the outbox: the cycle cannot go on."""


class Cycle:
    """One cycle: what it works with, and what it did."""

    def __init__(self, settings: Settings, whitelist: Mapping[str, Task]) -> None:
        self.settings = settings
        self.database = Database(settings.research_database_url, settings.agent_id)
        self.agent = Agent(settings, self.database, whitelist)
        self.ends_at = time.monotonic() + settings.run_seconds
        self.stopping = False
        # What ran, a line each, by the message's id.
        self.ran: dict[int, str] = {}
        self.not_run = 0
        self.met_another = False
        self.error: str | None = None

    def may_claim(self) -> bool:
        """Tell whether another task may be started in this cycle."""
        full = len(self.ran) >= self.settings.max_tasks_per_run
        return not (self.stopping or full or time.monotonic() >= self.ends_at)

    def summary(self) -> str:
        if not self.ran and not self.not_run:
            return "Nothing to do"
        return f"Executed {len(self.ran)} tasks, {self.not_run} others settled without running"

    def stop(self, number: int, frame: object) -> None:
        """Handle SIGTERM and SIGINT: finish the task at hand, then exit."""
        log.info("signal %d: no further task is claimed", number)
        self.stopping = True


def run_cycle(settings: Settings, whitelist: Mapping[str, Task]) -> int:
    """Run one cycle and return its exit code: 0 when it did its job, 1 when it could not."""
    if settings.tasks_requiring_approval:
        check_names(settings, whitelist)
    cycle = Cycle(settings, whitelist)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cycle.stop)
    try:
        work(cycle)
    except DatabaseLost as error:
        cycle.error = str(error)
    except ReportKept as error:
        cycle.error = str(error)
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
        cycle.error = f"schema incomplete, --check says more: {first_line(error)}"
    except psycopg2.Error as error:
        cycle.error = f"the database refused: {first_line(error)}"
    finally:
        cycle.database.close()
    if cycle.error:
        log.error(cycle.error)
    return 1 if cycle.error else 0


def work(cycle: Cycle) -> None:
    """Wake up, do what there is to do, and go to sleep again."""
    settings, database = cycle.settings, cycle.database
    mode = messages.wake(database)
    if mode in ("paused", "retired"):
        log.info("%s is %s: nothing done", settings.agent_id, mode)
        return
    try:
        if outbox.waiting(settings) or any(messages.look(database, settings.approver)):
            try:
                do_tasks(cycle)
            except psycopg2.errors.ProgramLimitExceeded:
                cycle.not_run += recovery.end_oversized(database, settings)
                do_tasks(cycle)
        if not (cycle.ran or cycle.not_run or cycle.met_another):
            log.info("nothing to do")
    except (ReportKept, psycopg2.Error) as error:
        if not isinstance(error.__cause__, DatabaseLost):
            summary, trouble = cycle.summary(), first_line(error)
            # A database that takes no report may not take this either; the first trouble counts.
            with contextlib.suppress(DatabaseLost, psycopg2.Error):
                messages.rest(database, summary, acted=bool(cycle.ran), error=trouble)
        raise
    if cycle.ran or not cycle.met_another:
        messages.rest(database, cycle.summary(), acted=bool(cycle.ran), error=None)


def do_tasks(cycle: Cycle) -> None:
    """Settle what earlier cycles left, then claim and process what is pending."""

    settings, database = cycle.settings, cycle.database
    messages.check_schema(database)
    cycle.not_run += outbox.deliver(database, settings)
    recover(cycle)
    if cycle.met_another:
        return
    approved, refused = decisions.settle(database, settings)
    cycle.not_run += refused
    for waiting in approved:
        held = (
            messages.claim_approved(database, waiting, cycle.agent.timeouts)
            if cycle.may_claim()
            else None
        )
        if held:
            process(cycle, held)
    process_pending(cycle)
    if cycle.ran:
        subject, lines = f"Executed {len(cycle.ran)} tasks", "\n".join(cycle.ran.values())
        messages.observe(database, subject, lines)


def process_pending(cycle: Cycle) -> None:
    """Claim and process what is pending, one task after the other."""
    pending = messages.count_pending(cycle.database) if sys.stderr.isatty() else 0
    following = None
    for number in itertools.count(1):
        held = following or claim(cycle)
        if held is None:
            return
        if not cycle.may_claim():  # it may have taken long to get this claim
            log.info("#%d: given back, the cycle ends", held.id)
            messages.release(cycle.database, held.id, held.token)
            return
        place = f"[{number}/{max(number, pending)}] " if pending else ""
        following = process(cycle, held, place, claim_next=True)


def claim(cycle: Cycle) -> Claim | None:
    """Claim the next pending task; None when there is none or none may be claimed."""

    if not cycle.may_claim():
        return None
    held = messages.claim_next(
        cycle.database, cycle.settings.task_expiry_hours, cycle.agent.timeouts
    )
    if held is None:
        for found in messages.at_work(cycle.database):
            cycle.met_another = True
            say_who_is_at_work(found)
    return held


def process(
    cycle: Cycle, held: Claim, place: str = "", *, claim_next: bool = False
) -> Claim | None:
    """Carry one claimed message through the boxes: validate, execute or escalate, report.

    Returns the next claim where it was asked for and came with the report.
    """

    name = task_name(held.body)
    log.info("%s#%d %s: claimed, attempt %d", place, held.id, name, held.attempt)
    if held.reported:
        log.warning("#%d %s: has its final report already, not run again", held.id, name)
        messages.close(cycle.database, held.id, held.token)
        return None
    started = time.monotonic()
    try:
        request, job = validate(cycle, held)
        if job.needs_approval and held.escalation_id is None:
            escalate(cycle, held, request, job)
            return None
        outcome = execute(cycle, held, request, job)
    except TaskRejected as error:
        outcome = Outcome("rejected", error=str(error))
    except TooLate as error:
        outcome = Outcome("expired", error=str(error))
    except LeaseTooShort as error:
        outcome = Outcome("failed", error=f"{error}; nothing ran")
        if held.escalation_id is None:
            log.warning("#%d %s: given back: %s", held.id, name, error)
            messages.release(cycle.database, held.id, held.token)
            return None
    return report(cycle, held, outcome, time.monotonic() - started, claim_next=claim_next)


def validate(cycle: Cycle, held: Claim) -> tuple[Request, Job]:
    """Return what is asked for and what may run; raise TaskRejected or TooLate otherwise."""

    settings = cycle.settings
    with bug_as_rejection(held):
        request = accept(held.from_agent, held.body, held.body_bytes, settings.task_senders)
        if held.too_late:
            limit = held.expires_at or f"{settings.task_expiry_hours} h after {held.created_at}"
            raise TooLate(f"its deadline was {limit}; nothing ran")
        job = validate_request(request, settings, cycle.agent.whitelist)
        if held.escalation_id is not None:
            decisions.verify(cycle.agent, held, request, job)
    return request, job


@contextlib.contextmanager
def bug_as_rejection(held: Claim) -> Iterator[None]:
    """Reject a message over which the program stumbles: it must not block those behind it."""

    try:
        yield
    except (TaskRejected, TooLate, DatabaseLost, psycopg2.Error):
        raise
    except Exception as error:
        log.exception("#%d: unexpected error in validation", held.id)
        kind = type(error).__name__
        raise TaskRejected(f"unexpected {kind} in validation; see the log") from error


def execute(cycle: Cycle, held: Claim, request: Request, job: Job) -> Outcome:
    """Run the job within its lease and its time limit."""

    if time.monotonic() - held.sent_at > LATEST_START_SECONDS:
        raise LeaseTooShort("not started, too little of its lease was left")
    context = executor_run.context_for(cycle.agent, held, request, job)
    outcome = executor_run.execute(job, context)
    if job.task:
        cycle.ran[held.id] = f"#{held.id} {job.name}: {outcome.verdict}"
    return outcome


def escalate(cycle: Cycle, held: Claim, request: Request, job: Job) -> None:
    """Ask the approver, and tell the sender so."""

    with bug_as_rejection(held):
        asked = decisions.ask(cycle.agent, held, request, job)
    if asked:
        log.info("#%d %s: escalated to %s", held.id, job.name, cycle.settings.approver)
    else:
        log.warning("#%d %s: claim lost, nothing written", held.id, job.name)
    cycle.not_run += 1


def report(
    cycle: Cycle, held: Claim, outcome: Outcome, seconds: float, *, claim_next: bool = False
) -> Claim | None:
    """Send the final report and end the claim; return the next claim where it came along."""

    name = task_name(held.body)
    original = Original(held.id, held.subject, name, held.attempt)
    answer = make_report(
        original,
        outcome,
        agent=cycle.settings.agent_id,
        secrets=cycle.settings.secrets,
        seconds=seconds,
    )
    status = "expired" if outcome.verdict == "expired" else "processed"
    ending = Ending(held.id, held.token, status, answer)
    stored, following = store_report(cycle, ending, name, claim_next=claim_next)
    cycle.not_run += held.id not in cycle.ran
    if stored:
        log.info("#%d %s: %s in %.1f s", held.id, name, outcome.verdict, seconds)
    else:
        log.warning(
            "#%d %s: %s, but its claim was lost, nothing written", held.id, name, outcome.verdict
        )
    return following


def store_report(
    cycle: Cycle, ending: Ending, name: str, *, claim_next: bool
) -> tuple[bool, Claim | None]:
    """Store a final report, and take the next claim with it where the cycle may go on.

    A report that the database does not take is kept on disk; then ReportKept is raised.
    """

    database, hours = cycle.database, cycle.settings.task_expiry_hours
    try:
        if claim_next and cycle.may_claim():
            return messages.finish_and_claim_next(database, ending, hours, cycle.agent.timeouts)
        return messages.finish(database, ending), None
    except (DatabaseLost, psycopg2.Error) as error:
        why = first_line(error)
        try:
            path = outbox.store(cycle.settings, ending)
        except OSError as full:
            kept = f"could be neither stored nor kept in the outbox ({full.strerror})"
        else:
            kept = f"waits in {path}"
        raise ReportKept(f"#{ending.id} {name}: its report {kept}: {why}") from error


def recover(cycle: Cycle) -> None:
    """End or release what a heartbeat that died had claimed; note a heartbeat that is at work."""

    for found in messages.at_work(cycle.database):
        if recovery.lease_is_live(found):
            cycle.met_another = True
            say_who_is_at_work(found)
            continue
        held = messages.claim_interrupted(cycle.database, found, recovery.LEASE_SECONDS)
        if held is None:
            continue
        log.warning(
            "#%d: interrupted, claimed by process %r on %r", found.id, found.pid, found.host
        )
        if held.reported:
            messages.close(cycle.database, held.id, held.token)
            continue
        outcome = recovery.find_outcome(cycle.agent, held, found)
        if outcome:
            report(cycle, held, outcome, 0.0)
        elif messages.release(cycle.database, held.id, held.token):
            log.info("#%d: pending again, after attempt %d", held.id, held.attempt)


def say_who_is_at_work(found: AtWork) -> None:
    log.info(
        "another heartbeat is at work on #%d: process %r on %r", found.id, found.pid, found.host
    )

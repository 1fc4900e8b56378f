"""The flow of a cycle that has work at hand, box by box.

claim ──> decide ──┬─> execute ───┬──> report ──> claim the next one
                   └─> escalate ──┘

claim     the next task message of this agent becomes ours, durably, before anything happens
decide    sender, format, deadline, whitelist, parameters: it runs, a person is asked, or it
          is refused
execute   the whitelisted task runs, once
escalate  a person is asked, where the whitelist has no such task or the task needs approval
report    the outcome goes back to the sender, the claim ends, and the next claim is made where
          another task may run, in one transaction
"""

from __future__ import annotations

import html
import itertools
import logging
import sys
import time
from dataclasses import dataclass, field
from enum import Enum

import psycopg2

from catalyst_heartbeat import monitor
from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.approvals.decisions import Escalation
from catalyst_heartbeat.executor import run
from catalyst_heartbeat.executor.decide import Ask, Refuse, Run, decide
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.outcome import Outcome
from catalyst_heartbeat.progress import Progress
from catalyst_heartbeat.queue import claims, endings, listing, outbox, recovery, rights, state
from catalyst_heartbeat.queue.claims import LEASE_GRACE_SECONDS, Claim, Message
from catalyst_heartbeat.queue.connection import first_line, is_fault_of_a_row
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.queue.listing import AtWork
from catalyst_heartbeat.report import Original, Report, report
from catalyst_heartbeat.request import task_name

log = logging.getLogger("heartbeat")

# A task starts only so soon after its claim that its lease outlives its time limit.
LATEST_START_SECONDS = LEASE_GRACE_SECONDS - 5


@dataclass(frozen=True)
class Cycle:
    """What every box works with.

    `left` says of each task that can be neither run nor refused why that is so, `kept` of each
    report that the table does not take for what its row holds.
    """

    agent: Agent
    progress: Progress
    left: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


class RightsAtFault(Exception):
    """The identity that roles.sql promises does not hold; the message says what to change."""


class TasksLeft(Exception):
    """The database lets some tasks not be ended; all others went on."""


class NotRun(Enum):
    """How a claim ends of which nothing is told."""

    RELEASED = "given back, too little of its lease was left"
    CLOSED = "has its final report already, not run again"


def do_tasks(agent: Agent, progress: Progress) -> None:
    """Settle what earlier cycles left, then take what is pending."""
    cycle, database = Cycle(agent, progress), agent.database
    state.check_tables(database)
    for fault in rights.rights(database).faults:
        raise RightsAtFault(fault)
    ended, still_waiting = outbox.deliver(database, agent.settings)
    progress.not_run += ended
    for ending, error in still_waiting:
        keep(cycle, ending, error)
    recover(cycle)
    if progress.met_another:
        return
    approved, ended = decisions.settle(agent, progress.may_go_on)
    progress.not_run += ended
    for waiting in approved:
        claim = claim_approved(cycle, waiting)
        if claim:
            settle(cycle, claim, process(cycle, claim))
    take_pending(cycle)
    refuse_without_claim(cycle)
    if progress.ran:
        subject, lines = f"Executed {len(progress.ran)} tasks", "\n".join(progress.ran.values())
        state.observe(database, subject, lines)
    if cycle.left or cycle.kept:
        raise TasksLeft(what_is_left(cycle))


def what_is_left(cycle: Cycle) -> str:
    """Say which tasks could not be ended, the first of each kind by what the database said."""
    said = []
    if cycle.kept:
        more = f"; {len(cycle.kept) - 1} more reports wait there" if cycle.kept[1:] else ""
        said.append(cycle.kept[0] + more)
    if cycle.left:
        count = len(cycle.left)
        said.append(f"{count} tasks can be neither run nor refused, such as {cycle.left[0]}")
    return "; ".join(said)


def claim_approved(cycle: Cycle, waiting: decisions.Waiting) -> Claim | None:
    """Use an approval where another task may run."""
    if waiting.card_id is None or not cycle.progress.may_go_on():
        return None
    agent = cycle.agent
    try:
        return claims.claim_approved(agent.database, agent.terms, waiting.id, waiting.card_id)
    except psycopg2.Error as error:
        leave(cycle, waiting.id, error)
        return None


def take_pending(cycle: Cycle) -> None:
    """Claim, process and settle what is pending, one task after the other."""
    database = cycle.agent.database
    shown = sys.stderr.isatty()
    pending = len(listing.pending(database, cycle.agent.terms)) if shown else 0
    following = None
    for number in itertools.count(1):
        claim = following or claim_next(cycle)
        if claim is None:
            return
        if not cycle.progress.may_go_on():  # it may have taken long to get this claim
            log.info("#%d: given back, the cycle ends", claim.id)
            endings.release(database, claim.id, claim.token)
            return
        place = f"[{number}/{max(number, pending)}] " if pending else ""
        ending = process(cycle, claim, place)
        following = settle(cycle, claim, ending, claim_next=True)


def claim_next(cycle: Cycle) -> Claim | None:
    """Claim the next pending task; None when there is none or none may be claimed."""
    while cycle.progress.may_go_on():
        try:
            claim = claims.claim_next(cycle.agent.database, cycle.agent.terms)
        except psycopg2.Error as error:
            refuse_unclaimable(cycle, error)
            continue
        if claim is None:
            for found in at_work(cycle):
                meet(cycle, found)
        return claim
    return None


def process(cycle: Cycle, claim: Claim, place: str = "") -> Ending | Escalation | NotRun:
    """Carry one claimed message through the boxes and return how its claim ends."""
    message, agent = claim.message, cycle.agent
    name = task_name(message.body)
    log.info("%s#%d %s: claimed, attempt %d", place, claim.id, name, message.attempt)
    if message.reported:
        return NotRun.CLOSED
    started = time.monotonic()
    decision = decide(message, agent)
    if isinstance(decision, Ask):
        asked = decisions.request(decision, agent)
        if isinstance(asked, Escalation):
            return asked
        decision = asked
    if isinstance(decision, Refuse):
        return final(claim, decision.outcome, agent)
    if time.monotonic() - claim.sent_at > LATEST_START_SECONDS:
        if message.card_id is None:
            return NotRun.RELEASED
        late = "not started, too little of its lease was left; nothing ran"
        return final(claim, Outcome("failed", error=late), agent)
    outcome = execute(cycle, decision)
    return final(claim, outcome, agent, time.monotonic() - started)


def execute(cycle: Cycle, decision: Run) -> Outcome:
    """Run the job within its time limit, and note that it ran."""
    job = decision.job
    context = run.context_for(job, cycle.agent, decision.approved_diff)
    outcome = run.execute(job, context)
    if job.task:
        line = f"#{job.message.id} {job.name}: {outcome.verdict}"
        cycle.progress.ran[job.message.id] = line
    return outcome


def final(claim: Claim, outcome: Outcome, agent: Agent, seconds: float = 0.0) -> Ending:
    """Return the end of a claim with its final report."""
    status = "expired" if outcome.verdict == "expired" else "processed"
    answer = final_report(claim.message, outcome, agent, seconds)
    return Ending(claim.id, claim.token, status, answer)


def final_report(message: Message, outcome: Outcome, agent: Agent, seconds: float = 0.0) -> Report:
    original = Original(message.id, message.subject, task_name(message.body), message.attempt)
    return report(original, outcome, agent.settings, seconds)


def settle(
    cycle: Cycle, claim: Claim, ending: Ending | Escalation | NotRun, *, claim_next: bool = False
) -> Claim | None:
    """Store how a claim ends; return the next one where it was asked for and came along."""
    agent, following = cycle.agent, None
    name = task_name(claim.message.body)
    if isinstance(ending, NotRun):
        log.warning("#%d %s: %s", claim.id, name, ending.value)
        end = endings.close if ending is NotRun.CLOSED else endings.release
        end(agent.database, claim.id, claim.token)
        return None
    if isinstance(ending, Escalation):
        verdict = f"escalated to {agent.settings.approver}"
        try:
            stored = decisions.escalate(agent.database, claim, agent.settings.approver, ending)
        except psycopg2.Error as error:
            why = f"{agent.settings.approver} could not be asked: {first_line(error)}"
            rejected = final(claim, Outcome("rejected", error=why), agent)
            return settle(cycle, claim, rejected, claim_next=claim_next)
        if stored and agent.settings.notify_url:
            headline = html.unescape(ending.card.body.partition("\n")[0])
            monitor.notify(agent.settings.notify_url, ending.card.subject, headline)
    else:
        data = ending.report.data
        verdict = f"{data['outcome']} in {data['duration_ms'] / 1000:.1f} s"
        terms = agent.terms if claim_next and cycle.progress.may_go_on() else None
        try:
            stored, following = outbox.store(agent.database, agent.settings, ending, terms)
        except outbox.RowKept as error:
            keep(cycle, ending, error)
            return None
    cycle.progress.not_run += claim.id not in cycle.progress.ran
    if stored:
        log.info("#%d %s: %s", claim.id, name, verdict)
    else:
        log.warning("#%d %s: %s, but its claim was lost, nothing written", claim.id, name, verdict)
    return following


def refuse_without_claim(cycle: Cycle) -> None:
    """Refuse the pending messages of which nothing may run and nothing is read for a claim."""
    agent = cycle.agent
    while True:
        try:
            ids = listing.refusable(agent.database, agent.terms)
        except psycopg2.Error as error:
            refuse_unclaimable(cycle, error)
            continue
        if not ids:
            return
        for task_id in ids:
            if not cycle.progress.may_go_on():
                return
            refuse(cycle, task_id)


def refuse_unclaimable(cycle: Cycle, error: psycopg2.Error) -> None:
    """Refuse what the database could not claim: what is damaged, or else the next in order."""
    database, terms = cycle.agent.database, cycle.agent.terms
    found = listing.pending(database, terms) if is_fault_of_a_row(error) else []
    if (error.pgcode or "").startswith("XX"):
        found = [id for id in found if not claims.is_readable(database, terms, id)]
    else:
        found = found[:1]
    if not found:
        raise error
    for task_id in found:
        why = f"the database cannot claim it: {first_line(error)}"
        refuse(cycle, task_id, Outcome("rejected", error=why))


def refuse(cycle: Cycle, task_id: int, outcome: Outcome | None = None) -> None:
    """Report a task that was not claimed, or pass it over; without an outcome it is decided on."""
    agent = cycle.agent
    try:
        message = claims.read(agent.database, agent.terms, task_id)
    except psycopg2.Error:  # what is damaged can be refused all the same
        message = Message(task_id)
    if outcome is None and message:
        decision = decide(message, agent)
        outcome = decision.outcome if isinstance(decision, Refuse) else None
    stored = False
    try:
        if outcome and message:
            answer = final_report(message, outcome, agent)
            seen = "processing" if outcome.verdict == "unknown" else "pending"
            stored = endings.refuse(agent.database, task_id, seen, answer)
    except psycopg2.Error as error:
        leave(cycle, task_id, error)
    if not stored:
        agent.terms.passed_over.append(task_id)
    elif outcome:
        cycle.progress.not_run += 1
        log.info("#%d: %s without a claim: %s", task_id, outcome.verdict, outcome.error)


def leave(cycle: Cycle, task_id: int, error: psycopg2.Error) -> None:
    """Note a task that the database lets neither run nor be refused."""
    cycle.left.append(f"#{task_id}: {first_line(error)}")
    log.error("#%d: can be neither run nor refused: %s", task_id, first_line(error))


def keep(cycle: Cycle, ending: Ending, error: outbox.RowKept) -> None:
    """Note a task that is over and whose report waits in the outbox: it holds up no other."""
    cycle.agent.terms.unsent[ending.id] = ending.token
    cycle.kept.append(str(error))
    log.error(error)


def at_work(cycle: Cycle) -> list[AtWork]:
    """Return the tasks being processed, but for those that are over and wait for their report."""
    found, unsent = listing.at_work(cycle.agent.database), cycle.agent.terms.unsent
    return [task for task in found if unsent.get(task.id, "") != task.token]


def recover(cycle: Cycle) -> None:
    """End or release what a heartbeat that died had claimed; note a heartbeat that is at work."""
    agent = cycle.agent
    for found in at_work(cycle):
        if recovery.lease_is_live(found):
            meet(cycle, found)
            continue
        if found.large_data:
            refuse(cycle, found.id, recovery.unknown(found, "its data is too large to be read"))
            continue
        claim = claims.claim_interrupted(
            agent.database, agent.terms, found.id, found.claim_digest, recovery.LEASE_SECONDS
        )
        if claim is None:
            continue
        log.warning(
            "#%d: interrupted, claimed by process %r on %r", found.id, found.pid, found.host
        )
        if claim.message.reported:
            settle(cycle, claim, NotRun.CLOSED)
            continue
        outcome = recovery.find_outcome(claim.message, found, agent)
        if outcome:
            settle(cycle, claim, final(claim, outcome, agent))
        elif endings.release(agent.database, claim.id, claim.token):
            log.info("#%d: pending again, after attempt %d", claim.id, claim.message.attempt)


def meet(cycle: Cycle, found: AtWork) -> None:
    """Note another heartbeat, which is at work on this task."""
    cycle.progress.met_another = True
    log.info(
        "another heartbeat is at work on #%d: process %r on %r", found.id, found.pid, found.host
    )

"""What becomes of tasks whose heartbeat died: run again, found out, or reported UNKNOWN; and of
those that cannot even be claimed."""

from __future__ import annotations

import logging
import re
import socket
import time
from datetime import datetime, timedelta, timezone

from catalyst_heartbeat.executor.decide import Agent, Job, validate
from catalyst_heartbeat.executor.run import INVESTIGATION_SECONDS, context_for, investigate
from catalyst_heartbeat.outcome import Outcome, TaskRejected
from catalyst_heartbeat.queue import messages
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.queue.messages import LEASE_GRACE_SECONDS, AtWork, Claim
from catalyst_heartbeat.report import Original, report
from catalyst_heartbeat.request import Request, accept, task_name
from catalyst_heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

MAX_ATTEMPTS = 3
# A lease that ends later than this was not written by a heartbeat, or the clock has jumped.
LONGEST_LEASE = timedelta(hours=1)
# How long a recovery holds the claim that it took over.
LEASE_SECONDS = INVESTIGATION_SECONDS + LEASE_GRACE_SECONDS


def lease_is_live(found: AtWork) -> bool:
    """Tell whether the claim still holds, by the database's clock; nonsense does not."""
    now = datetime.fromtimestamp(found.now, timezone.utc)
    try:
        return now < parse_time(found.lease_until or "") <= now + LONGEST_LEASE
    except (ValueError, TypeError, OverflowError):
        log.warning("#%d: its claim cannot be read, so its lease counts as over", found.id)
        return False


def parse_time(text: str) -> datetime:
    """Read a time as PostgreSQL writes it, in JSON or as text; raise ValueError for nonsense."""
    whole_seconds = re.sub(r"\.\d+", "", text.replace("Z", "+00:00"))
    return datetime.fromisoformat(re.sub(r"([+-]\d\d)\Z", r"\1:00", whole_seconds))


def find_outcome(agent: Agent, held: Claim, found: AtWork) -> Outcome | None:
    """Return how an interrupted task ended, or None where it is to run again.

    What may have changed something never runs again, nor does what an approval was used for.
    """
    settings = agent.settings
    try:
        request = accept(held.from_agent, held.body, held.body_bytes, settings.task_senders)
        job = validate(request, settings, agent.whitelist)
    except TaskRejected as error:
        task = agent.whitelist.get(task_name(held.body))
        if task is not None and task.changes:  # other settings may have let it run
            return unknown(found, f"it would be rejected now: {error}")
        return Outcome("rejected", error=str(error))
    except Exception:  # a bug must not bring this task back in every cycle
        log.exception("#%d: unexpected error in recovery", held.id)
        return unknown(found)
    approved = held.escalation_id is not None
    # Which files need approval depends on the disk, which the interrupted task may have changed.
    started = approved or request.task not in settings.tasks_requiring_approval
    if job.task is not None and job.task.changes and started:
        return outcome_of_change(agent, held, found, job, request) or unknown(found)
    if approved:
        return unknown(found, "an approval is used once")
    if held.attempt < MAX_ATTEMPTS:
        return None
    return unknown(found, f"it was interrupted {held.attempt} times")


def outcome_of_change(
    agent: Agent, held: Claim, found: AtWork, job: Job, request: Request
) -> Outcome | None:
    """Look at this host for what the task changed; None where that cannot be told from here."""
    if found.host != socket.gethostname() or held.claimed_at is None:
        return None
    claimed_at = held.claimed_at + (time.time() - held.now)
    context = context_for(agent, held, request, job)
    return investigate(job, context, claimed_at)


def end_oversized(database: Database, settings: Settings) -> int:
    """End the tasks whose data has no room for a claim, lest they block others; return how many.

    One that is being processed already may have run before its data grew.
    """
    ended = 0
    while found := messages.oversized(database):
        task_id, subject, body_start, status = found
        name = task_name(body_start)
        outcome = Outcome(
            "rejected" if status == "pending" else "unknown",
            error="the message's data is too large: there is no room in it for a claim",
        )
        original = Original(task_id, subject, name, 0)
        answer = report(original, outcome, agent=settings.agent_id, secrets=settings.secrets)
        if messages.end_oversized(database, task_id, status, answer):
            log.warning("#%d %s: %s, no room for a claim", task_id, name, outcome.verdict)
            ended += 1
    return ended


def unknown(found: AtWork, why: str = "it may or may not have happened") -> Outcome:
    """Return the outcome of a task that was interrupted, with all that is known."""
    return Outcome(
        "unknown",
        error=f"interrupted after its claim and before its report; {why}. "
        f"It was in the hands of process {found.pid} on {found.host} since {found.since}, its "
        f"lease ended at {found.lease_until}. It does not run again: look, then ask again if it is "
        "needed",
    )

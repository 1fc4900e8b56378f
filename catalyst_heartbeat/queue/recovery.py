"""What becomes of tasks whose heartbeat died: run again, found out, or reported UNKNOWN."""

from __future__ import annotations

import logging
import re
import socket
import time
from datetime import datetime, timedelta, timezone

from catalyst_heartbeat.executor.decide import Refuse, decide
from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.executor.run import INVESTIGATION_SECONDS, context_for, investigate
from catalyst_heartbeat.outcome import Outcome
from catalyst_heartbeat.queue.claims import LEASE_GRACE_SECONDS, Message
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.queue.listing import AtWork
from catalyst_heartbeat.request import task_name

log = logging.getLogger("heartbeat")

MAX_ATTEMPTS = 3
# A lease that ends later than this was not written by a heartbeat, or the clock has jumped.
LONGEST_LEASE = timedelta(hours=1)
# How long a recovery holds the claim that it took over.
LEASE_SECONDS = INVESTIGATION_SECONDS + LEASE_GRACE_SECONDS

APPROVAL_USED = """
-- The escalation whose approval this task has used, if any.
SELECT max(id)
  FROM claude_messages
 WHERE reply_to_id = %(id)s AND from_agent = %(agent)s AND msg_type = 'escalation'
   AND data ->> 'decision' = 'approved'
"""


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


def find_outcome(message: Message, found: AtWork, agent: Agent) -> Outcome | None:
    """Return how an interrupted task ended, or None where it is to run again.

    What may have changed something never runs again, nor does what an approval was used for.
    """
    # Its claim was in time, and what it was approved for may be done already.
    decision = decide(message._replace(too_late=False, card_id=None), agent)
    if isinstance(decision, Refuse):
        task = agent.whitelist.get(task_name(message.body))
        if task is not None and task.changes:
            return unknown(found, f"it would be rejected now: {decision.outcome.error}")
        return decision.outcome
    job = decision.job
    approved = approval_used(agent.database, message.id)
    # What needs approval now, by the settings, the hour or the disk, may have run without it.
    if job.task is not None and job.task.changes:
        return outcome_of_change(job, found, agent) or unknown(found)
    if approved:
        return unknown(found, "an approval is used once")
    if message.attempt < MAX_ATTEMPTS:
        return None
    return unknown(found, f"it was interrupted {message.attempt} times")


def approval_used(database: Database, task_id: int) -> bool:
    rows = database.fetch(APPROVAL_USED, {"id": task_id, "agent": database.agent})
    return rows[0][0] is not None


def outcome_of_change(job: Job, found: AtWork, agent: Agent) -> Outcome | None:
    """Look at this host for what the task changed; None where that cannot be told from here."""
    claimed_at = job.message.claimed_at
    if found.host != socket.gethostname() or claimed_at is None:
        return None
    return investigate(job, context_for(job, agent), claimed_at + time.time() - job.message.now)


def unknown(found: AtWork, why: str = "it may or may not have happened") -> Outcome:
    """Return the outcome of a task that was interrupted, with all that is known."""
    return Outcome(
        "unknown",
        error=f"interrupted after its claim and before its report; {why}. "
        f"It was in the hands of process {found.pid} on {found.host} since {found.since}, its "
        f"lease ended at {found.lease_until}. It does not run again: look, then ask again if it is "
        "needed",
    )

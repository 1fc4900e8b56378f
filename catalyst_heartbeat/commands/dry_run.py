"""--dry-run: what the next cycle would do, task by task, found out without changing anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.approvals.decisions import Waiting
from catalyst_heartbeat.executor import run
from catalyst_heartbeat.executor.decide import Ask, Refuse, brakes, decide
from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.outcome import TaskRejected
from catalyst_heartbeat.queue import claims, listing, outbox, recovery, state
from catalyst_heartbeat.queue.claims import Message
from catalyst_heartbeat.queue.listing import AtWork
from catalyst_heartbeat.request import task_name
from catalyst_heartbeat.text import cap, clean, clean_line, cut

COMMAND_LIMIT = 500


def lines(agent: Agent) -> Iterator[str]:
    """Say what the next cycle would do, in the order in which it would."""
    database, settings = agent.database, agent.settings
    state.check_tables(database)
    row = state.state(database)
    if row and row.mode in ("paused", "retired"):
        yield f"{settings.agent_id} is {row.mode}: nothing"
        return
    held = {f"{found.id}-{found.token}": found for found in listing.at_work(database)}
    for path in outbox.unsent(settings):
        fate = "deliver this report" if held.pop(path.stem, None) else "its claim was lost: drop it"
        yield f"{path.name}: {fate} from the outbox"
    at_work = list(held.values())
    for found in at_work:
        yield clean_line(f"#{found.id} {of_interrupted(agent, found)}", settings.secrets)
    if any(map(recovery.lease_is_live, at_work)):
        yield "nothing else: another heartbeat is at work"
        return
    for brake in brakes(agent):
        yield f"what changes something needs approval: {brake}"
    for waiting in decisions.waiting(database, settings.approver):
        yield from of_waiting(agent, waiting)
    yield from of_queue(agent)


def of_interrupted(agent: Agent, found: AtWork) -> str:
    """Say what becomes of a task that is being processed."""
    who = f"process {found.pid} on {found.host}"
    if recovery.lease_is_live(found):
        return f"is in the hands of {who}"
    message = claims.read(agent.database, agent.terms, found.id)
    task = agent.whitelist.get(task_name(message.body)) if message else None
    if task and task.changes:
        return f"was interrupted ({who}): report what can be found out, else UNKNOWN"
    most = f"fewer than {recovery.MAX_ATTEMPTS} attempts"
    return f"was interrupted ({who}): pending again after {most}, else UNKNOWN"


def of_waiting(agent: Agent, task: Waiting) -> Iterator[str]:
    """Say what becomes of a task that waits for the approver."""
    name = task_name(task.body_start)
    if decisions.is_denied(task):
        yield f"#{task.id} {name}: report DENIED"
    elif not task.in_time:
        yield f"#{task.id} {name}: report EXPIRED, {decisions.lateness(task)}"
    elif task.card_status == "approved":
        yield f"#{task.id} {name}: approved by #{task.card_id}"
        message = claims.read(agent.database, agent.terms, task.id)
        if len(agent.would_run) >= agent.settings.max_tasks_per_run:
            yield "  waits for a later cycle"
        elif message:
            yield from of_message(agent, message._replace(card_id=task.card_id))
    else:
        yield f"#{task.id} {name}: waits for {agent.settings.approver} as #{task.card_id}"


def of_queue(agent: Agent) -> Iterator[str]:
    """Say what becomes of the pending tasks, in the order in which they are taken."""
    ids = listing.pending(agent.database, agent.terms)
    for place, task_id in enumerate(ids, 1):
        if len(agent.would_run) >= agent.settings.max_tasks_per_run:
            yield f"{len(ids) - place + 1} more wait for a later cycle"
            return
        message = claims.read(agent.database, agent.terms, task_id)
        if message:
            subject = clean_line(message.subject or "(no subject)", agent.settings.secrets)
            yield f"[{place}/{len(ids)}] #{message.id} {task_name(message.body)}: {subject}"
            yield from of_message(agent, message)
    if not ids:
        yield "no task is pending"


def of_message(agent: Agent, message: Message) -> Iterator[str]:
    """Say what becomes of one task, as the cycle decides it."""
    if message.reported:
        yield "  close: it has its final report already"
        return
    decision = decide(message, agent)
    if isinstance(decision, Ask):
        asked = decisions.request(decision, agent)
        decision = asked if isinstance(asked, Refuse) else decision
    if isinstance(decision, Refuse):
        outcome = decision.outcome
        why = clean_line(outcome.error, agent.settings.secrets)
        yield f"  report {outcome.verdict.upper()}: {why}"
        return
    job = decision.job
    if isinstance(decision, Ask):
        agent.foreseen.append((job.name, job.request.params))
        yield f"  escalate to {agent.settings.approver}: {command(agent, job)}"
        yield f"  because {clean_line(decision.why, agent.settings.secrets)}"
    elif job.task is None:
        yield f"  report FAILED: approved, but there is no task named {job.name}"
    else:
        agent.would_run.append(job.name)
        yield f"  run {command(agent, job)}"
    yield from of_change(agent, job)


def of_change(agent: Agent, job: Job) -> Iterator[str]:
    """Show the diff of a file change, or why there will be none."""
    secrets = agent.settings.secrets
    try:
        diff = run.preview(job, agent)
    except TaskRejected as error:
        yield f"  {clean_line(error.told(secrets), secrets)}"
        return
    yield from (f"    {line}" for line in cap(clean(diff.shown, secrets)).splitlines())


def command(agent: Agent, job: Job) -> str:
    """Return a task's name and its parameters as they were validated."""
    params = job.params.model_dump() if job.task else job.request.params
    text = clean_line(f"{job.name} {json.dumps(params)}", agent.settings.secrets)
    return cut(text, COMMAND_LIMIT)

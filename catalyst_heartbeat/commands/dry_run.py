"""What the next cycle would do, task by task, found out without changing anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.executor.decide import Agent, Job, check_names, validate
from catalyst_heartbeat.executor.run import context_for, preview
from catalyst_heartbeat.outcome import TaskRejected
from catalyst_heartbeat.queue import messages, outbox, recovery
from catalyst_heartbeat.queue.messages import AtWork, Claim, Waiting
from catalyst_heartbeat.request import Request, accept, task_name
from catalyst_heartbeat.text import cap, clean, clean_line

COMMAND_LIMIT = 500


class Foresight:
    """What is known before a cycle, which requests to the approver it would have made, and how
    many more tasks it may run."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.database = agent.database
        self.settings = agent.settings
        self.asked: list[tuple[str, str]] = []
        self.left = self.settings.max_tasks_per_run

    def line(self, text: str) -> str:
        return clean_line(text, self.settings.secrets)


def foresee_cycle(agent: Agent) -> Iterator[str]:
    """Say what the next cycle would do, in the order in which it would."""
    settings, database = agent.settings, agent.database
    check_names(settings, agent.whitelist)
    messages.check_schema(database)
    state = messages.state(database)
    if state and state.mode in ("paused", "retired"):
        yield f"{settings.agent_id} is {state.mode}: nothing"
        return
    foresight = Foresight(agent)
    delivered = set()
    for path in outbox.waiting(settings):
        yield f"{foresight.line(path.name)}: deliver this report from the outbox"
        delivered.add(path.name.partition("-")[0])
    busy = False
    for found in messages.at_work(database):
        if str(found.id) in delivered:
            continue
        live = recovery.lease_is_live(found)
        busy = busy or live
        yield f"#{found.id} {foresee_interrupted(foresight, found, live=live)}"
    if busy:
        yield "nothing else: another heartbeat is at work"
        return
    yield from foresee_settling(foresight)
    yield from foresee_queue(foresight)


def foresee_interrupted(foresight: Foresight, found: AtWork, *, live: bool) -> str:
    """Say what becomes of a task that is being processed."""
    who = foresight.line(f"process {found.pid} on {found.host}")
    if live:
        return f"is in the hands of {who}"
    held = messages.foresee(foresight.database, found.id, foresight.settings.task_expiry_hours)
    task = foresight.agent.whitelist.get(task_name(held.body)) if held else None
    if task and task.changes:
        return f"was interrupted ({who}): report what can be found out, else UNKNOWN"
    return (
        f"was interrupted ({who}): pending again after fewer than {recovery.MAX_ATTEMPTS} "
        f"attempts, else UNKNOWN"
    )


def foresee_settling(foresight: Foresight) -> Iterator[str]:
    """Say what becomes of the tasks that wait for the approver."""
    settings = foresight.settings
    for task in messages.waiting(foresight.database, settings.approver):
        name = task_name(task.body_start)
        if decisions.is_denied(task):
            yield f"#{task.id} {name}: report DENIED"
        elif not task.in_time:
            yield f"#{task.id} {name}: report EXPIRED, {decisions.lateness(task)}"
        elif task.escalation_status == "approved":
            yield from foresee_approved(foresight, task)
        else:
            yield f"#{task.id} {name}: waits for {settings.approver} as #{task.escalation_id}"


def foresee_approved(foresight: Foresight, task: Waiting) -> Iterator[str]:
    expiry_hours = foresight.settings.task_expiry_hours
    held = messages.foresee(foresight.database, task.id, expiry_hours, task.escalation_id)
    if held:
        yield f"#{held.id} {task_name(held.body)}: approved by #{task.escalation_id}"
        if foresight.left == 0:
            yield "  waits for a later cycle"
        else:
            yield from foresee_task(foresight, held)


def foresee_queue(foresight: Foresight) -> Iterator[str]:
    """Say what becomes of the pending tasks, in the order of their claims."""
    database, settings = foresight.database, foresight.settings
    ids = messages.pending_ids(database)
    for place, task_id in enumerate(ids, 1):
        if foresight.left == 0:
            yield f"{len(ids) - place + 1} more wait for a later cycle"
            return
        held = messages.foresee(database, task_id, settings.task_expiry_hours)
        if held:
            subject = foresight.line(held.subject or "(no subject)")
            yield f"[{place}/{len(ids)}] #{held.id} {task_name(held.body)}: {subject}"
            yield from foresee_task(foresight, held)
    if not ids:
        yield "no task is pending"


def foresee_task(foresight: Foresight, held: Claim) -> Iterator[str]:
    """Say what becomes of one task, as the cycle's boxes would decide."""
    settings = foresight.settings
    if held.reported:
        yield "  close: it has its final report already"
        return
    try:
        request = accept(held.from_agent, held.body, held.body_bytes, settings.task_senders)
        if held.too_late:
            yield "  report EXPIRED: its deadline has passed"
            return
        job = validate(request, settings, foresight.agent.whitelist)
        if held.escalation_id is not None:
            decisions.verify(foresight.agent, held, request, job)
        yield from foresee_job(foresight, held, request, job)
    except TaskRejected as error:
        yield f"  report REJECTED: {foresight.line(str(error))}"
    except (ValueError, RecursionError) as error:  # data that Python cannot read
        yield f"  report REJECTED: unexpected {type(error).__name__} in validation"


def foresee_job(foresight: Foresight, held: Claim, request: Request, job: Job) -> Iterator[str]:
    """Say how a valid request would run or be escalated, with the diff of a file change."""
    settings = foresight.settings
    context = context_for(foresight.agent, held, request, job)
    if job.needs_approval and held.escalation_id is None:
        check_room(foresight, request)
        diff = preview(job, context)
        decisions.card(settings, held, job, request, diff)
        yield f"  escalate to {settings.approver}: {command(foresight, request, job)}"
        yield f"  because {foresight.line(job.needs_approval)}"
    elif job.task is None:
        yield f"  report FAILED: approved, but there is no task named {job.name}"
        return
    else:
        foresight.left -= 1
        yield f"  run {command(foresight, request, job)}"
        try:
            diff = preview(job, context)
        except TaskRejected as error:
            yield f"  {foresight.line(str(error))}"
            return
    if diff:
        yield from (f"    {line}" for line in cap(clean(diff, settings.secrets)).splitlines())


def command(foresight: Foresight, request: Request, job: Job) -> str:
    """Return a task's name and its parameters as they were validated."""
    params = job.params.model_dump() if job.task else request.params
    text = foresight.line(f"{job.name} {json.dumps(params)}")
    return text if len(text) <= COMMAND_LIMIT else text[: COMMAND_LIMIT - 1] + "…"


def check_room(foresight: Foresight, request: Request) -> None:
    """Raise TaskRejected as the cycle would, the requests of this same cycle counted."""
    wanted = (request.task, json.dumps(request.params, sort_keys=True))
    if wanted in foresight.asked:
        raise TaskRejected("the same request waits for approval already")
    settings = foresight.settings
    limit = settings.max_open_escalations - len(foresight.asked)
    decisions.check_room(foresight.database, settings._replace(max_open_escalations=limit), request)
    foresight.asked.append(wanted)

"""What becomes of a request: it runs, a person is asked, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from catalyst_heartbeat.outcome import TaskRejected
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.request import Request
from catalyst_heartbeat.settings import Settings, SettingsError
from catalyst_heartbeat.tasks.base import NoParams, Params, Task


@dataclass(frozen=True)
class Agent:
    """What every decision and every task of an agent stands on."""

    settings: Settings
    database: Database
    whitelist: Mapping[str, Task]

    @property
    def timeouts(self) -> dict[str, int]:
        """Return every task's time limit, in seconds."""
        return {name: task.timeout for name, task in self.whitelist.items()}


@dataclass(frozen=True)
class Job:
    """A validated request: its task, or None where the whitelist has none of that name.

    `params` is the task's model. `needs_approval` says why a person must decide; "" if nobody.
    """

    name: str
    task: Task | None
    params: Params
    needs_approval: str


def validate(request: Request, settings: Settings, whitelist: Mapping[str, Task]) -> Job:
    """Hold a request against the whitelist; raise TaskRejected for bad parameters."""
    task = whitelist.get(request.task)
    if task is None:
        why = f'"{request.task}" is not in the whitelist, so approving it cannot make it run'
        return Job(request.task, None, NoParams(), why)
    try:
        params = task.params.model_validate(request.params, context=settings)
    except ValidationError as error:
        raise TaskRejected(explain(error, request.task, task)) from None
    why = (task.approval(params, settings) if task.approval else None) or ""
    if not why and request.task in settings.tasks_requiring_approval:
        why = "TASKS_REQUIRING_APPROVAL names this task"
    return Job(request.task, task, params, why)


def explain(error: ValidationError, name: str, task: Task) -> str:
    """Say what is wrong with each parameter and what would be right."""
    details = error.errors(include_url=False, include_context=False)
    known = ", ".join(task.params.model_fields) or "none"
    return f"{name}: " + "; ".join(explain_one(detail, known) for detail in details[:10])


def explain_one(detail: ErrorDetails, known: str) -> str:
    parameter = ".".join(str(part)[:80] for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f'unknown parameter "{parameter}"; known: {known}'
    if detail["type"] == "missing":
        return f'missing parameter "{parameter}"'
    message = detail["msg"].removeprefix("Value error, ")
    if not parameter:
        return message
    return f"{parameter}: {message}; found {json.dumps(detail['input'], default=repr)[:100]}"


def check_names(settings: Settings, whitelist: Mapping[str, Task]) -> None:
    """Raise SettingsError for a task that should need approval and does not exist."""
    for name in settings.tasks_requiring_approval:
        if name not in whitelist:
            known = ", ".join(whitelist)
            raise SettingsError(f'TASKS_REQUIRING_APPROVAL: no task "{name}"; known: {known}')

"""What a decision is about: the agent that takes it, and the job that may run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from catalyst_heartbeat.queue.claims import Message, Terms
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.request import Request
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import Params, Task


@dataclass(frozen=True)
class Agent:
    """What every decision and every task of an agent stands on.

    What a dry run has foreseen: `foreseen` are the requests, by their tasks and parameters, that
    would have been made, `would_run` the tasks that would have run.
    """

    settings: Settings
    database: Database
    whitelist: Mapping[str, Task]
    foreseen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    would_run: list[str] = field(default_factory=list)

    @cached_property
    def terms(self) -> Terms:
        """Return whose tasks this agent claims, and for how long."""
        timeouts = {name: task.timeout for name, task in self.whitelist.items()}
        return Terms(self.settings.senders, self.settings.task_expiry_hours, timeouts, [], {})


@dataclass(frozen=True)
class Job:
    """A message that was understood: its request, its task, and the parameters of the task's model.

    `task` is None where the whitelist has none of that name.
    """

    message: Message
    request: Request
    task: Task | None
    params: Params

    @property
    def name(self) -> str:
        return self.request.task

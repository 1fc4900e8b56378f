"""The whitelist, and what becomes of one request: parse, validate, execute.

By hand, without a message: `python task_executor.py NAME [PARAMS_JSON]`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from connection import Database
from messages import Claim
from reports import REASON_LIMIT, Original, one_line, report
from settings import Settings, SettingsError, load
from task_format import Request, parse
from tasks import database, file_operations, logs, service_control, system_health
from tasks.base import (
    Context,
    LimitReached,
    NoParams,
    Outcome,
    Params,
    Result,
    Task,
    TaskFailed,
    TaskRejected,
)
from tasks.file_paths import path_pattern

log = logging.getLogger("heartbeat")

# The alarm comes a little after the deadline that a task can see for itself.
ALARM_GRACE_SECONDS = 0.25
INVESTIGATION_SECONDS = 30


def list_tasks(params: NoParams, context: Context) -> Result:
    """List the whitelisted tasks and their parameters.

    Use it to learn what this agent can do before asking for it. The result holds a JSON Schema
    of each task's parameters.
    """
    return Result(catalogue_text(), catalogue(context.settings))


WHITELIST: dict[str, Task] = {
    # System Health
    "docker_ps": Task("System Health", NoParams, system_health.docker_ps, 30),
    "disk_space": Task("System Health", NoParams, system_health.disk_space, 10),
    "memory_usage": Task("System Health", NoParams, system_health.memory_usage, 10),
    "process_list": Task("System Health", NoParams, system_health.process_list, 10),
    "service_health": Task(
        "System Health", system_health.PortParams, system_health.service_health, 10
    ),
    "all_services_health": Task(
        "System Health", NoParams, system_health.all_services_health, 30
    ),
    "list_tasks": Task("System Health", NoParams, list_tasks, 10),
    # Logs
    "docker_logs": Task("Logs", logs.LogServiceParams, logs.docker_logs, 30),
    "catalyst_logs": Task("Logs", logs.LogFileParams, logs.catalyst_logs, 10),
    "system_logs": Task("Logs", logs.UnitParams, logs.system_logs, 15),
    # Database
    "db_agent_status": Task("Database", NoParams, database.db_agent_status, 15),
    "db_pending_messages": Task("Database", NoParams, database.db_pending_messages, 10),
    "db_recent_observations": Task("Database", NoParams, database.db_recent_observations, 10),
    "db_task_history": Task("Database", database.TaskHistory, database.db_task_history, 10),
    # Service Control
    "restart_service": Task(
        "Service Control", service_control.TradingServiceParams,
        service_control.restart_service, 60,
        changes=True, investigate=service_control.investigate_service,
    ),
    "restart_dashboard": Task(
        "Service Control", NoParams, service_control.restart_dashboard, 30,
        changes=True, investigate=service_control.investigate_dashboard,
    ),
    "restart_all_services": Task(
        "Service Control", NoParams, service_control.restart_all_services, 120,
        changes=True, investigate=service_control.investigate_all_services,
    ),
    # File Operations
    "write_file": Task(
        "File Operations", file_operations.WriteFile, file_operations.write_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "edit_file": Task(
        "File Operations", file_operations.EditFile, file_operations.edit_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "rollback_file": Task(
        "File Operations", file_operations.RollbackFile, file_operations.rollback_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "read_file": Task("File Operations", file_operations.ReadFile, file_operations.read_file, 10),
    "list_backups": Task(
        "File Operations", file_operations.ListBackups, file_operations.list_backups, 10
    ),
}  # fmt: skip

TIMEOUTS: dict[str, int] = {name: task.timeout for name, task in WHITELIST.items()}


@dataclass(frozen=True)
class Job:
    """A validated request: its task, or None where the whitelist has none of that name.

    `params` is the task's model. `needs_approval` says why a person must decide; "" if nobody.
    """

    name: str
    task: Task | None
    params: Params
    needs_approval: str


def validate(request: Request, settings: Settings) -> Job:
    """Hold a request against the whitelist; raise TaskRejected for bad parameters."""
    task = WHITELIST.get(request.task)
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


def context_for(
    settings: Settings, database: Database, held: Claim, request: Request, job: Job
) -> Context:
    """Return what a task may know when it runs for a message."""
    return Context(
        settings,
        held.id,
        one_line(held.from_agent, REASON_LIMIT, settings.secrets),
        one_line(request.reason, REASON_LIMIT, settings.secrets),
        time.monotonic() + (job.task.timeout if job.task else 0),
        database.query,
        approved=held.escalation_id is not None,
    )


def execute(job: Job, context: Context) -> Outcome:
    """Run a validated job and return how it ended; never raises."""
    if job.task is None:
        return Outcome("failed", error=f"approved, but this agent has no task named {job.name}")
    result: Result | None = None
    try:
        with time_limit(job.task.timeout):
            result = job.task.run(job.params, context)
    except TaskFailed as error:
        return Outcome("failed", error.output, str(error), error.value)
    except LimitReached:
        pass
    except Exception as error:  # the one place where a bug becomes a report
        log.exception("#%d %s: unexpected error", context.message_id, job.name)
        return Outcome("failed", error=f"unexpected {type(error).__name__}; the log has the trace")
    if result is None:
        return Outcome("failed", error=f"did not finish within {job.task.timeout} s")
    return Outcome("success", result.text, value=result.value, change=result.change)


def investigate(job: Job, context: Context, claimed_at: float) -> Outcome | None:
    """Find out whether an interrupted job happened; None where that cannot be known."""
    if job.task is None or job.task.investigate is None:
        return None
    try:
        with time_limit(INVESTIGATION_SECONDS):
            return job.task.investigate(job.params, context, claimed_at)
    except (TaskFailed, LimitReached) as error:
        log.warning("#%d %s: cannot find out: %s", context.message_id, job.name, error)
    except Exception:
        log.exception("#%d %s: cannot find out", context.message_id, job.name)
    return None


def preview(job: Job, context: Context) -> str:
    """Return the diff that a job would make, "" for one that changes no file.

    Raises TaskRejected where the job would fail.
    """
    if job.task is None or job.task.preview is None:
        return ""
    try:
        with time_limit(job.task.timeout):
            return job.task.preview(job.params, context)
    except TaskFailed as error:
        raise TaskRejected(f"it would fail: {error}") from error
    except LimitReached:
        raise TaskRejected(f"its preview did not finish within {job.task.timeout} s") from None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise LimitReached in the main thread after so many seconds, and each second after that."""

    def on_alarm(number: int, frame: object) -> None:
        raise LimitReached

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_GRACE_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def description(task: Task) -> str:
    """Return what a task does, in one line: the first one of its docstring."""
    return (inspect.getdoc(task.run) or "").partition("\n")[0].rstrip(".")


def purpose(task: Task) -> str:
    """Return what a model needs to choose a task: what it does, when to use it, what it changes."""
    changes = "Changes this server." if task.changes else "Changes nothing."
    return " ".join(f"{inspect.getdoc(task.run)} {changes}".split())


def input_schema(task: Task, settings: Settings) -> dict[str, Any]:
    """Return the JSON Schema of a task's parameters, with the values that the settings allow."""
    schema = task.params.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    for field in schema.setdefault("properties", {}).values():
        field.pop("title", None)
        if field.get("pattern") == "allowed_paths":
            field["pattern"] = path_pattern(settings)
        if isinstance(field.get("enum"), str):
            values = getattr(settings, field["enum"])
            field["enum"] = [*values, *(str(value) for value in values if type(value) is int)]
    return schema


@lru_cache(maxsize=1)
def catalogue(settings: Settings) -> list[dict[str, Any]]:
    """Return the whitelist as data, one object a task."""
    return [
        {
            "name": name,
            "category": task.category,
            "description": description(task),
            "changes": task.changes,
            "timeout_seconds": task.timeout,
            "input_schema": input_schema(task, settings),
        }
        for name, task in WHITELIST.items()
    ]


@lru_cache(maxsize=1)
def catalogue_text() -> str:
    """Return the whitelist for people: by category, with the parameters' names."""
    lines: list[str] = []
    for name, task in WHITELIST.items():
        if task.category not in lines:
            lines += ["", task.category] if lines else [task.category]
        params = ", ".join(
            field if info.is_required() else f"[{field}]"
            for field, info in task.params.model_fields.items()
        )
        lines.append(f"  {name}({params}): {description(task)}")
    return "\n".join(lines)


def tool_definitions(settings: Settings) -> list[dict[str, Any]]:
    """Return the whitelist as the tool list that a Claude agent takes."""
    return [
        {
            "name": name,
            "description": purpose(task),
            "input_schema": input_schema(task, settings),
        }
        for name, task in WHITELIST.items()
    ]


def check_names(settings: Settings) -> None:
    """Raise SettingsError for a task that should need approval and does not exist."""
    for name in settings.tasks_requiring_approval:
        if name not in WHITELIST:
            known = ", ".join(WHITELIST)
            raise SettingsError(f'TASKS_REQUIRING_APPROVAL: no task "{name}"; known: {known}')


def main(argv: list[str]) -> int:
    """Run one task by hand and print its report.

    Returns 0 for a success, 1 for a failure, 2 for a request or a setting that is not acceptable.
    """
    if len(argv) not in (1, 2):
        print(f"usage: task_executor.py NAME [PARAMS_JSON]\n\n{catalogue_text()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        settings = load()
        check_names(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    outcome = run_by_hand(argv, settings)
    answer = report(
        Original(0, "run by hand", argv[0], 1),
        outcome,
        agent=settings.agent_id,
        secrets=settings.secrets,
        seconds=time.monotonic() - started,
    )
    print(answer.body)
    return {"success": 0, "rejected": 2}.get(outcome.verdict, 1)


def run_by_hand(argv: list[str], settings: Settings) -> Outcome:
    """Validate and execute a task named on the command line."""
    body = f"TASK: {argv[0]}\nPARAMS: {argv[1] if len(argv) == 2 else '{}'}"
    try:
        job = validate(parse(body), settings)
        if job.needs_approval:
            rule = "only a message can ask for approval"
            raise TaskRejected(
                f"needs {settings.approver}'s approval ({job.needs_approval}); {rule}"
            )
    except TaskRejected as error:
        return Outcome("rejected", error=str(error))
    deadline = time.monotonic() + TIMEOUTS[job.name]
    return execute(job, Context(settings, 0, "shell", "run by hand", deadline))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One whitelisted task from the shell, without a message."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from catalyst_heartbeat.executor.catalogue import catalogue_text
from catalyst_heartbeat.executor.decide import check_names, validate
from catalyst_heartbeat.executor.run import execute
from catalyst_heartbeat.outcome import Context, Outcome, TaskRejected
from catalyst_heartbeat.report import Original, report
from catalyst_heartbeat.request import parse
from catalyst_heartbeat.settings import Settings, SettingsError, load
from catalyst_heartbeat.tasks.base import Task


def main(argv: list[str], whitelist: Mapping[str, Task]) -> int:
    """Run one task by hand and print its report.

    Returns 0 for a success, 1 for a failure, 2 for a request or a setting that is not acceptable.
    """
    if len(argv) not in (1, 2):
        print(
            f"usage: task_executor.py NAME [PARAMS_JSON]\n\n{catalogue_text(whitelist)}",
            file=sys.stderr,
        )
        return 2
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        settings = load()
        check_names(settings, whitelist)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    outcome = run_by_hand(argv, settings, whitelist)
    answer = report(
        Original(0, "run by hand", argv[0], 1),
        outcome,
        agent=settings.agent_id,
        secrets=settings.secrets,
        seconds=time.monotonic() - started,
    )
    print(answer.body)
    return {"success": 0, "rejected": 2}.get(outcome.verdict, 1)


def run_by_hand(argv: list[str], settings: Settings, whitelist: Mapping[str, Task]) -> Outcome:
    """Validate and execute a task named on the command line."""
    body = f"TASK: {argv[0]}\nPARAMS: {argv[1] if len(argv) == 2 else '{}'}"
    try:
        job = validate(parse(body), settings, whitelist)
        if job.needs_approval:
            rule = "only a message can ask for approval"
            raise TaskRejected(
                f"needs {settings.approver}'s approval ({job.needs_approval}); {rule}"
            )
    except TaskRejected as error:
        return Outcome("rejected", error=str(error))
    deadline = time.monotonic() + whitelist[job.name].timeout
    context = Context(settings, 0, "shell", "run by hand", deadline, whitelist=whitelist)
    return execute(job, context)

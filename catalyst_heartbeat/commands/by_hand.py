"""One whitelisted task from the shell, without a message."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from catalyst_heartbeat.executor.catalogue import catalogue_text
from catalyst_heartbeat.executor.decide import reasons_to_ask, understand
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.executor.run import context_for, execute
from catalyst_heartbeat.log import (
    configure_logging,
    open_missing_streams,
    show_any_character,
)
from catalyst_heartbeat.outcome import Outcome, TaskRejected
from catalyst_heartbeat.queue.claims import Message
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.report import Original, report
from catalyst_heartbeat.request import parse
from catalyst_heartbeat.settings import Settings, SettingsError, check_names, load
from catalyst_heartbeat.tasks.base import Task

BY_HAND = Message(0, "shell", "run by hand")


def main(argv: list[str], whitelist: Mapping[str, Task]) -> int:
    """Run one task by hand and print its report.

    Returns 0 for a success, 1 for a failure, 2 for a request or a setting that is not acceptable.
    """
    if len(argv) not in (1, 2) or argv[0] in ("-h", "--help"):
        print(
            f"usage: task_executor.py NAME [PARAMS_JSON]\n\n{catalogue_text(whitelist)}",
            file=sys.stderr,
        )
        return 2
    open_missing_streams()
    show_any_character()
    try:
        settings = load()
        configure_logging(settings.secrets)
        check_names(settings, whitelist)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    outcome = run_by_hand(argv, settings, whitelist)
    original = Original(0, "run by hand", argv[0], 1)
    print(report(original, outcome, settings, time.monotonic() - started).body)
    return {"success": 0, "rejected": 2}.get(outcome.verdict, 1)


def run_by_hand(argv: list[str], settings: Settings, whitelist: Mapping[str, Task]) -> Outcome:
    """Hold a task named on the command line against the whitelist, and execute it."""
    params = argv[1] if len(argv) == 2 else "{}"
    database = Database(settings.research_database_url, settings.agent_id, patient=False)
    agent = Agent(settings, database, whitelist)
    try:
        request = parse(f"TASK: {argv[0]}\nPARAMS: {params}\nREASON: run by hand")
        job = understand(BY_HAND, request, agent)
        if job.task is None:
            raise TaskRejected(f"no task {job.name}; known: {', '.join(whitelist)}")
        for why in reasons_to_ask(job, agent):
            rule = "only a message can ask for approval"
            raise TaskRejected(f"needs {settings.approver}'s approval ({why}); {rule}")
        return execute(job, context_for(job, agent))
    except TaskRejected as error:
        return Outcome("rejected", error=error.told(settings.secrets))
    finally:
        database.close()

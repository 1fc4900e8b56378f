"""One whitelisted task from the shell, without a message."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from catalyst_heartbeat.executor.catalogue import catalogue_text
from catalyst_heartbeat.executor.decide import Ask, Refuse, check_names, decide
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.executor.run import context_for, execute
from catalyst_heartbeat.outcome import Outcome
from catalyst_heartbeat.queue.claims import Message
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.report import Original, report
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
    """Decide on and execute a task named on the command line."""
    body = f"TASK: {argv[0]}\nPARAMS: {argv[1] if len(argv) == 2 else '{}'}\nREASON: run by hand"
    database = Database(settings.research_database_url, settings.agent_id, patient=False)
    agent = Agent(settings, database, whitelist)
    message = Message(
        id=0, from_agent=settings.senders[0], subject="run by hand", body=body,
        body_bytes=len(body), large_data=False, created_at=None, expires_at=None, too_late=False,
        attempt=1, reported=False, claimed_at=None, now=time.time(),
    )  # fmt: skip
    decision = decide(message, agent)
    if isinstance(decision, Refuse):
        return decision.outcome
    if isinstance(decision, Ask):
        rule = "only a message can ask for approval"
        why = f"needs {settings.approver}'s approval ({decision.why}); {rule}"
        return Outcome("rejected", error=why)
    try:
        return execute(decision.job, replace(context_for(decision.job, agent), requester="shell"))
    finally:
        database.close()

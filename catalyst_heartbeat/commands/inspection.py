"""Looking without running a cycle: --check, --status and --dry-run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg2

from catalyst_heartbeat.commands.check import age, check, print_findings
from catalyst_heartbeat.commands.dry_run import foresee_cycle
from catalyst_heartbeat.executor.decide import Agent
from catalyst_heartbeat.queue import messages, outbox
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, Row, first_line
from catalyst_heartbeat.queue.messages import Escalation
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import Task
from catalyst_heartbeat.text import clean_line

LINE_LIMIT = 300


class ReadOnlyDatabase(Database):
    """A connection on which the server refuses every write."""

    def fetch(self, statement: str, params: dict[str, Any] | None = None) -> list[Row]:
        return super().fetch("SET TRANSACTION READ ONLY; " + statement, params)


def run(options: argparse.Namespace, settings: Settings, whitelist: Mapping[str, Task]) -> int:
    """Do what one of the three options says; 1 where the database does not let it."""
    database = ReadOnlyDatabase(settings.research_database_url, settings.agent_id, patient=False)
    try:
        if options.check:
            findings = check(database, settings, whitelist)
            return print_findings(findings, settings.secrets, as_json=options.json)
        agent = Agent(settings, database, whitelist)
        for line in foresee_cycle(agent) if options.dry_run else status(database, settings):
            print(line, flush=True)
    except DatabaseLost as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg2.Error as error:
        print(f"the database refused; --check says more: {first_line(error)}", file=sys.stderr)
        return 1
    finally:
        database.close()
    return 0


def status(database: Database, settings: Settings) -> Iterator[str]:
    """Say what the agent did last, what it has to do, and what waits for somebody."""
    yield from state_lines(database, settings)
    queue = messages.queue(database)
    yield f"queue     {sum(count for _, count, _ in queue)} pending"
    for priority, count, oldest in queue:
        yield f"  {shown(priority or 'no priority', settings)}: {count}, the oldest {age(oldest)}"
    for found in messages.at_work(database):
        who = shown(
            f"process {found.pid} on {found.host}, lease until {found.lease_until}", settings
        )
        yield f"at work   #{found.id}: {who}"
    escalations = messages.escalations(database)
    yield f"approval  {len(escalations)} requests"
    yield from (f"  {escalation_line(escalation, settings)}" for escalation in escalations)
    waiting = outbox.waiting(settings)
    yield f"outbox    {len(waiting)} unsent reports"
    yield from (f"  {shown(path.name, settings)}: {age(outbox.age(path))}" for path in waiting)


def state_lines(database: Database, settings: Settings) -> Iterator[str]:
    state = messages.state(database)
    if state is None:
        yield f"cycle     {settings.agent_id} has had none yet"
        return
    yield f"cycle     {age(state.polled)} ago, {shown(state.mode or '-', settings)}"
    yield f"  {shown(state.summary or '-', settings)}"
    if state.last_error:
        yield f"  {state.errors_today} errors today; the last, {age(state.failed)} ago:"
        yield f"  {shown(state.last_error, settings)}"


def escalation_line(escalation: Escalation, settings: Settings) -> str:
    left = escalation.left or 0.0
    until = f"{age(left)} left" if left > 0 else "too late"
    subject = shown(f"{escalation.subject}: {escalation.status}", settings)
    return f"#{escalation.id} {subject}, asked {age(escalation.age)} ago, {until}"


def shown(text: str, settings: Settings) -> str:
    """Return what somebody else wrote as one harmless line."""
    line = clean_line(text, settings.secrets)
    return line if len(line) <= LINE_LIMIT else line[: LINE_LIMIT - 1] + "…"

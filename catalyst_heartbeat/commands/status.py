"""--status: what the agent did last, what it has to do, and what waits for somebody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.commands.check import age
from catalyst_heartbeat.executor.decide import brakes
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.queue import listing, outbox, state
from catalyst_heartbeat.text import clean, clean_line, cut

# How the operator looks at a file that was kept on disk: it is JSON, its report in "body".
HOW_TO_LOOK = "python3 -m json.tool"
LINE_LIMIT = 300


def facts(agent: Agent) -> dict[str, Any]:
    """Return all that --status says, by names that scripts rely on; times are in seconds."""
    database, settings = agent.database, agent.settings
    row = state.state(database)
    return {
        "agent": settings.agent_id,
        "cycle": row and row._asdict(),
        "queue": [
            {"priority": priority, "pending": count, "oldest": oldest}
            for priority, count, oldest in listing.pending_by_priority(database)
        ],
        "at_work": [
            {
                "id": found.id,
                "host": found.host,
                "pid": found.pid,
                "since": found.since,
                "lease_until": found.lease_until,
            }
            for found in listing.at_work(database)
        ],
        "approvals": [
            {
                "id": waiting.card_id,
                "task": waiting.id,
                "subject": waiting.card_subject,
                "status": waiting.card_status,
                "age": waiting.age,
                "left": waiting.left,
            }
            for waiting in decisions.waiting(database, settings.approver)
        ],
        "look_alikes": [
            {"id": card_id, "from_agent": sender, "subject": subject}
            for card_id, sender, subject in decisions.look_alikes(database, settings.approver)
        ],
        "brakes": list(brakes(agent)),
        "unsent": kept(agent, "outbox", ".json"),
        "unreadable": kept(agent, "outbox", ".unreadable"),
        "refused": kept(agent, "refused", ".json"),
    }


def for_programs(value: Any, secrets: tuple[str, ...]) -> Any:
    """Return a fact as JSON has it, without secrets: no number is infinite there."""
    if isinstance(value, dict):
        return {name: for_programs(item, secrets) for name, item in value.items()}
    if isinstance(value, list):
        return [for_programs(item, secrets) for item in value]
    if isinstance(value, str):
        return clean(value, secrets)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kept(agent: Agent, folder: str, suffix: str) -> list[dict[str, Any]]:
    """Return the files of a folder of kept reports, each with its age."""
    return [
        {"file": str(path), "age": outbox.age(path)}
        for path in outbox.kept_files(agent.settings, folder, suffix)
    ]


def lines(agent: Agent) -> Iterator[str]:
    """Return what --status says, for people: one line a finding."""
    for label, text in said(facts(agent)):
        shown = cut(clean_line(text, agent.settings.secrets), LINE_LIMIT)
        yield f"{label:10}{shown}" if label else f"  {shown}"


def said(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Say each fact in a line, whatever it holds; what belongs to the line above has no label."""
    yield from said_of_cycle(found)
    queue = found["queue"]
    yield "queue", f"{sum(row['pending'] for row in queue)} pending"
    for row in queue:
        priority = row["priority"] or "no priority"
        yield "", f"{priority}: {row['pending']}, the oldest {age(row['oldest'])}"
    for row in found["at_work"]:
        who = f"process {row['pid']} on {row['host']}, lease until {row['lease_until']}"
        yield "at work", f"#{row['id']}: {who}"
    yield "approval", f"{len(found['approvals'])} requests"
    for row in found["approvals"]:
        until = f"{age(row['left'])} left" if (row["left"] or 0) > 0 else "too late"
        what = f"#{row['id']} {row['subject']}: {row['status']}"
        yield "", f"{what}, asked {age(row['age'])} ago, {until}"
    for row in found["look_alikes"]:
        who = f"from {row['from_agent']}: its decision counts nothing"
        yield "", f"not ours: #{row['id']} {row['subject']}, {who}"
    for brake in found["brakes"]:
        yield "brake", f"what changes something needs approval: {brake}"
    yield "outbox", f"{len(found['unsent'])} unsent reports"
    for kind in ("unsent", "unreadable", "refused"):
        for row in found[kind]:
            yield "", f"{kind}, {age(row['age'])} old: {HOW_TO_LOOK} {row['file']}"


def said_of_cycle(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    row = found["cycle"]
    if row is None:
        yield "cycle", f"{found['agent']} has had none yet"
        return
    yield "cycle", f"{age(row['polled'])} ago, {row['mode'] or '-'}"
    yield "", row["summary"] or "-"
    if row["last_error"]:
        yield "", f"{row['errors_today']} errors today; the last, {age(row['failed'])} ago:"
        yield "", row["last_error"]

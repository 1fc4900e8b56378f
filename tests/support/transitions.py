"""The transitions of a task as the tests of them make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from catalyst_heartbeat.queue import messages
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.messages import Claim, Ending
from catalyst_heartbeat.report import Report
from task_executor import WHITELIST

EXPIRY_HOURS = 24
TIMEOUTS = {name: task.timeout for name, task in WHITELIST.items()}
REPORT = Report("Task Report: Test", "✅ SUCCESS", {"final": True, "outcome": "success"})
CARD = Report("Permission #1: reboot", "Run reboot?", {"task": "reboot", "params": {}})
NOTICE = Report("Task Report: Test", "⏳ ESCALATED", {"final": False, "outcome": "escalated"})
TOMORROW = 4102444800.0


def in_every_way(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with each way to end a task: alone, and with the next claim."""
    marked: Callable[..., None] = pytest.mark.parametrize("finish", [finish, finish_with_claim])(
        test
    )
    return marked


def claim(agent: Connection) -> Claim:
    held = messages.claim_next(agent, EXPIRY_HOURS, TIMEOUTS)
    assert held is not None
    return held


def nothing_to_claim(agent: Connection) -> bool:
    return messages.claim_next(agent, EXPIRY_HOURS, TIMEOUTS) is None


def ending(held: Claim) -> Ending:
    return Ending(held.id, held.token, "processed", REPORT)


def finish(agent: Connection, held: Claim) -> bool:
    return messages.finish(agent, ending(held))


def finish_and_claim(agent: Connection, held: Claim) -> tuple[bool, Claim | None]:
    return messages.finish_and_claim_next(agent, ending(held), EXPIRY_HOURS, TIMEOUTS)


def finish_with_claim(agent: Connection, held: Claim) -> bool:
    return finish_and_claim(agent, held)[0]


def take_over(agent: Connection) -> Claim | None:
    (found,) = messages.at_work(agent)
    return messages.claim_interrupted(agent, found, 60)


def ask(agent: Connection, held: Claim) -> bool:
    return messages.escalate(agent, held, "craig_mobile", CARD, TOMORROW, NOTICE)

"""The transitions of a task as the tests of them make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.approvals.card import Card
from catalyst_heartbeat.approvals.decisions import Escalation, Waiting
from catalyst_heartbeat.queue import claims, endings, listing
from catalyst_heartbeat.queue.claims import Claim, Terms
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.report import Report
from task_executor import WHITELIST

EXPIRY_HOURS = 24
TIMEOUTS = {name: task.timeout for name, task in WHITELIST.items()}
TERMS = Terms(("big_bro",), EXPIRY_HOURS, TIMEOUTS, [], {})
REPORT = Report("Task Report: Test", "✅ SUCCESS", {"final": True, "outcome": "success"})
CARD = Card(
    "Permission #1: reboot",
    "Run reboot?",
    {"task": "reboot", "params": {}, "digest": "0" * 64},
    4102444800,
    "unknown",
)
NOTICE = Report("Task Report: Test", "⏳ ESCALATED", {"final": False, "outcome": "escalated"})
ASKED = Escalation(CARD, NOTICE)


def in_every_way(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with each way to end a task: alone, and with the next claim."""
    marked: Callable[..., None] = pytest.mark.parametrize("finish", [finish, finish_with_claim])(
        test
    )
    return marked


def claim(agent: Connection) -> Claim:
    held = claims.claim_next(agent, TERMS)
    assert held is not None
    return held


def nothing_to_claim(agent: Connection) -> bool:
    return claims.claim_next(agent, TERMS) is None


def ending(held: Claim) -> Ending:
    return Ending(held.id, held.token, "processed", REPORT)


def finish(agent: Connection, held: Claim) -> bool:
    return endings.finish(agent, ending(held))


def finish_and_claim(agent: Connection, held: Claim) -> tuple[bool, Claim | None]:
    return claims.finish_and_claim_next(agent, ending(held), TERMS)


def finish_with_claim(agent: Connection, held: Claim) -> bool:
    return finish_and_claim(agent, held)[0]


def use_approval(agent: Connection, waiting: Waiting) -> Claim | None:
    assert waiting.card_id is not None
    return claims.claim_approved(agent, TERMS, waiting.id, waiting.card_id)


def take_over(agent: Connection) -> Claim | None:
    (found,) = listing.at_work(agent)
    return claims.claim_interrupted(agent, TERMS, found.id, found.claim_digest, 60)


def ask(agent: Connection, held: Claim) -> bool:
    return decisions.escalate(agent, held, "craig_mobile", ASKED)

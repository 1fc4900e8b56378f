"""Random requests: names, texts and JSON objects as a message may hold them."""

from __future__ import annotations

from hypothesis import strategies as st

from catalyst_heartbeat.executor.decide import understand
from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.queue.claims import Message
from catalyst_heartbeat.queue.connection import Database
from catalyst_heartbeat.request import NAME, Request
from catalyst_heartbeat.settings import Settings
from task_executor import WHITELIST

NOON = 1767183300.0  # 2025-12-31 12:15 UTC

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NUMBERS = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False)
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT.filter(lambda key: key != "reason"), JSON_VALUES, max_size=4)
NAMES = st.from_regex(NAME, fullmatch=True)


def message_of(body: str = "", sender: str = "big_bro") -> Message:
    """Return message 42 as a claim at noon reads it."""
    return Message(42, sender, "s", body, len(body.encode()), claimed_at=NOON, now=NOON)


def job_of(request: Request, settings: Settings) -> Job:
    """Return the job of a request, or raise TaskRejected as a decision on it would."""
    return understand(message_of(), request, agent_of(settings))


def agent_of(settings: Settings) -> Agent:
    """Return an agent that has no database."""
    return Agent(settings, Database("", settings.agent_id), WHITELIST)

"""Approvals in any order: taps, edits, expiries, cycles and kills, on the real SQL.

Whatever happens, a request runs at most once, only while it is approved, only as it was shown.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.approval_setup import Desk, opened_desk, write_file
from support.cycles import end_leases
from support.postgres import Database, escalations, message

from catalyst_heartbeat.approvals import card as cards
from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.queue import claims, endings, state

MOST_REQUESTS = 3
STEPS = {
    "claim_next": claims, "claim_approved": claims, "finish": endings,
    "finish_and_claim_next": claims,
    "approved_diff": cards, "request": decisions, "escalate": decisions, "end": decisions,
    "rest": state,
}  # fmt: skip
# What an approval is for: these columns of the message and of its escalation.
BOUND = {"task": ("body", "to_agent"), "card": ("subject", "body", "from_agent", "to_agent")}
BOUND_DATA = ("task", "params", "message_id", "digest")

TAMPERING = (
    "expires_at = now() - interval '1 second'",
    "shown", "other", "file", "body = 'Run?'", "subject = 'Permission'", "to_agent = 'big_bro'",
    "data = '{}'", "data = data || '{\"params\": {}}'", "data = data || '{\"digest\": \"0\"}'",
)  # fmt: skip

any_request = st.integers(0, MOST_REQUESTS - 1)


class Killed(BaseException):
    """The process dies here."""


class Requests(RuleBasedStateMachine):
    """Up to three requests to write a file each, and everybody who has a hand in them."""

    desk: Desk

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[int] = []
        self.shown: dict[int, Any] = {}
        self.desk.database.execute("TRUNCATE claude_messages, claude_state RESTART IDENTITY")
        for setting in ("ALLOWED_PATHS", "BACKUP_DIR", "STATE_DIR"):
            folder = Path(self.desk.environment[setting].partition(":")[0])
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
        for _ in range(MOST_REQUESTS - 1):
            self.ask()
        self.cycle("", False)

    def path(self, task: int) -> Path:
        return self.desk.path(f"{self.tasks.index(task)}.md")

    def card(self, task: int) -> dict[str, Any] | None:
        return next(iter(escalations(self.desk.database, task)), None)

    def snapshot(self, task: int) -> Any:
        """Return all that an approval is for, as it is now."""
        card = self.card(task)
        if card is None:
            return None
        rows = {"task": message(self.desk.database, task), "card": card}
        data = card["data"] or {}
        kept = [rows[name][column] for name, columns in BOUND.items() for column in columns]
        file = self.path(task)
        content = file.read_text() if file.exists() else None
        return kept, {key: data.get(key) for key in BOUND_DATA}, content

    def may_run(self, task: int) -> bool:
        """Tell whether the request is approved, in time, unused, and still what was shown."""
        ((approved,),) = self.desk.database.execute(
            """SELECT EXISTS (SELECT FROM claude_messages AS card, claude_messages AS task
                               WHERE card.reply_to_id = %(task)s AND card.msg_type = 'escalation'
                                 AND card.status = 'approved' AND card.expires_at > now()
                                 AND task.id = %(task)s AND task.status = 'escalated')""",
            {"task": task},
        )
        return bool(approved) and self.snapshot(task) == self.shown[task]

    @precondition(lambda self: len(self.tasks) < MOST_REQUESTS)
    @rule()
    def ask(self) -> None:
        name = f"{len(self.tasks)}.md"
        self.tasks.append(self.desk.send(name, f"shown {name}\n"))

    @rule(step=st.sampled_from(["", "", "", "", *STEPS]), after=st.booleans())
    def cycle(self, step: str, after: bool) -> None:
        runs = {task: self.runs(task) for task in self.tasks}
        may_run = {task: self.may_run(task) for task in self.tasks}

        self.run_cycle(step, after)

        for task in self.tasks:
            if task not in self.shown and self.card(task):
                self.shown[task] = self.snapshot(task)
            if self.runs(task) > runs[task]:
                assert may_run[task]
                assert self.path(task).read_text() == self.shown[task][1]["params"]["content"]

    def run_cycle(self, step: str, after: bool) -> None:
        """Run a cycle that dies before or after the first call of a transition, or does not."""
        original: Any = getattr(STEPS.get(step), step, None)

        def struck(*arguments: Any, **named: Any) -> Any:
            if after:
                original(*arguments, **named)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            if step:
                patch.setattr(STEPS[step], step, struck)
            with contextlib.suppress(Killed):
                self.desk.cycle()

    def runs(self, task: int) -> int:
        return self.desk.runs(task)

    @rule(which=any_request, status=st.sampled_from(["approved", "approved", "denied"]))
    def tap(self, which: int, status: str) -> None:
        for card in filter(None, map(self.card, self.tasks[which : which + 1])):
            self.desk.approve(card) if status == "approved" else self.desk.deny(card)

    @rule(which=any_request, tamper=st.sampled_from(TAMPERING))
    def tamper(self, which: int, tamper: str) -> None:
        """Change the message, its card or the file; "shown" puts the message back."""
        for task in self.tasks[which : which + 1]:
            path, card = self.path(task), self.card(task)
            if tamper in ("shown", "other"):
                body = write_file(path, f"{tamper} {path.name}\n")
                self.desk.set(task, "body = %(value)s", body)
            elif tamper == "file":
                path.write_text("by someone else\n")
            elif card:
                self.desk.set(card, tamper)

    @rule()
    def let_the_leases_end(self) -> None:
        end_leases(self.desk.database)

    @invariant()
    def nothing_runs_twice_and_nothing_is_reported_twice(self) -> None:
        for task in self.tasks:
            assert self.runs(task) <= 1
            assert self.desk.verdict(task) in (
                "", "success", "failed", "denied", "expired", "rejected", "unknown",
            )  # fmt: skip

    def teardown(self) -> None:
        """After undisturbed cycles only what nobody has decided is without its final report."""
        for _ in range(4):
            end_leases(self.desk.database)
            self.cycle(step="", after=False)
        for task in self.tasks:
            status = message(self.desk.database, task)["status"]
            waits = status == "escalated"
            assert status in ("escalated", "processed", "expired")
            assert bool(self.desk.verdict(task)) == (not waits)
            assert not self.may_run(task)
        self.nothing_runs_twice_and_nothing_is_reported_twice()


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


@pytest.mark.slow
def test_a_request_runs_at_most_once_only_while_approved_only_as_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Requests, "desk", desk, raising=False)
    caplog.set_level(logging.CRITICAL, "heartbeat")

    run: Any = run_state_machine_as_test
    run(Requests, settings=machine_settings(40))


def machine_settings(examples: int, *phases: Phase) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        phases=[Phase.generate, *phases],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )

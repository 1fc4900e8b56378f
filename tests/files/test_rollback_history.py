"""Any sequence of changes, rollbacks and foreign changes, against a plain model."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.file_setup import Workspace, fast_folder, make_workspace

from catalyst_heartbeat.outcome import Result, TaskFailed

KEPT = 8
FLAT = "a.md.20250101_000000.bak"
FLAT_TEXT = "from an earlier program\n"
texts = st.sampled_from(["one\n", "two\n", "three\n", "one\r\ntwo\r\n", "no newline"])


@dataclass
class Step:
    """An entry of the model's history: the file before and after it, and what it undid."""

    before: str | None
    after: str | None
    undoes: tuple[int, ...] = ()


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.exits = contextlib.ExitStack()
        self.steps: list[Step] = []
        self.names: list[str] = []
        self.text: str | None = None

    @initialize()
    def start(self) -> None:
        folder = self.exits.enter_context(fast_folder())
        workspace = make_workspace(folder)
        self.workspace = Workspace(folder, workspace.settings._replace(backup_keep=KEPT))
        (folder / "backups" / FLAT).write_text(FLAT_TEXT)

    def teardown(self) -> None:
        self.exits.close()

    @property
    def path(self) -> Path:
        return self.workspace.root / "a.md"

    @property
    def stack(self) -> list[int]:
        undone = {number for step in self.steps for number in step.undoes}
        changes = [number for number, step in enumerate(self.steps) if not step.undoes]
        return [number for number in changes if number not in undone]

    @property
    def kept(self) -> list[int]:
        """The model forgets like the program: the oldest, never the newest or the way back."""
        return [n for n, name in enumerate(self.names) if name]

    @property
    def untouched(self) -> bool:
        return not self.steps or self.steps[-1].after == self.text

    def attempt(self, task: str, **params: Any) -> Result | None:
        try:
            return self.workspace.run(task, self.path, **params)
        except TaskFailed:
            return None

    def expect(
        self, result: Result | None, after: str | None, undoes: tuple[int, ...] = ()
    ) -> None:
        assert result is not None
        self.steps.append(Step(self.text, after, undoes))
        self.names.append(result.value["backup"])
        self.text = after
        protected = {len(self.steps) - 1, *self.stack[-1:]}
        for number in [n for n in self.kept if n not in protected][: max(0, len(self.kept) - KEPT)]:
            self.names[number] = ""

    @rule(text=texts)
    def write(self, text: str) -> None:
        result = self.attempt("write_file", content=text)

        if text == self.text:
            assert result is None
        else:
            self.expect(result, text)

    @rule(old=texts, new=texts)
    def edit(self, old: str, new: str) -> None:
        if old == new:
            return
        result = self.attempt("edit_file", old_text=old, new_text=new)

        if self.text is None or "\r\n" in self.text or self.text.count(old) != 1:
            # What CRLF does to an edit is another test's; here it is taken as it comes.
            if result is not None:
                self.expect(result, self.path.read_bytes().decode())
        else:
            self.expect(result, self.text.replace(old, new))

    @rule()
    def undo(self) -> None:
        stack = [number for number in self.stack if self.names[number]]
        result = self.attempt("rollback_file")

        if not stack or not self.untouched or self.steps[stack[-1]].after != self.text:
            assert result is None
        else:
            self.expect(result, self.steps[stack[-1]].before, (stack[-1],))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def go_back_to(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.kept))
        target = self.steps[number].before
        stack = [n for n in self.stack if self.names[n]]
        undoes = tuple(n for n in stack if n >= number) if number in stack else ()
        if not self.untouched:
            undoes = ()
        refused = (
            target == self.text
            or (not self.untouched and self.text is not None)
            or (target is None and not undoes)
        )

        result = self.attempt("rollback_file", backup=self.names[number])

        if refused:
            assert result is None
        else:
            self.expect(result, target, undoes)

    @rule()
    def restore_the_old_backup(self) -> None:
        result = self.attempt("rollback_file", backup=FLAT)

        if self.text == FLAT_TEXT or (self.text is not None and not self.untouched):
            assert result is None
        else:
            self.expect(result, FLAT_TEXT)

    @rule(text=texts)
    def somebody_else_writes(self, text: str) -> None:
        self.path.write_bytes(text.encode())
        self.text = text

    @rule()
    def somebody_else_removes(self) -> None:
        self.path.unlink(missing_ok=True)
        self.text = None

    @invariant()
    def the_file_and_its_history_are_as_the_model_says(self) -> None:
        if not hasattr(self, "workspace"):
            return
        found = self.path.read_bytes().decode() if self.path.exists() else None
        assert found == self.text
        assert not self.workspace.leftovers()
        listed = self.workspace.run("list_backups", self.path).value
        names = [row["name"] for row in listed if row["message_id"] is not None]
        assert names == [name for name in reversed(self.names) if name]
        undoable = [row["name"] for row in listed if row["can_undo_now"]]
        expected = [
            self.names[n]
            for n in reversed(self.stack)
            if self.names[n] and self.untouched and self.steps[n].before != self.text
        ]
        assert undoable == expected


TestHistories = pytest.mark.slow(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

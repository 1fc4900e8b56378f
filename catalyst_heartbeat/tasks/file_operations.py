"""File Operations: write, edit, roll back and read files, and list their backups."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from catalyst_heartbeat.files import backups
from catalyst_heartbeat.files.apply import carry_out, recover
from catalyst_heartbeat.files.backups import Entry
from catalyst_heartbeat.files.diff import Diff, split_lines
from catalyst_heartbeat.files.paths import FilePath, own_file
from catalyst_heartbeat.files.plan import (
    Plan,
    Target,
    opened_target,
    plan_editing,
    plan_new,
    plan_rollback,
)
from catalyst_heartbeat.files.snapshot import opened_place, read_place
from catalyst_heartbeat.files.syntax import check_syntax
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import Context, Outcome, Result, TaskFailed
from catalyst_heartbeat.redaction import redact
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import Params

MOST_TEXT = 1024 * 1024
MOST_LINES_READ = 500
MOST_BYTES_READ = 64 * 1024

Text = Annotated[str, Field(max_length=MOST_TEXT)]
TextToFind = Annotated[str, Field(min_length=1, max_length=MOST_TEXT)]
BackupName = Annotated[str, Field(min_length=1, max_length=300)]


class WriteFile(Params):
    filepath: FilePath
    content: Text = Field(description="The whole new content of the file, written as it is")


class EditFile(Params):
    filepath: FilePath
    old_text: TextToFind = Field(
        description="The text to replace; it must occur exactly once in the file"
    )
    new_text: Text = Field(description="What to put in its place; empty to delete it")

    @model_validator(mode="after")
    def check_difference(self) -> EditFile:
        if self.old_text == self.new_text:
            raise PydanticCustomError("same", "new_text must differ from old_text")
        return self


class RollbackFile(Params):
    filepath: FilePath
    backup: BackupName | None = Field(
        default=None,
        description="The name of a backup as list_backups shows it; without it the newest change "
        "not yet undone is undone",
    )


class ReadFile(Params):
    filepath: FilePath
    first_line: int = Field(default=1, ge=1, le=MOST_TEXT, description="The first line to show")
    line_count: int = Field(
        default=MOST_LINES_READ, ge=1, le=MOST_LINES_READ, description="How many lines to show"
    )


class ListBackups(Params):
    filepath: FilePath


Changing = WriteFile | EditFile | RollbackFile


def write_file(params: WriteFile, context: Context) -> Result:
    """Write a whole Python, shell or Markdown file.

    Makes a new file or replaces an existing one; its folder must exist. Python and shell files
    are checked for syntax errors first. The former content is backed up: rollback_file undoes
    this, also the making of a new file. For a small change of a large file use edit_file.
    """
    return change(params, context)


def edit_file(params: EditFile, context: Context) -> Result:
    """Replace text that occurs exactly once in a file.

    Fails with the number of occurrences and their lines if old_text does not occur exactly once;
    read_file shows the file. Everything else stays byte for byte. Syntax is checked first, the
    former content is backed up, rollback_file undoes it.
    """
    return change(params, context)


def rollback_file(params: RollbackFile, context: Context) -> Result:
    """Undo the newest change of a file, or restore a backup.

    Undoes what write_file and edit_file did, one change a call; undoing the making of a file
    removes it. With a backup's name from list_backups it goes back to before that change.
    Refuses if someone else changed the file since. It is backed up itself.
    """
    return change(params, context)


def read_file(params: ReadFile, context: Context) -> Result:
    """Read a file, with line numbers.

    Shows at most 500 lines a call; first_line and line_count choose which. The result's "text" is
    exactly what the file holds, line ends too; a secret in it is shown as [redacted].
    """
    with opened_place(params.filepath, context.settings) as place:
        snapshot = read_place(place)
    if snapshot is None:
        raise TaskFailed(f"{params.filepath} does not exist")
    text = redact(snapshot.content.decode(), context.settings.secrets)
    lines = split_lines(text)
    if params.first_line > max(1, len(lines)):
        raise TaskFailed(f"{params.filepath} has only {len(lines)} lines")
    shown = within_cap(lines[params.first_line - 1 :][: params.line_count])
    last = params.first_line + len(shown) - 1
    numbered = [
        f"{number:6}\t{line.removesuffix(chr(10)).removesuffix(chr(13))}"
        for number, line in enumerate(shown, params.first_line)
    ]
    if "".join(shown) != "".join(lines[params.first_line - 1 : last]):
        numbered.append(f"(of line {last}, which is too long, only its beginning)")
    if last < len(lines) or params.first_line > 1:
        numbered.append(f"(lines {params.first_line} to {last} of {len(lines)})")
    value = {
        "filepath": params.filepath,
        "first_line": params.first_line,
        "last_line": last,
        "total_lines": len(lines),
        "text": "".join(shown),
    }
    return Result("\n".join(numbered) or "(the file is empty)", value)


def list_backups(params: ListBackups, context: Context) -> Result:
    """List the backups of a file.

    Newest first: its name for rollback_file, when, what was done, by which message, lines added
    and removed, and whether rollback_file can undo it now.
    """
    with opened_target(params.filepath, context) as target:
        history, current = target.history, target.digest
        undoable = [
            name
            for name in history.stack
            if history.left(current) and history.entries[name].before != current
        ]
        rows = [row(name, entry, name in undoable) for name, entry in history.entries.items()]
        rows = [flat_row(name) for name in backups.flat_names(target.store)] + rows
    rows.reverse()
    text = "\n".join(row_text(found) for found in rows)
    return Result(text or f"there are no backups of {params.filepath}", rows)


def approval_for_path(params: Changing, settings: Settings) -> str | None:
    """Say why changing this file needs a person, or None."""
    return own_file(params.filepath, settings)


def preview(params: Changing, context: Context) -> Diff:
    """Return the diff of what a change would do; raise TaskFailed where it would fail."""
    with opened_target(params.filepath, context) as target:
        plan = plan_change(params, target)
    if plan.swap.after and plan.swap.after.checked:
        with beneath.closing(os.memfd_create("preview")) as descriptor:
            beneath.write_all(descriptor, plan.swap.after.content)
            check_syntax(descriptor, target.path, context.deadline)
    return plan.diff


def investigate(params: Changing, context: Context, claimed_at: float) -> Outcome | None:
    """Find out whether an interrupted change happened, by its backup's JSON and the file."""
    return recover(params.filepath, context, claimed_at)


def change(params: Changing, context: Context) -> Result:
    with opened_target(params.filepath, context, alone=True) as target:
        return carry_out(plan_change(params, target), context)


def plan_change(params: Changing, target: Target) -> Plan:
    if isinstance(params, WriteFile):
        return plan_new("write_file", target, params.content.encode())
    if isinstance(params, EditFile):
        return plan_editing(target, params.old_text, params.new_text)
    return plan_rollback(target, params.backup)


def within_cap(lines: list[str]) -> list[str]:
    """Return as many lines as fit, as JSON writes them; at least one, itself cut if it must be."""
    room = MOST_BYTES_READ
    for count, line in enumerate(lines):
        room -= len(json.dumps(line))
        if room < 0:
            return lines[:count] or [beginning(line)]
    return lines


def beginning(line: str) -> str:
    sizes = itertools.accumulate(len(json.dumps(char)) - 2 for char in line[:MOST_BYTES_READ])
    return line[: bisect.bisect_right(list(sizes), MOST_BYTES_READ)]


def row(name: str, entry: Entry, can_undo: bool) -> dict[str, Any]:
    return {
        "name": name,
        "time": entry.time,
        "operation": entry.operation if entry.state == "applied" else "interrupted",
        "message_id": entry.message_id,
        "lines_added": entry.lines_added,
        "lines_removed": entry.lines_removed,
        "can_undo_now": can_undo,
    }


def flat_row(name: str) -> dict[str, Any]:
    time = re.sub(r".*(....)(..)(..)_(..)(..)(..)\.bak", r"\1-\2-\3T\4:\5:\6", name)
    unknown = dict.fromkeys(("message_id", "lines_added", "lines_removed"))
    known = {"name": name, "time": time, "operation": "old backup", "can_undo_now": False}
    return {**known, **unknown}


def row_text(found: dict[str, Any]) -> str:
    if found["message_id"] is None:
        return f"{found['name']}  old backup, can be restored by name"
    undo = "can be undone now" if found["can_undo_now"] else "-"
    lines = f"+{found['lines_added']} -{found['lines_removed']}"
    return f"{found['name']}  {found['operation']}  #{found['message_id']}  {lines}  {undo}"

"""Works out what a change of a file would be, without changing anything."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from catalyst_heartbeat.files import backups
from catalyst_heartbeat.files.backups import History, Store, digest_of
from catalyst_heartbeat.files.diff import Diff, unified_diff
from catalyst_heartbeat.files.replace import Place, Snapshot, Version, check_text
from catalyst_heartbeat.outcome import TaskFailed

NEW_MODE = 0o644
NEW_SCRIPT_MODE = 0o755
MOST_LINES_NAMED = 20
# Counting overlapping matches may compare the whole of old_text at each of them.
MOST_COMPARISONS = 50_000_000


@dataclass(frozen=True)
class Plan:
    """A change: what the file is, what it shall be, which changes that undoes."""

    operation: str
    path: str
    before: Snapshot | None
    version: Version
    diff: Diff
    undoes: tuple[str, ...] = ()


def plan_writing(place: Place, before: Snapshot | None, content: str) -> Plan:
    return make_plan("write_file", place, before, like(before, place, content.encode()))


def plan_editing(place: Place, before: Snapshot | None, old: str, new: str) -> Plan:
    if before is None:
        raise TaskFailed(f"{place.path} does not exist; write_file makes new files")
    text = before.content.decode()
    if "\n" in text and not re.search(r"(?<!\r)\n", text):
        old, new = (re.sub(r"(?<!\r)\n", "\r\n", part) for part in (old, new))
    check_occurs_once(text, old)
    edited = text.replace(old, new).encode()
    return make_plan("edit_file", place, before, like(before, place, edited))


def check_occurs_once(text: str, old: str) -> None:
    """Raise TaskFailed with the number and the lines unless `old` occurs exactly once."""
    most = max(2, MOST_COMPARISONS // len(old))
    lines: list[int] = []
    line, seen, start = 1, 0, text.find(old)
    while start >= 0 and len(lines) < most:
        line += text.count("\n", seen, start)
        lines.append(line)
        seen, start = start, text.find(old, start + 1)
    if not lines:
        raise TaskFailed("old_text does not occur in the file; read_file shows what it holds")
    if len(lines) > 1:
        count = f"{len(lines)} times" if start < 0 else f"more than {most} times"
        more = ", ..." if len(lines) > MOST_LINES_NAMED or start >= 0 else ""
        named = ", ".join(map(str, lines[:MOST_LINES_NAMED])) + more
        raise TaskFailed(
            f"old_text occurs {count}, beginning in lines {named}; "
            "it must occur exactly once: give more of the text around it"
        )


def plan_rollback(
    place: Place, before: Snapshot | None, store: Store, history: History, backup: str | None
) -> Plan:
    """Plan to undo the newest change not yet undone, or to go back to the backup of this name."""
    current = digest_of(before.content if before else None)
    if backup is None:
        backup = newest_change(place, history, current)
    elif not history.left(current) and before is not None:
        raise changed_by_someone(place)
    if backup in backups.flat_names(store):
        version = like(before, place, backups.read_flat(store, backup))
        return make_plan(
            "rollback_file", place, before, dataclasses.replace(version, checked=False)
        )
    entry = history.entries.get(backup)
    if entry is None:
        raise TaskFailed(
            f'there is no backup "{backup}" of {place.path}; list_backups shows which there are'
        )
    # A file that someone else removed is made anew: nothing of that can count as undone.
    on_stack = backup in history.stack and history.left(current)
    if entry.before is None and not on_stack:
        raise TaskFailed(f'backup "{backup}" holds nothing: the file did not exist before it')
    content = backups.read_content(store, backup, entry)
    mode = NEW_MODE if entry.mode is None else entry.mode
    attributes = before.attributes if before else {}
    version = Version(content, mode, entry.uid, entry.gid, False, attributes)
    undoes = history.stack[history.stack.index(backup) :] if on_stack else ()
    return make_plan("rollback_file", place, before, version, tuple(undoes))


def newest_change(place: Place, history: History, current: str | None) -> str:
    """Return the newest change not yet undone; refuse if that would undo someone else's work."""
    if not history.left(current):
        raise changed_by_someone(place)
    if not history.stack:
        raise TaskFailed(
            f"nothing is left to undo for {place.path}; "
            "list_backups shows what can be restored by its name"
        )
    newest = history.stack[-1]
    if history.entries[newest].after != current:
        raise changed_by_someone(place)
    return newest


def changed_by_someone(place: Place) -> TaskFailed:
    return TaskFailed(
        f"refused: {place.path} was changed by someone else after the change to be undone; "
        "read_file shows it as it is, write_file and edit_file can change it"
    )


def like(before: Snapshot | None, place: Place, content: bytes) -> Version:
    """Return a version with the mode, owner and attributes that the file has, or a new file's."""
    if before is None:
        return Version(content, NEW_SCRIPT_MODE if place.name.endswith(".sh") else NEW_MODE)
    owner = (before.status.st_uid, before.status.st_gid)
    return Version(content, before.mode, *owner, attributes=before.attributes)


def make_plan(
    operation: str,
    place: Place,
    before: Snapshot | None,
    version: Version,
    undoes: tuple[str, ...] = (),
) -> Plan:
    old = before.content if before else None
    if old == version.content:
        raise TaskFailed(f"refused: {place.path} has exactly this content already")
    texts = [
        None if part is None else check_text(part, place.path) for part in (old, version.content)
    ]
    return Plan(operation, place.path, before, version, unified_diff(place.path, *texts), undoes)

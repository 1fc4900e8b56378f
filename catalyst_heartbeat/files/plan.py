"""Works out what a change of a file would be, without changing anything."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from catalyst_heartbeat.configured_secrets import SHORTEST_SECRET
from catalyst_heartbeat.files import backups
from catalyst_heartbeat.files.backups import History, Store, digest_of
from catalyst_heartbeat.files.diff import Diff, unified_diff
from catalyst_heartbeat.files.occurrence import check_occurs_once
from catalyst_heartbeat.files.replace import remove_leftovers
from catalyst_heartbeat.files.snapshot import (
    Place,
    Snapshot,
    Swap,
    Version,
    check_text,
    opened_place,
    read_place,
)
from catalyst_heartbeat.outcome import Context, TaskFailed
from catalyst_heartbeat.redaction import REDACTED, redact

NEW_MODE = 0o644
NEW_SCRIPT_MODE = 0o755


@dataclass(frozen=True)
class Target:
    """A file with its open folder, its backups, and what both are now."""

    place: Place
    store: Store
    snapshot: Snapshot | None
    digest: str | None
    history: History
    secrets: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def path(self) -> str:
        return self.place.path


@dataclass(frozen=True)
class Plan:
    """A change of a file, the diff that it makes, and which earlier changes it undoes."""

    operation: str
    target: Target
    swap: Swap
    diff: Diff
    undoes: tuple[str, ...] = ()


@contextlib.contextmanager
def opened_target(path: str, context: Context, *, alone: bool = False) -> Iterator[Target]:
    """Open and read a file and its history; `alone` keeps others out meanwhile."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(opened_place(path, context.settings))
        store = stack.enter_context(backups.opened_store(path, context.settings))
        if alone:
            stack.enter_context(backups.locked(store, context))
            remove_leftovers(place)
            if store.folder is not None:
                backups.discard_orphans(store.folder)
        snapshot = read_place(place)
        digest = digest_of(snapshot.content if snapshot else None)
        history = backups.read_history(store.folder, path, digest)
        yield Target(place, store, snapshot, digest, history, context.settings.secrets)


def plan_editing(target: Target, old: str, new: str) -> Plan:
    if target.snapshot is None:
        raise TaskFailed(f"{target.path} does not exist; write_file makes new files")
    text = target.snapshot.content.decode()
    if "\n" in text and not re.search(r"(?<!\r)\n", text):
        old, new = (re.sub(r"(?<!\r)\n", "\r\n", part) for part in (old, new))
    check_occurs_once(text, old, target.secrets)
    return plan_new("edit_file", target, text.replace(old, new).encode())


def plan_new(operation: str, target: Target, content: bytes) -> Plan:
    """Plan to write new content; refuse what read_file showed for a secret, and what shows one."""
    there = target.snapshot.content if target.snapshot else b""
    old, new = there.decode(errors="replace"), content.decode()
    shown, will_show = (redact(text, target.secrets) for text in (old, new))
    hidden = lines_with_the_word(shown) - lines_with_the_word(old)
    if new.count(REDACTED) > old.count(REDACTED) or hidden & lines_with_the_word(new):
        raise TaskFailed(
            f"refused: read_file put {REDACTED} in the place of a secret; "
            "edit_file can change the rest"
        )
    for secret in hidden_values(old, shown):
        if will_show.count(secret) > shown.count(secret):
            raise TaskFailed(
                "refused: a secret that read_file hides would then be shown, since its name or "
                "what stands around it changes; change that line by hand"
            )
    return make_plan(operation, target, like(target, content))


def lines_with_the_word(text: str) -> set[str]:
    return {line for line in text.splitlines() if REDACTED in line}


def hidden_values(text: str, shown: str) -> set[str]:
    """Return what stands in a text where [redacted] is shown, line by line."""
    found = set()
    for line, hiding in zip(text.split("\n"), shown.split("\n"), strict=True):
        first, *rest = hiding.split(REDACTED) if line != hiding else [line]
        place = len(first)
        for piece in rest:
            end = line.find(piece, place) if piece else len(line)
            found.add(line[place:end])
            place = end + len(piece)
    return {value for value in found if len(value) >= SHORTEST_SECRET}


def plan_rollback(target: Target, backup: str | None) -> Plan:
    """Plan to undo the newest change not yet undone, or to go back to the backup of this name."""
    untouched = target.history.left(target.digest)
    if not untouched and (backup is None or target.snapshot):
        raise changed_by_someone(target)
    backup = backup or newest_change(target)
    if backup in backups.flat_names(target.store):
        content = backups.read_backup(target.store.root, backup)
        version = dataclasses.replace(like(target, content), checked=False)
        return make_plan("rollback_file", target, version)
    entry = target.history.entries.get(backup)
    if entry is None:
        raise TaskFailed(
            f'there is no backup "{backup}" of {target.path}; list_backups shows which there are'
        )
    stack = target.history.stack
    # A file that someone else removed is made anew: nothing of that can count as undone.
    undoes = stack[stack.index(backup) :] if untouched and backup in stack else ()
    if entry.before is None and not undoes:
        raise TaskFailed(f'backup "{backup}" holds nothing: the file did not exist before it')
    return make_plan("rollback_file", target, kept_version(target, backup), tuple(undoes))


def newest_change(target: Target) -> str:
    """Return the newest change not yet undone; refuse if that would undo someone else's work."""
    if not target.history.stack:
        raise TaskFailed(
            f"nothing is left to undo for {target.path}; "
            "list_backups shows what can be restored by its name"
        )
    newest = target.history.stack[-1]
    if target.history.entries[newest].after != target.digest:
        raise changed_by_someone(target)
    return newest


def changed_by_someone(target: Target) -> TaskFailed:
    if target.snapshot is None:
        return TaskFailed(
            f"refused: {target.path} was removed by someone else after the change to be undone; "
            "list_backups shows what can be restored by its name"
        )
    return TaskFailed(
        f"refused: {target.path} was changed by someone else after the change to be undone; "
        "read_file shows it as it is, write_file and edit_file can change it"
    )


def kept_version(target: Target, backup: str) -> Version | None:
    """Return the version that a backup holds; None where the file did not exist before it."""
    entry = target.history.entries[backup]
    content = backups.read_content(target.store.folder, backup, entry)
    if content is None:
        return None
    return Version(
        content,
        mode=NEW_MODE if entry.mode is None else entry.mode,
        owner=None if entry.uid is None or entry.gid is None else (entry.uid, entry.gid),
        attributes=target.snapshot.attributes if target.snapshot else {},
        checked=False,
    )


def like(target: Target, content: bytes) -> Version:
    """Return a version with the mode, owner and attributes that the file has, or a new file's."""
    found = target.snapshot
    if found is None:
        return Version(content, NEW_SCRIPT_MODE if target.path.endswith(".sh") else NEW_MODE)
    return Version(content, found.mode, found.owner, found.attributes)


def make_plan(
    operation: str, target: Target, version: Version | None, undoes: tuple[str, ...] = ()
) -> Plan:
    old, new = (part.content if part else None for part in (target.snapshot, version))
    if old == new:
        raise TaskFailed(f"refused: {target.path} has exactly this content already")
    before, after = (None if part is None else check_text(part, target.path) for part in (old, new))
    swap = Swap(target.snapshot, version)
    diff = unified_diff(target.path, before, after, target.secrets, swap.rights_change)
    return Plan(operation, target, swap, diff, undoes)

"""Carries out planned changes of files and finds out what became of interrupted ones."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from datetime import datetime, timezone

from catalyst_heartbeat.files import backups, changelog
from catalyst_heartbeat.files.backups import Backup, Entry, digest_of
from catalyst_heartbeat.files.diff import unified_diff
from catalyst_heartbeat.files.paths import own_file
from catalyst_heartbeat.files.plan import Plan, Target, opened_target
from catalyst_heartbeat.files.replace import Torn, swap_file
from catalyst_heartbeat.files.syntax import checked_with
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import (
    Change,
    Context,
    LimitReached,
    Outcome,
    Result,
    TaskFailed,
    end_time_limit,
)

# Between the time of the claim and that of the change: clocks are set, and messages travel.
CLOCK_SLACK_SECONDS = 60.0
VERBS = {"write_file": "replaced", "edit_file": "edited", "rollback_file": "rolled back"}


def carry_out(plan: Plan, context: Context) -> Result:
    """Back up, replace, record; on any failure the file and its history stay as they were."""
    check_approved(plan, context)
    with explained(f"back up {plan.target.path}"):
        folder = backups.make_folder(plan.target.store)
    with beneath.closing(folder):
        with explained(f"back up {plan.target.path}"):
            if plan.target.history.unmarked:
                backups.mark_applied(folder, plan.target.history.unmarked)
            name = backups.next_name(folder, context.message_id)
        backup = Backup(folder, name, new_entry(plan, context))
        try:
            swap_with_backup(plan, backup, context)
        except Torn as error:
            raise TaskFailed(f"{error}; what it held before is backup {name}") from error
        except BaseException as error:
            take_back(backup)
            if isinstance(error, (TaskFailed, LimitReached)):
                raise rolled_back(error, plan) from error
            raise
        settle(backup, context)
        result = record(backup, plan.diff.shown, context)
        return dataclasses.replace(result, text=result.text + checked_by(plan))


def swap_with_backup(plan: Plan, backup: Backup, context: Context) -> None:
    before = plan.swap.before
    with explained(f"back up {plan.target.path}"):
        backups.prepare(backup, before.content if before else None)
    with explained(f"change {plan.target.path}"):
        swap_file(plan.swap, plan.target.place, context)


def checked_by(plan: Plan) -> str:
    """Say with what the syntax was checked, if it was."""
    after = plan.swap.after
    checker = checked_with(os.path.splitext(plan.target.path)[1]) if after and after.checked else ""
    return checker and f"; checked with {checker}"


def check_approved(plan: Plan, context: Context) -> None:
    """Refuse what nobody approved, or what became something else after it was shown."""
    # Also by the folder that was opened, whatever its path leads to by now.
    opened = os.readlink(f"/proc/self/fd/{plan.target.place.folder}")
    paths = (plan.target.path, f"{opened}/{plan.target.place.name}")
    reason = next(filter(None, (own_file(path, context.settings) for path in paths)), None)
    if reason and context.approved_diff is None:
        raise TaskFailed(f"refused: a person must approve this: {reason}")
    if context.approved_diff not in (None, plan.diff.bound):
        raise TaskFailed(
            "refused: the file was changed after the request was shown, so this would do "
            "something else; send it again as a new message"
        )


def new_entry(plan: Plan, context: Context) -> Entry:
    before, after = plan.swap.before, plan.swap.after
    return Entry(
        state="prepared",
        operation=plan.operation,
        path=plan.target.path,
        message_id=context.message_id,
        requester=context.requester,
        time=datetime.now(timezone.utc).isoformat(),
        before=plan.target.digest,
        after=digest_of(after.content if after else None),
        mode=before.mode if before else None,
        uid=before.owner[0] if before else None,
        gid=before.owner[1] if before else None,
        lines_added=plan.diff.added,
        lines_removed=plan.diff.removed,
        undoes=plan.undoes,
    )


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the operating system says into a TaskFailed that names the step."""
    try:
        yield
    except OSError as error:
        raise TaskFailed(f"cannot {what}: {error.strerror or error}") from error


def take_back(backup: Backup) -> None:
    end_time_limit()
    with contextlib.suppress(OSError):
        backups.discard(backup.folder, backup.name)


def rolled_back(error: BaseException, plan: Plan) -> TaskFailed:
    message = str(error) or "the change did not finish in time"
    state = "the file is unchanged" if plan.swap.before else "no file was made"
    output = error.output if isinstance(error, TaskFailed) else ""
    return TaskFailed(f"{message}; rolled back, {state}", output)


def settle(backup: Backup, context: Context) -> None:
    """Mark the entry as applied and forget the oldest.

    The change stands, so no error of this may say that it failed: an entry that is not marked
    is recognised by the content that it left.
    """
    with contextlib.suppress(OSError, TaskFailed):
        backups.mark_applied(backup.folder, backup.name)
        backups.forget_oldest(backup, context.settings.backup_keep)


def record(backup: Backup, diff: str, context: Context) -> Result:
    """Add the changelog's entry unless it is there, and say what was done."""
    entry = backup.entry
    path = f"{context.settings.backup_dir}{entry.path}/{backup.name}"
    if entry.before is None:
        path += ".json"
    text = summary(entry)
    try:
        if not changelog.has_entry(context.settings.changelog_path, path):
            changelog.append_entry(entry, path, context)
        updated = True
    except (OSError, TaskFailed) as error:
        updated = False
        text += f"; the changelog could not be written: {error}"
    value = {
        "filepath": entry.path,
        "operation": entry.operation,
        "lines_added": entry.lines_added,
        "lines_removed": entry.lines_removed,
        "sha256_before": entry.before,
        "sha256_after": entry.after,
        "backup": backup.name,
    }
    return Result(text, value, Change(diff, path, updated))


def summary(entry: Entry) -> str:
    """Say in one sentence what a change did."""
    verb = VERBS.get(entry.operation, entry.operation)
    if entry.before is None:
        verb = "created" if entry.operation == "write_file" else "restored"
    if entry.after is None:
        verb = "removed"
    added = f"{entry.lines_added} line{'' if entry.lines_added == 1 else 's'}"
    return f"{verb} {entry.path}: {added} added, {entry.lines_removed} removed"


def recover(path: str, context: Context, claimed_at: float) -> Outcome | None:
    """Find out whether the interrupted change of a message happened; None where nobody can tell.

    `claimed_at` is in seconds since 1970: an older entry is that of another message, whose number
    was given a second time.
    """
    try:
        with opened_target(path, context, alone=True) as target:
            # What is said to have happened must not be undone by a power cut.
            os.fsync(target.place.folder)
            return recover_at(target, context, claimed_at)
    except (OSError, TaskFailed, ValueError):
        return None


def recover_at(target: Target, context: Context, claimed_at: float) -> Outcome | None:
    entries = target.history.entries
    numbered = [n for n, e in entries.items() if e.message_id == context.message_id]
    earliest = claimed_at - CLOCK_SLACK_SECONDS
    mine = [name for name in numbered if backups.moment_of(name).timestamp() >= earliest]
    if numbered and not mine:
        return None  # a number given a second time, or a clock that jumped
    if not mine or target.store.folder is None:
        return Outcome("failed", error="interrupted before anything was changed")
    backup = Backup(target.store.folder, mine[-1], entries[mine[-1]])
    if backup.entry.state == "applied":
        settle(backup, context)
        result = record(backup, diff_of(target, backup), context)
        return Outcome("success", result.text, "", result.value, result.change)
    if backup.entry.before == target.digest:
        backups.discard(backup.folder, backup.name)
        return Outcome("failed", error="interrupted before the file was replaced; it is unchanged")
    return None


def diff_of(target: Target, backup: Backup) -> str:
    """Return what a change did as far as it can be shown still."""
    if target.digest != backup.entry.after:
        return ""
    try:
        before = backups.read_content(backup.folder, backup.name, backup.entry)
    except TaskFailed:
        return ""
    after = target.snapshot.content if target.snapshot else None
    old, new = (None if part is None else part.decode() for part in (before, after))
    return unified_diff(target.path, old, new, target.secrets).shown

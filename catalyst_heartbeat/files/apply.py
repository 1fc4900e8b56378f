"""Carries out planned changes of files and finds out what became of interrupted ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timezone

from catalyst_heartbeat.files import backups, changelog
from catalyst_heartbeat.files.backups import Entry, History, Store, digest_of
from catalyst_heartbeat.files.diff import unified_diff
from catalyst_heartbeat.files.paths import own_file
from catalyst_heartbeat.files.plan import Plan
from catalyst_heartbeat.files.replace import (
    Place,
    Torn,
    opened_place,
    read_place,
    remove_leftovers,
    replace,
)
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


def carry_out(plan: Plan, place: Place, store: Store, history: History, context: Context) -> Result:
    """Back up, replace, record; on any failure the file and its history stay as they were."""
    check_approved(plan, context)
    entry = new_entry(plan, context)
    with explained(f"back up {plan.path}"):
        folder = backups.make_folder(store)
    with beneath.closing(folder):
        if history.unmarked:
            with explained(f"back up {plan.path}"):
                backups.mark_applied(folder, history.unmarked)
        name = backups.next_name(folder, context.message_id)
        try:
            with explained(f"back up {plan.path}"):
                content = plan.before.content if plan.before else None
                backups.prepare(folder, name, entry, content)
            with explained(f"change {plan.path}"):
                replace(place, plan.before, plan.version, context)
        except Torn as error:
            raise TaskFailed(f"{error}; what it held before is backup {name}") from error
        except BaseException as error:
            take_back(folder, name)
            if isinstance(error, (TaskFailed, LimitReached)):
                raise rolled_back(error, plan) from error
            raise
        settle(Store(store.root, folder, plan.path), name, entry, context)
    return record(entry, name, plan.diff.shown, context)


def check_approved(plan: Plan, context: Context) -> None:
    """Refuse what came to need an approval after the request was let through."""
    reason = own_file(plan.path, plan.before is not None, context.settings)
    if reason and not context.approved:
        raise TaskFailed(f"refused: a person must approve this: {reason}")


def new_entry(plan: Plan, context: Context) -> Entry:
    before = plan.before
    return Entry(
        state="prepared",
        operation=plan.operation,
        path=plan.path,
        message_id=context.message_id,
        requester=context.requester,
        time=datetime.now(timezone.utc).isoformat(),
        before=digest_of(before.content if before else None),
        after=digest_of(plan.version.content),
        mode=before.mode if before else None,
        uid=before.status.st_uid if before else None,
        gid=before.status.st_gid if before else None,
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


def take_back(folder: int, name: str) -> None:
    end_time_limit()
    with contextlib.suppress(OSError):
        backups.discard(folder, name)


def rolled_back(error: BaseException, plan: Plan) -> TaskFailed:
    message = str(error) or "the change did not finish in time"
    state = "the file is unchanged" if plan.before else "no file was made"
    output = error.output if isinstance(error, TaskFailed) else ""
    return TaskFailed(f"{message}; rolled back, {state}", output)


def settle(store: Store, name: str, entry: Entry, context: Context) -> None:
    """Mark the entry as applied and forget the oldest.

    The change stands, so no error of this may say that it failed: an entry that is not marked
    is recognised by the content that it left.
    """
    with contextlib.suppress(OSError, TaskFailed):
        if store.folder is not None:
            backups.mark_applied(store.folder, name)
        history = backups.read_history(store, entry.after)
        backups.forget_oldest(store, history, context.settings.backup_keep)


def record(entry: Entry, name: str, diff: str, context: Context) -> Result:
    """Add the changelog's entry unless it is there, and say what was done."""
    place = f"{context.settings.backup_dir}{entry.path}/{name}"
    backup = place if entry.before else f"{place}.json"
    text = summary(entry)
    try:
        if not changelog.has_entry(context.settings.changelog_path, backup):
            changelog.append_entry(entry, backup, context)
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
        "backup": name,
    }
    return Result(text, value, Change(diff, backup, updated))


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
        with (
            backups.opened_store(path, context.settings) as store,
            opened_place(path, context.settings) as place,
        ):
            backups.lock(store, context)
            remove_leftovers(place, context.message_id)
            return recover_at(place, store, context, claimed_at)
    except (OSError, TaskFailed, ValueError):
        return None


def recover_at(place: Place, store: Store, context: Context, claimed_at: float) -> Outcome | None:
    found = read_place(place)
    current = found.content if found else None
    history = backups.read_history(store, digest_of(current))
    numbered = [n for n, e in history.entries.items() if e.message_id == context.message_id]
    earliest = claimed_at - CLOCK_SLACK_SECONDS
    mine = [name for name in numbered if backups.moment_of(name).timestamp() >= earliest]
    if numbered and not mine:
        return None  # a number given a second time, or a clock that jumped
    if not mine or store.folder is None:
        return Outcome("failed", error="interrupted before anything was changed")
    name, entry = mine[-1], history.entries[mine[-1]]
    if entry.state == "applied":
        settle(store, name, entry, context)
        result = record(entry, name, diff_of(store, name, entry, current), context)
        return Outcome("success", result.text, "", result.value, result.change)
    if entry.before == digest_of(current):
        backups.discard(store.folder, name)
        return Outcome("failed", error="interrupted before the file was replaced; it is unchanged")
    return None


def diff_of(store: Store, name: str, entry: Entry, current: bytes | None) -> str:
    """Return what a change did as far as it can be shown still."""
    try:
        before = backups.read_content(store, name, entry)
    except TaskFailed:
        return ""
    if digest_of(current) != entry.after:
        return ""
    texts = [None if part is None else part.decode() for part in (before, current)]
    return unified_diff(entry.path, *texts).shown

"""Swaps one file wholly or not at all: temporary file, syntax, exchange by descriptor, proof."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Iterator

from catalyst_heartbeat.files.snapshot import (
    Place,
    Swap,
    Version,
    opened_place,
    read_place,
    same,
)
from catalyst_heartbeat.files.syntax import check_syntax
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import Context, TaskFailed, end_time_limit
from catalyst_heartbeat.settings import Settings

LEFTOVER = re.compile(r"\.catalyst-[0-9]+-[0-9a-f]{8}(\.old)?\.tmp")
CHANGED_MEANWHILE = "the file was changed by someone else meanwhile"


class Torn(TaskFailed):
    """The change could not be undone, so what the backup holds must be kept."""


def swap_file(swap: Swap, place: Place, context: Context) -> None:
    """Make the file what the swap says; raise with the file as it was.

    The time limit ends at the point of no return. Raises Torn where others interfered so that
    the file could not be put back.
    """
    temporary = dataclasses.replace(place, name=beneath.temporary_name(context.message_id))
    if look(temporary):
        raise TaskFailed(f"refused: {temporary.name} exists already beside {place.path}")
    with contextlib.ExitStack() as stack:
        try:
            new = stack.enter_context(written(temporary, swap.after, context))
            if not same(read_place(place), swap.before):
                raise TaskFailed(CHANGED_MEANWHILE)
            context.remaining()
            end_time_limit()
        except BaseException:
            end_time_limit()
            remove(temporary)
            raise
        rename(swap, place, temporary, new, context.settings)


@contextlib.contextmanager
def written(
    temporary: Place, version: Version | None, context: Context
) -> Iterator[os.stat_result | None]:
    """Write the new version beside the file, durably, and check its syntax.

    It is locked until the end of the block: an unlocked one is what a dead change left behind.
    """
    if version is None:
        yield None
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    opened = beneath.open_beneath(temporary.folder, temporary.name, flags, 0o600)
    with beneath.closing(opened) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if version.owner and version.owner != (status.st_uid, status.st_gid):
            os.fchown(descriptor, *version.owner)
        os.fchmod(descriptor, version.mode)
        for name, value in version.attributes.items():
            os.setxattr(descriptor, name, value)
        beneath.write_all(descriptor, version.content)
        if version.checked:
            check_syntax(descriptor, temporary.path, context.deadline)
        yield status


def rename(
    swap: Swap, place: Place, temporary: Place, new: os.stat_result | None, settings: Settings
) -> None:
    """Put the new version in place, prove it, then drop the old one; or undo it and raise."""
    try:
        displaced = put(swap, place, temporary)
    except OSError as error:
        if drop(temporary, new):
            os.fsync(place.folder)
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            raise TaskFailed(CHANGED_MEANWHILE) from error
        raise
    try:
        if displaced and not same(read_place(temporary), swap.before):
            raise TaskFailed(CHANGED_MEANWHILE)
        os.fsync(place.folder)
        prove(swap, place, new, settings)
    except BaseException:
        undo(swap, place, temporary, new)
        raise
    if displaced:
        remove(temporary)


def put(swap: Swap, place: Place, temporary: Place, *, back: bool = False) -> bool:
    """Rename, or take it back; return whether the temporary name now holds what was displaced."""
    names = (temporary.name, place.name)
    if swap.before and swap.after:
        return beneath.exchange(place.folder, *names)
    beneath.move(place.folder, *(names if bool(swap.after) != back else names[::-1]))
    return swap.after is None


def prove(swap: Swap, place: Place, new: os.stat_result | None, settings: Settings) -> None:
    """Read the file again by its whole path: the same folder, the same inode, the same bytes."""
    with opened_place(place.path, settings) as again:
        if not os.path.samestat(os.fstat(again.folder), os.fstat(place.folder)):
            raise TaskFailed("the folder of the file was replaced by another one meanwhile")
        found = read_place(again)
    if found is None or new is None or swap.after is None:
        proven = found is None and new is None
    else:
        proven = os.path.samestat(found.status, new) and found.content == swap.after.content
    if not proven:
        raise TaskFailed(CHANGED_MEANWHILE)


def undo(swap: Swap, place: Place, temporary: Place, new: os.stat_result | None) -> None:
    """Put back what was displaced. What somebody else put there since is left to stand: Torn."""
    with contextlib.suppress(OSError):
        put(swap, place, temporary, back=True)
        if new is None or drop(temporary, new):
            os.fsync(place.folder)
            return
        put(swap, place, temporary)
    with contextlib.suppress(TaskFailed):
        if swap.before and same(read_place(temporary), swap.before):
            remove(temporary)
    raise Torn(f"{place.path} was changed by someone else in the same instant and was left so")


def look(place: Place) -> os.stat_result | None:
    try:
        return os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def drop(temporary: Place, own: os.stat_result | None) -> bool:
    """Unlink a name if it is our file; whatever else has that name is not ours to remove."""
    found = look(temporary)
    if found is None or own is None or not os.path.samestat(found, own):
        return False
    os.unlink(temporary.name, dir_fd=temporary.folder)
    return True


def remove(temporary: Place) -> None:
    """Unlink a temporary file; one that stays behind does not undo what was changed."""
    with contextlib.suppress(OSError):
        os.unlink(temporary.name, dir_fd=temporary.folder)
        os.fsync(temporary.folder)


def remove_leftovers(place: Place) -> None:
    """Remove the temporary files that dead changes left beside a file."""
    for name in os.listdir(place.folder):
        if LEFTOVER.fullmatch(name):
            with contextlib.suppress(OSError):
                remove_unlocked(dataclasses.replace(place, name=name))


def remove_unlocked(leftover: Place) -> None:
    flags = os.O_RDONLY
    with beneath.closing(beneath.open_beneath(leftover.folder, leftover.name, flags)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if drop(leftover, os.fstat(descriptor)):
            os.fsync(leftover.folder)

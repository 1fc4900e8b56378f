"""Replaces one file wholly or not at all: temporary file, syntax, exchange by descriptor, proof."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from catalyst_heartbeat.files.backups import MOST_BYTES
from catalyst_heartbeat.files.paths import root_of
from catalyst_heartbeat.files.syntax import check_syntax
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import Context, TaskFailed, end_time_limit
from catalyst_heartbeat.settings import Settings

CHANGED_MEANWHILE = "the file was changed by someone else meanwhile"


class Torn(TaskFailed):
    """The change could not be undone, so what the backup holds must be kept."""


@dataclass(frozen=True)
class Snapshot:
    """A file as it was read: its bytes, its status and its extended attributes, such as ACLs."""

    content: bytes
    status: os.stat_result
    attributes: Mapping[str, bytes]

    @property
    def mode(self) -> int:
        return stat.S_IMODE(self.status.st_mode)


@dataclass(frozen=True)
class Place:
    """Where a file is or will be: its path, its open folder and its name there."""

    path: str
    folder: int
    name: str


@dataclass(frozen=True)
class Version:
    """What a file shall be; no content means that it shall not exist."""

    content: bytes | None
    mode: int
    uid: int | None = None
    gid: int | None = None
    # What is restored comes back as it was, right or wrong.
    checked: bool = True
    attributes: Mapping[str, bytes] = field(default_factory=dict)


@contextlib.contextmanager
def opened_place(path: str, settings: Settings) -> Iterator[Place]:
    """Open the folder of a checked path, from its allowed root down, without following links."""
    with beneath.closing(open_parent(path, settings)) as folder:
        yield Place(path, folder, os.path.basename(path))


def open_parent(path: str, settings: Settings) -> int:
    root = root_of(path, settings)
    if root is None:
        allowed = ", ".join(settings.allowed_paths)
        raise TaskFailed(f"refused: {path} does not lie beneath one of: {allowed}")
    parent = os.path.dirname(path)
    try:
        if parent == root:
            return beneath.open_folder(root)
        return beneath.open_path(root, parent[len(root) + 1 :], os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise beneath.cannot_open(error, parent) from error


def read_place(place: Place) -> Snapshot | None:
    """Read the file; None where there is none. Refuses what is not plain UTF-8 text."""
    try:
        descriptor = beneath.open_file(place.folder, place.name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise beneath.cannot_open(error, place.path) from error
    with beneath.closing(descriptor):
        plain = beneath.read_plain(descriptor, place.path, MOST_BYTES)
        snapshot = Snapshot(*plain, read_attributes(descriptor))
    check_text(snapshot.content, place.path)
    return snapshot


def read_attributes(descriptor: int) -> dict[str, bytes]:
    """Read the extended attributes of an open file; {} where the file system has none."""
    try:
        return {name: os.getxattr(descriptor, name) for name in os.listxattr(descriptor)}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def check_text(content: bytes, what: str) -> str:
    """Return the bytes as text; raise TaskFailed for what cannot be a text file of ours."""
    if len(content) > MOST_BYTES:
        raise TaskFailed(f"refused: {what} would be larger than {MOST_BYTES} bytes")
    if b"\0" in content:
        raise TaskFailed(f"refused: {what} has NUL bytes, so it is not a text file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = f"refused: {what} is not UTF-8, see byte {error.start}"
        raise TaskFailed(message) from error


def replace(place: Place, before: Snapshot | None, version: Version, context: Context) -> None:
    """Make a file that was read as `before` into this version; raise with the file as it was.

    The time limit ends at the point of no return. Raises Torn where others interfered so that
    the file could not be put back.
    """
    temporary = beneath.temporary_name(context.message_id)
    if look(place.folder, temporary):
        raise TaskFailed(f"refused: {temporary} exists already beside {place.path}")
    try:
        if version.content is not None:
            write_temporary(place, temporary, version, context)
        if not same(read_place(place), before):
            raise TaskFailed(CHANGED_MEANWHILE)
        context.remaining()
        end_time_limit()
    except BaseException:
        end_time_limit()
        remove(place.folder, temporary)
        raise
    swap(place, temporary, before, version, context.settings)


def write_temporary(place: Place, temporary: str, version: Version, context: Context) -> None:
    """Write the new version beside the file, durably, and check its syntax."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with beneath.closing(beneath.open_file(place.folder, temporary, flags, 0o600)) as descriptor:
        own = os.fstat(descriptor)
        owner = (version.uid, version.gid)
        if None not in owner and owner != (own.st_uid, own.st_gid):
            os.fchown(descriptor, version.uid or 0, version.gid or 0)
        os.fchmod(descriptor, version.mode)
        for name, value in version.attributes.items():
            os.setxattr(descriptor, name, value)
        beneath.write_all(descriptor, version.content or b"")
        if version.checked:
            check_syntax(descriptor, place.path, context.deadline)


def swap(
    place: Place, temporary: str, before: Snapshot | None, version: Version, settings: Settings
) -> None:
    """Put the new version in place, prove it, then drop the old one; or undo it and raise."""
    new = None if version.content is None else look(place.folder, temporary)
    try:
        put(place, temporary, before, new)
    except OSError as error:
        drop(place.folder, temporary, new)
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            raise TaskFailed(CHANGED_MEANWHILE) from error
        raise
    try:
        if before and not same(read_place(Place(place.path, place.folder, temporary)), before):
            raise TaskFailed(CHANGED_MEANWHILE)
        os.fsync(place.folder)
        prove(place, new, version, settings)
    except BaseException:
        undo(place, temporary, before, new)
        raise
    if before:
        remove(place.folder, temporary)


def put(place: Place, temporary: str, before: Snapshot | None, new: os.stat_result | None) -> None:
    """Rename; afterwards the temporary name holds what was displaced, if anything was."""
    if new is None:
        beneath.move(place.folder, place.name, temporary)
    elif before is None:
        beneath.move(place.folder, temporary, place.name)
    else:
        beneath.exchange(place.folder, temporary, place.name)


def prove(place: Place, new: os.stat_result | None, version: Version, settings: Settings) -> None:
    """Read the file again by its whole path: the same folder, the same inode, the same bytes."""
    with opened_place(place.path, settings) as again:
        if not os.path.samestat(os.fstat(again.folder), os.fstat(place.folder)):
            raise TaskFailed("the folder of the file was replaced by another one meanwhile")
        found = read_place(again)
    if found is None or new is None:
        proven = found is None and new is None
    else:
        proven = os.path.samestat(found.status, new) and found.content == version.content
    if not proven:
        raise TaskFailed(CHANGED_MEANWHILE)


def undo(place: Place, temporary: str, before: Snapshot | None, new: os.stat_result | None) -> None:
    """Put back what was displaced. What somebody else put there since is left to stand: Torn."""
    displaced = Place(place.path, place.folder, temporary)
    with contextlib.suppress(OSError):
        if new is None:
            beneath.move(place.folder, temporary, place.name)
            return
        if before is None:
            beneath.move(place.folder, place.name, temporary)
        else:
            beneath.exchange(place.folder, temporary, place.name)
        if drop(place.folder, temporary, new):
            os.fsync(place.folder)
            return
        put(place, temporary, before, new)
    with contextlib.suppress(TaskFailed):
        if before and same(read_place(displaced), before):
            remove(place.folder, temporary)
    raise Torn(f"{place.path} was changed by someone else in the same instant and was left so")


def same(one: Snapshot | None, other: Snapshot | None) -> bool:
    """Whether it is the same inode with the same bytes, mode and owner."""
    if one is None or other is None:
        return one is other
    return os.path.samestat(one.status, other.status) and marks(one) == marks(other)


def marks(snapshot: Snapshot) -> tuple[bytes, int, int, int]:
    return snapshot.content, snapshot.mode, snapshot.status.st_uid, snapshot.status.st_gid


def look(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def drop(folder: int, name: str, own: os.stat_result | None) -> bool:
    """Unlink a name if it is our file; whatever else has that name is not ours to remove."""
    found = look(folder, name)
    if found is None or own is None or not os.path.samestat(found, own):
        return False
    os.unlink(name, dir_fd=folder)
    return True


def remove(folder: int, name: str) -> None:
    """Unlink a temporary file; one that stays behind does not undo what was changed."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)


def remove_leftovers(place: Place, message_id: int) -> None:
    """Remove the temporary files of a message whose change was interrupted."""
    leftover = re.compile(rf"\.catalyst-{message_id}-[0-9a-f]{{8}}(\.old)?\.tmp")
    for name in os.listdir(place.folder):
        if leftover.fullmatch(name):
            remove(place.folder, name)

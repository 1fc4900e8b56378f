"""Reads one file as it is, and names what may become of it: made, replaced or removed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from catalyst_heartbeat.files.paths import root_of
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.settings import Settings

MOST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where a file is or will be: its path, its open folder and its name there."""

    path: str
    folder: int
    name: str


@dataclass(frozen=True)
class Snapshot:
    """A file as it was read: its bytes, its status and its extended attributes, such as ACLs."""

    content: bytes
    status: os.stat_result
    attributes: Mapping[str, bytes]

    @property
    def mode(self) -> int:
        return stat.S_IMODE(self.status.st_mode)

    @property
    def owner(self) -> tuple[int, int]:
        return self.status.st_uid, self.status.st_gid


@dataclass(frozen=True)
class Version:
    """What a file shall be; without an owner it is the program's user's."""

    content: bytes
    mode: int
    owner: tuple[int, int] | None = None
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    # What is restored comes back as it was, right or wrong.
    checked: bool = True


@dataclass(frozen=True)
class Swap:
    """What a file was when it was read, and what it shall be; None is no file, and never both."""

    before: Snapshot | None
    after: Version | None

    @property
    def rights_change(self) -> list[str]:
        """Return the old and the new mode and owner where they differ, as a diff's head says it."""
        if not self.before or not self.after:
            return []
        owner = self.after.owner or (os.geteuid(), os.getegid())
        rights = ((self.before.mode, *self.before.owner), (self.after.mode, *owner))
        old, new = map("mode {:04o}, owner {}:{}".format, *zip(*rights, strict=True))
        return [f"old {old}", f"new {new}"] if old != new else []


@contextlib.contextmanager
def opened_place(path: str, settings: Settings) -> Iterator[Place]:
    """Open the folder of a checked path, from the top down, without following links."""
    if root_of(path, settings) is None:
        allowed = ", ".join(settings.allowed_paths)
        raise TaskFailed(f"refused: {path} does not lie beneath one of: {allowed}")
    parent, name = os.path.split(path)
    try:
        folder = beneath.open_folder(parent)
    except OSError as error:
        raise beneath.cannot_open(error, parent) from error
    with beneath.closing(folder):
        yield Place(path, folder, name)


def read_place(place: Place) -> Snapshot | None:
    """Read the file; None where there is none. Refuses what is not plain UTF-8 text."""
    try:
        descriptor = beneath.open_beneath(place.folder, place.name, os.O_RDONLY)
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


def same(one: Snapshot | None, other: Snapshot | None) -> bool:
    """Whether it is the same inode with the same bytes, mode and owner."""
    if one is None or other is None:
        return one is other
    return os.path.samestat(one.status, other.status) and marks(one) == marks(other)


def marks(snapshot: Snapshot) -> tuple[bytes, int, tuple[int, int]]:
    return snapshot.content, snapshot.mode, snapshot.owner

"""The backups of a file: its history as a stack, what can be undone, what may be forgotten."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalyst_heartbeat.files.snapshot import MOST_BYTES
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import Context, TaskFailed
from catalyst_heartbeat.settings import Settings

MOST_ENTRY_BYTES = 1024 * 1024
LOCK_NAME = ".lock"
LOCK_RETRY_SECONDS = 0.05
TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
ENTRY_NAME = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-[0-9]+")
# Of the same length, so that a prepared entry becomes an applied one without a new block: a disk
# that is full by then cannot lose what was changed.
PREPARED = b'{"state":"prepared"'
APPLIED = b'{"state":"applied" '

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Entry(BaseModel):
    """What the JSON beside a backup says. `before` and `after` are SHA-256; None is "no file"."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    state: Literal["prepared", "applied"]
    operation: str
    path: str
    message_id: int
    requester: str
    time: str
    before: Digest | None
    after: Digest | None
    mode: Annotated[int, Field(ge=0, le=0o1777)] | None
    uid: int | None
    gid: int | None
    lines_added: int
    lines_removed: int
    undoes: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """BACKUP_DIR, opened, and in it the folder of one file; None before the file's first change."""

    root: int
    folder: int | None
    path: str


@dataclass(frozen=True)
class Backup:
    """One entry of a file's history: the open folder, its name there, what its JSON says."""

    folder: int
    name: str
    entry: Entry


@dataclass(frozen=True)
class History:
    """The entries of a file, oldest first, as they stand for its current content."""

    entries: dict[str, Entry]
    # The newest entry, when a crash kept it from being marked as applied.
    unmarked: str | None = None

    @property
    def stack(self) -> list[str]:
        """Return the changes not yet undone, newest last; a rollback is not one of them."""
        applied = {name: entry for name, entry in self.entries.items() if entry.state == "applied"}
        undone = {name for entry in applied.values() for name in entry.undoes}
        return [n for n, entry in applied.items() if not entry.undoes and n not in undone]

    @property
    def newest(self) -> Entry | None:
        """Return the newest applied entry."""
        newest_first = reversed(self.entries.values())
        return next((entry for entry in newest_first if entry.state == "applied"), None)

    def left(self, digest: str | None) -> bool:
        """Whether this content is what the newest change left, so nobody else changed it since."""
        return self.newest is None or self.newest.after == digest


def digest_of(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def opened_store(path: str, settings: Settings) -> Iterator[Store]:
    """Open the backups of a file; raise TaskFailed where BACKUP_DIR is missing."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(beneath.closing(open_backup_dir(settings.backup_dir)))
        try:
            found = beneath.open_beneath(root, path[1:], os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            folder = None
        except OSError as error:
            raise beneath.cannot_open(error, f"{settings.backup_dir}{path}") from error
        else:
            folder = stack.enter_context(beneath.closing(found))
        yield Store(root, folder, path)


def open_backup_dir(path: str) -> int:
    try:
        return beneath.open_folder(path)
    except FileNotFoundError as error:
        message = f"the backup folder is missing; make it: install -d -m 700 {path}"
        raise TaskFailed(message) from error
    except OSError as error:
        raise beneath.cannot_open(error, path) from error


@contextlib.contextmanager
def locked(store: Store, context: Context) -> Iterator[None]:
    """Let one change go on at a time, also beside other agents.

    The lock is on a folder that only the program's user can open.
    """
    where = f"{context.settings.backup_dir}/{LOCK_NAME}"
    try:
        descriptor = open_or_make(store.root, LOCK_NAME)
    except OSError as error:
        raise TaskFailed(f"cannot lock {where}: {error.strerror}") from error
    with beneath.closing(descriptor):
        check_lock(descriptor, where)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(min(LOCK_RETRY_SECONDS, context.remaining()))
        yield


def check_lock(descriptor: int, where: str) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise TaskFailed(f"refused: others can open {where}; remove it")


def read_history(folder: int | None, path: str, current: str | None) -> History:
    """Read the entries of a file whose content has this digest now."""
    entries: dict[str, Entry] = {}
    unmarked: str | None = None
    for name in entry_names(folder):
        entry = read_entry(folder, name)
        if entry is None or entry.path != path:
            continue
        entries[name] = entry
        if entry.state == "applied":
            unmarked = None
        elif entry.after == current != entry.before:
            unmarked = name
    if unmarked:
        entries[unmarked] = entries[unmarked].model_copy(update={"state": "applied"})
    return History(entries, unmarked)


def entry_names(folder: int | None) -> list[str]:
    """List the names of entries, oldest first, whether their JSON, content or both are there."""
    found = [] if folder is None else os.listdir(folder)
    names = {name.removesuffix(".new").removesuffix(".json") for name in found}
    return sorted(name for name in names if ENTRY_NAME.fullmatch(name))


def read_entry(folder: int | None, name: str) -> Entry | None:
    """Read the JSON of an entry; None where it is missing, damaged or a link."""
    try:
        return Entry.model_validate_json(read_from(folder, f"{name}.json", MOST_ENTRY_BYTES))
    except (OSError, TaskFailed, ValidationError):
        return None


def read_content(folder: int | None, name: str, entry: Entry) -> bytes | None:
    """Read what the file held before a change, None for no file; refuse what is not that."""
    if entry.before is None:
        return None
    content = read_backup(folder, name)
    if digest_of(content) != entry.before:
        raise TaskFailed(f"refused: backup {name} is damaged, it is not what was backed up")
    return content


def read_backup(folder: int | None, name: str) -> bytes:
    try:
        return read_from(folder, name, MOST_BYTES)
    except OSError as error:
        raise beneath.cannot_open(error, f"backup {name}") from error


def read_from(folder: int | None, name: str, most: int) -> bytes:
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    with beneath.closing(beneath.open_beneath(folder, name, os.O_RDONLY)) as descriptor:
        return beneath.read_plain(descriptor, name, most)[0]


def flat_names(store: Store) -> list[str]:
    """List the backups of an earlier program: <file name>.<YYYYMMDD_HHMMSS>.bak, oldest first."""
    name = re.escape(os.path.basename(store.path))
    flat = re.compile(rf"{name}\.[0-9]{{8}}_[0-9]{{6}}\.bak")
    return sorted(found for found in os.listdir(store.root) if flat.fullmatch(found))


def make_folder(store: Store) -> int:
    """Open the folder of the file's backups, making what is missing, readable by nobody else."""
    here = os.dup(store.root)
    for name in store.path[1:].split("/"):
        with beneath.closing(here):
            below = open_or_make(here, name)
        here = below
    return here


def open_or_make(folder: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
        os.fsync(folder)
    return beneath.open_beneath(folder, name, os.O_RDONLY | os.O_DIRECTORY)


def next_name(folder: int, message_id: int) -> str:
    """Name a new entry after the time; later than every other one, even if the clock went back."""
    moment = datetime.now(timezone.utc)
    for name in entry_names(folder)[-1:]:
        moment = max(moment, moment_of(name) + timedelta(microseconds=1))
    return f"{moment.strftime(TIME_FORMAT)}-{message_id}"


def moment_of(name: str) -> datetime:
    """Return when an entry was made, by its name; raise ValueError for a date that is none."""
    return datetime.strptime(name.split("-")[0], TIME_FORMAT).replace(tzinfo=timezone.utc)


def prepare(backup: Backup, content: bytes | None) -> None:
    """Store a backup and its JSON durably."""
    if content is not None:
        create(backup.folder, backup.name, content)
    # Under its name it is there wholly or not at all: what has no JSON was never begun.
    entry = f"{backup.name}.json"
    create(backup.folder, f"{entry}.new", backup.entry.model_dump_json().encode() + b"\n")
    os.rename(f"{entry}.new", entry, src_dir_fd=backup.folder, dst_dir_fd=backup.folder)
    os.fsync(backup.folder)


def create(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with beneath.closing(beneath.open_beneath(folder, name, flags, 0o600)) as descriptor:
        beneath.write_all(descriptor, content)


def mark_applied(folder: int, name: str) -> None:
    """Turn a prepared entry into an applied one."""
    with beneath.closing(beneath.open_beneath(folder, f"{name}.json", os.O_RDWR)) as descriptor:
        beneath.check_plain(descriptor, name)
        if os.pread(descriptor, len(PREPARED), 0) == PREPARED:
            os.pwrite(descriptor, APPLIED, 0)
            os.fsync(descriptor)


def discard(folder: int, name: str) -> None:
    """Remove an entry; the content first, so that no content is left that nothing tells about."""
    for part in (name, f"{name}.json.new", f"{name}.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
    os.fsync(folder)


def discard_orphans(folder: int) -> None:
    """Discard what a dead change left here before its JSON was there."""
    complete = set(os.listdir(folder))
    for name in entry_names(folder):
        if f"{name}.json" not in complete:
            discard(folder, name)


def forget_oldest(backup: Backup, keep: int) -> None:
    """Discard what is more than `keep` entries, but never the newest, nor the only way back."""
    history = read_history(backup.folder, backup.entry.path, backup.entry.after)
    names = entry_names(backup.folder)
    kept = {*names[-1:], *history.stack[-1:]}
    candidates = [name for name in names if name not in kept]
    for name in candidates[: max(0, len(names) - keep)]:
        discard(backup.folder, name)

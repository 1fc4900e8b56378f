"""The changelog: one entry appended for every change, which no text in it can imitate."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from catalyst_heartbeat.files.backups import Entry
from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.outcome import Context, TaskFailed
from catalyst_heartbeat.text import one_line

MOST_TEXT_CHARACTERS = 500
# How much of the changelog's end is searched for an entry that an interrupted change may have made.
SEARCHED_BYTES = 1024 * 1024


def append_entry(entry: Entry, backup: str, context: Context) -> None:
    """Append what was done to which file; raise OSError or TaskFailed where that is impossible."""
    requester, reason = (
        (one_line(text) or "-")[:MOST_TEXT_CHARACTERS]
        for text in (context.requester, context.reason)
    )
    lines = (
        f"## {entry.operation}: {entry.path}",
        f"- When: {datetime.now(timezone.utc).isoformat(timespec='seconds')}",
        f"- Message: #{context.message_id} from {requester}",
        f"- Reason: {reason}",
        f"- Lines: {entry.lines_added} added, {entry.lines_removed} removed",
        backup_line(backup),
    )
    place = context.settings.changelog_path
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    with beneath.closing(open_changelog(place, flags)) as changelog:
        size = beneath.check_plain(changelog, place).st_size
        begun = size > 0 and os.pread(changelog, 1, size - 1) != b"\n"
        if size == 0:
            with beneath.closing(beneath.open_folder(os.path.dirname(place) or "/")) as folder:
                os.fsync(folder)
        write_whole(changelog, "\n" * begun + "\n" * (size > 0) + "\n".join(lines) + "\n")


def open_changelog(place: str, flags: int) -> int:
    folder, name = os.path.split(place)
    try:
        return beneath.open_path(folder, name, flags, 0o644)
    except OSError as error:
        raise beneath.cannot_open(error, place) from error


def write_whole(changelog: int, text: str) -> None:
    """Append in one write; take back what a full disk let through only in part."""
    content = text.encode()
    written = os.write(changelog, content)
    if written < len(content):
        os.ftruncate(changelog, os.fstat(changelog).st_size - written)
        raise TaskFailed("no space left on device")
    os.fsync(changelog)


def has_entry(place: str, backup: str) -> bool:
    """Whether an entry with this backup stands near the end of the changelog."""
    try:
        with beneath.closing(open_changelog(place, os.O_RDONLY)) as changelog:
            size = beneath.check_plain(changelog, place).st_size
            text = os.pread(changelog, SEARCHED_BYTES, max(0, size - SEARCHED_BYTES))
    except (OSError, TaskFailed):
        return False
    return backup_line(backup).encode() in text.split(b"\n")


def backup_line(backup: str) -> str:
    return f"- Backup: {one_line(backup)}"

"""Storing a final report: in the table, or on disk until the table takes it.

A report that the server refuses for what it holds is kept whole in `refused`, and a short one is
stored in its place at once. What cannot be stored at all, or not now, waits in `outbox`, and is
tried again in each cycle for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from pathlib import Path

import psycopg2

from catalyst_heartbeat.host import beneath
from catalyst_heartbeat.queue import claims, endings
from catalyst_heartbeat.queue.claims import Claim, Terms
from catalyst_heartbeat.queue.connection import (
    Database,
    DatabaseLost,
    first_line,
    is_fault_of_a_row,
)
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.report import SUBJECT_LIMIT, Report, shortened
from catalyst_heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

# What reading a file that is no report may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# For how long a file is there that nobody waits for: one that a dead process has not finished is no
# longer being written by then, and what was kept for a person was read.
KEPT_SECONDS = {
    ("outbox", ".new"): 3600,
    ("outbox", ".unreadable"): 90 * 24 * 3600,
    ("refused", ".new"): 3600,
    ("refused", ".json"): 90 * 24 * 3600,
}


class ReportKept(Exception):
    """A report could not be stored and waits in the outbox: the cycle cannot go on."""


class RowKept(ReportKept):
    """So does this one, for one row only: the cycle can go on with the other tasks."""


class NotTaken(Exception):
    """The table does not take this report; `row` tells whether for one row only: for what it holds,
    or since somebody has the task's `locked`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(first_line(error))
        refused = isinstance(error, psycopg2.Error) and not is_fault_of_a_row(error)
        self.locked = isinstance(error, psycopg2.errors.LockNotAvailable)
        self.row = self.locked or not (refused or isinstance(error, DatabaseLost))


def store(
    database: Database, settings: Settings, ending: Ending, terms: Terms | None
) -> tuple[bool, Claim | None]:
    """Store a final report, and with `terms` take the next claim in the same transaction.

    Returns False where the claim was lost. Raises ReportKept where the report is on disk instead.
    """
    try:
        return finish(database, settings, ending, terms)
    except NotTaken as error:
        name = f"#{ending.id} {ending.report.data.get('task')}"
        try:
            path = write(kept_folder(settings, "outbox"), ending)
        except OSError as full:
            kept = f"could be neither stored nor kept in the outbox ({full.strerror})"
            raise ReportKept(f"{name}: its report {kept}: {error}") from error
        kind = RowKept if error.row else ReportKept
        raise kind(f"{name}: its report waits in {path}: {error}") from error


def finish(
    database: Database, settings: Settings, ending: Ending, terms: Terms | None = None
) -> tuple[bool, Claim | None]:
    """Store a report, or a short one where it is refused for what it holds; else raise NotTaken."""
    try:
        if terms:
            return claims.finish_and_claim_next(database, ending, terms)
        return endings.finish(database, ending), None
    except Exception as error:
        refused = NotTaken(error)
        if refused.locked or not refused.row:  # such as a full disk: the whole one is taken later
            raise refused from error
        return finish_short(database, settings, ending, error), None


def finish_short(
    database: Database, settings: Settings, ending: Ending, refusal: Exception
) -> bool:
    """Keep a refused report whole on disk, and store a short one that says where it is."""
    why, path = first_line(refusal), None
    log.error("#%d: the database refused its report: %s", ending.id, why)
    try:
        path = write(kept_folder(settings, "refused"), ending)
        where = f"is in {path}"
    except OSError as full:
        where = f"could not be kept ({full.strerror})"
    short = shortened(ending.report, where, why, settings.secrets)
    try:
        return endings.finish(database, ending._replace(report=short))
    except Exception as error:
        if path:
            remove(path)
        raise NotTaken(error) from error


def write(folder: Path, ending: Ending) -> Path:
    """Write a report to disk for good, or raise OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{ending.id}-{ending.token}.json"
    content = ending._asdict() | {"report": ending.report._asdict()}
    unfinished = path.with_suffix(".new")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(folder)
    return path


def deliver(database: Database, settings: Settings) -> tuple[int, list[tuple[Ending, RowKept]]]:
    """Store every report that waits, but for those that are still refused for what they hold.

    A file that holds no report is put aside under another name, and one whose task has been settled
    meanwhile is dropped. Returns how many reports ended their task, and those that still wait.
    Raises ReportKept where no report is taken.
    """
    ended, waiting = 0, []
    tidy(settings)
    for path in unsent(settings):
        try:
            ending = read(path)
        except UNREADABLE as error:
            log.error("outbox: put aside %s, not a report: %s", path.name, first_line(error))
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".unreadable"))
            continue
        try:
            stored, _ = finish(database, settings, ending)
        except NotTaken as error:
            said = f"#{ending.id}: its report still waits in {path}: {error}"
            if not error.row:
                raise ReportKept(said) from error
            waiting.append((ending, RowKept(said)))
            continue
        if stored:
            ended += 1
            log.info("#%d: its report was waiting in the outbox and is delivered", ending.id)
        else:
            log.warning("#%d: dropped its report from the outbox, the claim was lost", ending.id)
        remove(path)
    return ended, waiting


def tidy(settings: Settings) -> None:
    """Remove what a dead process left half written, and what was put aside long ago."""
    for (name, suffix), limit in KEPT_SECONDS.items():
        for path in kept_files(settings, name, suffix):
            if (age(path) or 0) > limit:
                log.info("%s: removed %s, which nobody needs any more", name, path.name)
                remove(path)


def kept_folder(settings: Settings, name: str) -> Path:
    """Return where reports are kept on disk: `outbox` or `refused`."""
    return Path(settings.state_dir, settings.agent_id, name)


def unsent(settings: Settings) -> list[Path]:
    """Return the files of the reports that wait in the outbox, the oldest task's first."""
    folder = kept_folder(settings, "outbox")
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".json"]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("outbox: cannot read %s: %s", folder, error.strerror)
        return []
    return sorted(found, key=lambda path: (len(path.name.partition("-")[0]), path.name))


def kept_files(settings: Settings, name: str, suffix: str) -> list[Path]:
    """Return the files of a folder of kept reports, none where it cannot be read."""
    folder = kept_folder(settings, name)
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == suffix)
    except OSError:
        return []


def age(path: Path) -> float | None:
    """Return for how many seconds a file has been there; None where it is gone meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def read(path: Path) -> Ending:
    """Return what `write` wrote; raise one of UNREADABLE for anything else."""
    content = json.loads(path.read_text())
    report = Report(**content["report"])
    ending = Ending(content["id"], content["token"], content["status"], report)
    kinds = [type(value) for value in (ending.id, ending.token, *report)]
    if kinds != [int, str, str, str, dict] or ending.status not in ("processed", "expired"):
        raise ValueError("it has other values than a report of a task")
    if len(report.subject) > SUBJECT_LIMIT:
        raise ValueError("its subject is longer than that of any report")
    # What no column holds, no report of ours holds: it was made storable before it was written.
    text = json.dumps(content, ensure_ascii=False)
    text.encode()
    if NUL.search(text):
        raise ValueError("it has a NUL")
    return ending


def remove(path: Path) -> None:
    """Remove a report that is settled; one that cannot be removed is only tried again."""
    try:
        path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        log.error("outbox: cannot remove %s: %s", path, error.strerror)


def sync_folder(folder: Path) -> None:
    with beneath.closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        os.fsync(descriptor)

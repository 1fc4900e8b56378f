"""Reports that could not be stored wait here, on disk, for the next cycle."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path

import psycopg2

from catalyst_heartbeat.queue import messages
from catalyst_heartbeat.queue.connection import Database, first_line
from catalyst_heartbeat.queue.messages import Ending
from catalyst_heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

# What reading a file that is no report may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)


def folder(settings: Settings) -> Path:
    return Path(settings.state_dir, settings.agent_id, "outbox")


def waiting(settings: Settings) -> list[Path]:
    """Return the files of the reports that wait, the oldest task's first."""
    try:
        found = [path for path in folder(settings).iterdir() if path.suffix == ".json"]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("outbox: cannot read %s: %s", folder(settings), error.strerror)
        return []
    return sorted(found, key=lambda path: (len(path.name.partition("-")[0]), path.name))


def age(path: Path) -> float | None:
    """Return for how many seconds a report has waited; None where it is gone meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def store(settings: Settings, ending: Ending) -> Path:
    """Write a report to disk for good, or raise OSError."""
    place = folder(settings)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place / f"{ending.id}-{ending.token}.json"
    content = ending._asdict() | {"report": ending.report._asdict()}
    unfinished = path.with_suffix(".new")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(place)
    return path


def deliver(database: Database, settings: Settings) -> int:
    """Store every report that waits; return how many ended their task.

    A file that cannot be read is put aside under another name, and one whose task has been
    settled meanwhile is dropped: neither may hold up the others.
    """
    delivered = 0
    for path in waiting(settings):
        try:
            ending = read(path)
            stored = messages.finish(database, ending)
        except (*UNREADABLE, psycopg2.DataError) as error:
            log.error("outbox: put aside %s, not a report: %s", path.name, first_line(error))
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".unreadable"))
            continue
        if stored:
            delivered += 1
            log.info("#%d: its report was waiting in the outbox and is delivered", ending.id)
        else:
            log.warning("#%d: dropped its report from the outbox, the claim was lost", ending.id)
        remove(path)
    return delivered


def read(path: Path) -> Ending:
    """Return what `store` wrote; raise one of UNREADABLE for anything else."""
    from catalyst_heartbeat.report import Report  # an idle cycle never needs it

    content = json.loads(path.read_text())
    report = Report(**content["report"])
    ending = Ending(content["id"], content["token"], content["status"], report)
    kinds = [type(value) for value in (ending.id, ending.token, *report)]
    if kinds != [int, str, str, str, dict] or ending.status not in ("processed", "expired"):
        raise ValueError("it has other values than a report of a task")
    return ending


def remove(path: Path) -> None:
    """Remove a report that is settled; one that cannot be removed is only tried again."""
    try:
        path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        log.error("outbox: cannot remove %s: %s", path, error.strerror)


def sync_folder(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

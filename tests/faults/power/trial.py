"""One trial: a machine at work, its power cut, and its recovery."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faults.power.image import make_disk
from faults.power.machine import HOST, Machine, PowerFailed
from faults.power.work import FILLER, NUMBERS, Versions, ask
from support.cycles import ACCEPT_REPORTS, REFUSE_REPORTS, end_leases
from support.docker_engine import wait_for
from support.postgres import new_database

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

SEED = os.environ.get("POWER_SEED", "20261125")
# About as many writes and flushes as the first cycle comes to: with 450 of 450 it ends unharmed.
REQUESTS = {"taken": 450, "refused": 40}
DISK_MEGABYTES = 48
CHANGELOG = "/disks/vda/changelog.md"
SESSIONS = """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
AT_WORK = """SELECT id, (data #>> '{claim,attempt}')::int FROM claude_messages
              WHERE msg_type = 'task' AND status = 'processing'"""


@dataclass(frozen=True)
class Place:
    """What the trials of a run share."""

    kernel: Path
    root: Path
    outside: EmbeddedPostgres


class Trial:
    """A machine with one disk, or with the files on a second one, and what it was asked for.

    `reports` says whether the database takes any, "taken" or "refused"; `first_cut` at which
    request of the first cycle the power fails, 0 for any.
    """

    def __init__(
        self,
        place: Place,
        folder: Path,
        disks: int,
        reports: str,
        seed: str,
        *,
        first_cut: int = 0,
        forgets: str = "",
    ) -> None:
        self.chance = random.Random(f"{seed} {disks} {reports}")  # noqa: S311 - to be repeatable
        self.reports = reports
        self.first_cut = first_cut
        name = f"power_{next(NUMBERS)}"
        self.database = new_database(place.outside, name)
        files = f"/disks/{'vda' if disks == 1 else 'vdb'}/files"
        url = f"postgresql://postgres@{HOST}:{place.outside.port}/{name}"
        self.command = (
            f"cycle RESEARCH_DATABASE_URL={url} ALLOWED_PATHS={files} CHANGELOG_PATH={CHANGELOG} "
            "BACKUP_DIR=/disks/vda/backups STATE_DIR=/disks/vda/state LOG_DIR=/disks/vda/logs "
            "MAX_CHANGES_PER_HOUR=1000"
        )
        texts = {f"{number}.md": f"file {number}\n{FILLER}END\n" for number in range(3)}
        fill(folder / name, texts)
        images = [
            make_disk(folder / f"{name}.{number}", DISK_MEGABYTES, folder / name)
            for number in range(disks)
        ]
        self.machine = Machine(place.kernel, place.root, images, forgets)
        # What each file may have been through, by what was reported.
        self.possible: dict[str, set[Versions]] = {f"{files}/new.md": {(None,)}}
        self.possible.update({f"{files}/{name}": {(text,)} for name, text in texts.items()})
        self.changes, self.reads = ask(self.database, self.possible, self.chance)
        self.interrupted: set[int] = set()
        # Tasks whose report was put aside before the power failed, and at which attempt.
        self.put_aside: dict[int, int] = {}
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()

    def expect(self, holds: object, promise: str) -> None:
        if not holds:
            self.broken.append(promise)

    def cycle(self) -> None:
        code, log = self.machine.run(self.command)
        print(log)  # noqa: T201 - shown where the trial fails
        self.expect(code == 0, f"a cycle ended with {code}")

    def at_work(self) -> dict[int, int]:
        """Return the tasks that are claimed, and at which attempt."""
        return {id: attempt for id, attempt in self.database.execute(AT_WORK)}

    def strike(self) -> None:
        """Boot and run a cycle until the power fails, at a request of the disks or just after."""
        self.machine.boot()
        end_leases(self.database)
        requests = self.chance.randint(1, REQUESTS[self.reports])
        seconds = self.chance.choice((0.0, 0.0, 0.05, 0.2))
        if self.first_cut:
            requests, seconds, self.first_cut = self.first_cut, 0.0, 0
        self.machine.supply.fail_after(requests, seconds)
        try:
            self.machine.run(self.command)
        except PowerFailed:
            self.counts["cuts in a cycle"] += 1
        else:
            self.counts["cuts after a cycle"] += 1
            self.put_aside |= self.at_work()
        self.machine.cut(self.chance)
        wait_for(lambda: self.database.execute(SESSIONS) == [(0,)])
        self.interrupted |= self.at_work().keys() - self.put_aside.keys()

    def recover(self) -> None:
        """Run a cycle an hour later: for the leases, and for what a dead cycle was writing."""
        self.machine.boot()
        end_leases(self.database)
        self.machine.run("find /disks -name '*.new' -exec touch -d '2026-01-01 00:00' {} +")
        self.cycle()

    def run(self) -> None:
        """Cut the power once or twice, the second time perhaps in recovery, and recover."""
        if self.reports == "refused":
            self.database.execute(REFUSE_REPORTS)
        for _ in range(self.chance.choice((1, 1, 2))):
            self.strike()
        if self.reports == "refused":
            self.database.execute(ACCEPT_REPORTS)
        self.recover()


def fill(folder: Path, texts: dict[str, str]) -> None:
    for name in ("files", "backups", "state", "logs"):
        (folder / name).mkdir(parents=True)
    for name, text in texts.items():
        (folder / "files" / name).write_text(text)

"""The power is cut, and the disks forget what was not flushed: every report is true all the same.

POWER_SEED chooses the requests at which the power fails and what survives of those before; what a
machine does within a time is not chosen. POWER_CUTS is how many trials there are.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults.power.trial import CHANGELOG, SEED, Place, Trial
from faults.power.work import Change, rollback, task
from support.cycles import finals
from support.postgres import message, send

pytestmark = [pytest.mark.power, pytest.mark.timeout(600)]

TRIALS = int(os.environ.get("POWER_CUTS", "20"))
CONTROL_TRIALS = 6
# So many writes and flushes a first cycle comes to whose report is refused, and a few more.
REFUSED_REQUESTS = 30
LEFTOVER = re.compile(r"/\.catalyst-|\.(new|tmp|unreadable)$|/outbox/")


@pytest.mark.parametrize("disks", [1, 2])
@pytest.mark.parametrize("number", range(TRIALS // 4))
def test_a_power_cut_makes_no_report_untrue_and_leaves_nothing_over(
    place: Place, tmp_path: Path, disks: int, number: int, record_property: Any
) -> None:
    trial = Trial(place, tmp_path, disks, "taken", f"{SEED} {number}")

    assert broken_in(trial, record_property) == []


@pytest.mark.parametrize("number", range(TRIALS // 2))
def test_a_report_that_the_database_refuses_is_lost_at_no_write_of_the_disk(
    place: Place, tmp_path: Path, number: int, record_property: Any
) -> None:
    span = REFUSED_REQUESTS * 2 // TRIALS
    request = number * span + random.Random(f"{SEED} {number}").randint(1, span)  # noqa: S311
    trial = Trial(place, tmp_path, 1, "refused", SEED, first_cut=request)

    assert broken_in(trial, record_property) == []


@pytest.mark.parametrize(
    ("forgets", "reports"),
    [("/files", "taken"), ("/backups", "taken"), ("/changelog", "taken"), ("/outbox", "refused")],
)
def test_control_of_power_cuts_a_program_that_does_not_flush_breaks_it(
    place: Place, tmp_path: Path, forgets: str, reports: str
) -> None:
    for number in range(CONTROL_TRIALS):
        seed = f"{SEED} {number}"
        if broken_in(Trial(place, tmp_path, 1 + number % 2, reports, seed, forgets=forgets)):
            return
    pytest.fail(f"{CONTROL_TRIALS} power cuts broke nothing")


def broken_in(trial: Trial, record_property: Any = None) -> list[str]:
    """Run a trial; return which promises it broke."""
    try:
        trial.run()
        check(trial)
        undo(trial)
    finally:
        trial.machine.switch_off()
    for name, count in trial.counts.items() if record_property else ():
        record_property(f"power cuts: {name}", count)
    print(trial.broken)  # noqa: T201 - what a control has broken
    return trial.broken


def check(trial: Trial) -> None:
    files = trial.machine.files()
    changelog = files.get(CHANGELOG, b"").decode(errors="replace")
    entries = Counter(map(int, re.findall(r"#(\d+) from", changelog)))
    for id in trial.reads:
        final(trial, id)
    for id, change in trial.changes.items():
        check_change(trial, id, change, entries[id], files)
    for path in trial.possible:
        check_file(trial, path, files)
    for path in files:
        trial.expect(not LEFTOVER.search(path), f"left over: {path}")
        if "/backups/" in path and not path.endswith(".json"):
            trial.expect(f"{path}.json" in files, f"a backup that nothing tells of: {path}")


def final(trial: Trial, id: int) -> dict[str, Any]:
    """Return the data of the one final report on a task, with its body."""
    found = finals(trial.database, id)
    trial.expect(len(found) == 1, f"#{id} has {len(found)} final reports")
    trial.expect(message(trial.database, id)["status"] == "processed", f"#{id} is not over")
    if not found:
        return {"outcome": "missing", "body": ""}
    report = {**found[0]["data"], "body": found[0]["body"]}
    trial.counts[report["outcome"]] += 1
    attempt = trial.put_aside.get(id, report["attempt"])
    trial.expect(report["attempt"] == attempt, f"#{id} ran again, with its report put aside")
    return report


def check_change(
    trial: Trial, id: int, change: Change, entries: int, files: dict[str, bytes]
) -> None:
    """Check a report by itself, and note what it makes of the file."""
    report = final(trial, id)
    outcome, body = report["outcome"], report["body"]
    before = trial.possible[change.path]
    after = {change.apply(versions) for versions in before}
    trial.possible[change.path] = {"success": after, "failed": before}.get(outcome, before | after)
    excused = id in trial.interrupted or (outcome == "failed" and before & after)
    trial.expect(outcome == "success" or excused, f"#{id} is {outcome}, uninterrupted: {body}")
    wanted = {"success": (1,), "failed": (0,)}.get(outcome, (0, 1))
    trial.expect(entries in wanted, f"#{id} is {outcome}, with {entries} changelog entries")
    if outcome == "success":
        backup = re.search(r"\*\*Backup:\*\* (\S+)", body)
        trial.expect(backup and backup[1] in files, f"#{id} has no backup: {body}")
        trial.expect("*Changelog automatically updated.*" in body, f"#{id} has no entry: {body}")


def check_file(trial: Trial, path: str, files: dict[str, bytes]) -> None:
    found = files[path].decode(errors="replace") if path in files else None
    fitting = {versions for versions in trial.possible[path] if versions[-1] == found}
    trial.expect(fitting, f"{path} is not what was reported: {found and found[-100:]!r}")
    trial.possible[path] = fitting


def undo(trial: Trial) -> None:
    """Take back one more change of each file, by the backups that survived."""
    changed = {path: made for path, made in trial.possible.items() if all(map(tail, made))}
    asked = [send(trial.database, rollback(path).body) for path in changed]
    asked += [send(trial.database, task("list_backups", filepath=path)) for path in changed]
    trial.cycle()
    for id in asked:
        report = final(trial, id)
        trial.expect(report["outcome"] == "success", f"undoing: {report['body']}")
    files = trial.machine.files()
    for path, made in changed.items():
        trial.possible[path] = {versions[:-1] for versions in made}
        check_file(trial, path, files)
    for id in (*trial.reads, *trial.changes):
        trial.expect(len(finals(trial.database, id)) == 1, f"#{id} was reported again")


def tail(versions: tuple[str | None, ...]) -> tuple[str | None, ...]:
    return versions[1:]

"""What becomes of a task whose heartbeat died: the truth where it can be found, else UNKNOWN."""

from __future__ import annotations

import json
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support.cycles import (
    Cycles,
    Health,
    add_marker,
    decided,
    end_leases,
    finals,
    markers,
    open_tasks,
    outcome,
    settle,
)
from support.postgres import Database, escalations, message, on_every_schema, reports, send
from support.transitions import TERMS

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.files import paths
from catalyst_heartbeat.outcome import Outcome
from catalyst_heartbeat.queue import claims, listing, recovery
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.listing import AtWork
from task_executor import WHITELIST

HERE = socket.gethostname()
LONG_AGO = "2026-01-02T03:04:05.678901+00:00"
NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def interrupted(database: Database, body: str, **changes: Any) -> int:
    """Send a task that looks as if its heartbeat had died; `changes` are those of its claim."""
    claim = {"token": "dead", "host": HERE, "pid": 4711, "attempt": 1, "lease_until": LONG_AGO}
    sent = send(database, body, status="processing", data={"claim": {**claim, **changes}})
    database.execute("UPDATE claude_messages SET read_at = now() WHERE id = %s", (sent,))
    return sent


def find_outcome(agent: Connection, settings: program_settings.Settings) -> Outcome | None:
    (found,) = listing.at_work(agent)
    held = claims.claim_interrupted(agent, TERMS, found.id, found.claim_digest, 60)
    assert held is not None
    return recovery.find_outcome(held.message, found, Agent(settings, agent, WHITELIST))


def lease(lease_until: str | None) -> AtWork:
    return AtWork(1, "token", HERE, "1", lease_until, NOW.timestamp(), "fence", None)


@pytest.mark.parametrize(
    ("lease_until", "live"),
    [
        ("2026-01-02T12:00:00.000001+00:00", False),  # microseconds do not count
        ("2026-01-02T12:00:01+00:00", True),
        ("2026-01-02T12:00:01.5+00:00", True),
        ("2026-01-02T20:00:01.123456+08:00", True),
        ("2026-01-02T17:30:01+05:30", True),
        ("2026-01-02T12:00:01Z", True),
        ("2026-01-02 12:00:01+00", True),
        ("2026-01-02T13:00:00+00:00", True),
        ("2026-01-02T13:00:01+00:00", False),
        ("2026-01-02T11:59:59.999999+00:00", False),
        ("2026-01-02T12:00:01", False),  # without a zone it is no moment
        ("9999-12-31T23:59:59-12:00", False),
        ("294276-12-31T23:59:59+00:00", False),
        ("infinity", False),
        ("tomorrow", False),
        ("", False),
        (None, False),
    ],
)
def test_a_lease_holds_until_its_time_and_never_longer_than_an_hour(
    lease_until: str | None, live: bool
) -> None:
    assert recovery.lease_is_live(lease(lease_until)) is live


@on_every_schema
def test_a_read_only_task_runs_until_it_is_reported_at_most_three_times(
    database: Database, cycles: Cycles, health: Health
) -> None:
    body = f'TASK: service_health\nPARAMS: {{"port": {health.port}}}'
    once, twice = (interrupted(database, body, attempt=attempt) for attempt in (1, 2))
    thrice = interrupted(database, body, attempt=3)

    finished = cycles.run(HEALTH_PORTS=health.port)

    assert finished.returncode == 0, finished.stderr
    assert [outcome(database, id) for id in (once, twice, thrice)] == [
        "success",
        "success",
        "unknown",
    ]
    assert health.requests == 2
    assert [finals(database, id)[0]["data"]["attempt"] for id in (once, twice)] == [2, 3]
    assert "interrupted 3 times" in finals(database, thrice)[0]["body"]


def test_an_interrupted_read_only_task_that_is_stale_by_now_expires(
    database: Database, cycles: Cycles
) -> None:
    stale = interrupted(database, "TASK: disk_space")
    database.execute("UPDATE claude_messages SET created_at = now() - interval '25 hours'")

    settle(cycles, database)

    assert outcome(database, stale) == "expired"


@on_every_schema
def test_a_change_that_another_host_was_making_is_unknown_and_never_runs_again(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    body = f'TASK: write_file\nPARAMS: {{"filepath": "{path}", "content": "x"}}'
    sent = interrupted(database, body, host="elsewhere")

    assert cycles.run().returncode == 0

    assert outcome(database, sent) == "unknown"
    (report,) = finals(database, sent)
    said = report["body"]
    assert said.startswith("❓ UNKNOWN\n")
    assert "may or may not have happened" in said
    assert "process 4711 on elsewhere" in said
    assert f"since {message(database, sent)['read_at']:%Y-%m-%d %H:%M:%S}" in said
    assert LONG_AGO in said
    assert not path.exists()


def test_a_restart_without_an_engine_to_ask_is_unknown(database: Database, cycles: Cycles) -> None:
    sent = interrupted(database, 'TASK: restart_service\nPARAMS: {"service": "trading"}')

    settle(cycles, database)

    assert outcome(database, sent) == "unknown"


def test_an_interrupted_change_that_nobody_made_failed(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    body = f'TASK: write_file\nPARAMS: {{"filepath": "{path}", "content": "x"}}'
    sent = interrupted(database, body)

    settle(cycles, database)

    assert outcome(database, sent) == "failed"
    assert "interrupted before anything was changed" in finals(database, sent)[0]["body"]
    assert not path.exists()


def test_an_old_change_under_the_same_number_is_not_taken_for_this_one(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    """As where a database was restored and gives its numbers a second time."""
    path = tmp_path / "services/notes.md"
    first = send(database, add_marker(path))
    settle(cycles, database)
    for entry in (tmp_path / "backups" / str(path).lstrip("/")).glob(f"*-{first}*"):
        entry.rename(entry.with_name(entry.name.replace(entry.name[:4], "2020", 1)))
    database.execute("TRUNCATE claude_messages RESTART IDENTITY")
    params = json.dumps({"filepath": str(path), "old_text": "END", "new_text": "again\nEND"})
    second = send(database, f"TASK: edit_file\nPARAMS: {params}")

    cycles.kill("before the run")
    settle(cycles, database)

    assert (first, outcome(database, second)) == (second, "unknown")
    assert "again" not in path.read_text()


def test_a_change_that_other_settings_would_reject_may_have_happened(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    sent = send(database, add_marker(tmp_path / "services/notes.md"))
    read_only = send(database, "TASK: disk_space")
    cycles.kill("after the run")
    end_leases(database)

    cycles.run(TASK_SENDERS="somebody_else")

    assert (markers(tmp_path / "services/notes.md"), outcome(database, sent)) == (1, "unknown")
    assert "it would be rejected now: " in finals(database, sent)[0]["body"]
    assert outcome(database, read_only) == "rejected"


def test_a_task_that_died_before_its_request_for_approval_is_asked_for_again(
    database: Database, cycles: Cycles
) -> None:
    unknown_task = interrupted(database, "TASK: reboot")
    needs_approval = interrupted(database, "TASK: disk_space")

    finished = cycles.run(TASKS_REQUIRING_APPROVAL="disk_space")

    assert finished.returncode == 0, finished.stderr
    for sent in (unknown_task, needs_approval):
        assert message(database, sent)["status"] == "escalated"
        assert len(escalations(database, sent)) == 1


@pytest.mark.parametrize(
    "brake",
    [
        {"TASKS_REQUIRING_APPROVAL": "edit_file"},
        {"FREEZE_WINDOWS": "mon-sun 00:00-24:00 UTC"},
        {"MAX_CHANGES_PER_HOUR": "0"},
    ],
)
def test_a_change_that_needs_approval_only_now_may_have_happened(
    database: Database, cycles: Cycles, tmp_path: Path, brake: dict[str, str]
) -> None:
    path = tmp_path / "services" / "notes.md"
    changed = send(database, add_marker(path))
    cycles.kill("after the run")
    end_leases(database)
    restarted = interrupted(database, "TASK: restart_dashboard")

    assert cycles.run(**brake).returncode == 0

    assert (outcome(database, changed), outcome(database, restarted)) == ("success", "unknown")
    assert markers(path) == 1
    assert escalations(database, changed) + escalations(database, restarted) == []


@pytest.mark.parametrize("task", ["disk_space", "restart_dashboard", "reboot"])
def test_an_approval_whose_use_was_interrupted_is_not_used_again(
    database: Database, cycles: Cycles, task: str
) -> None:
    settings = {"TASKS_REQUIRING_APPROVAL": "disk_space,restart_dashboard"}
    sent = decided(database, cycles, task, "approved", **settings)
    cycles.kill("before the run", **settings)
    end_leases(database)

    for _ in range(2):
        assert cycles.run(**settings).returncode == 0

    assert outcome(database, sent) == "unknown"
    assert len(escalations(database, sent)) == 1


def test_a_change_of_a_file_that_its_undoing_made_one_of_ours_is_not_asked_for_again(
    database: Database, agent: Connection, cycles: Cycles, settings: program_settings.Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whether a file may be made here without approval is another matter once it was removed."""
    folder = settings.allowed_paths[0]
    written = send(
        database, f'TASK: write_file\nPARAMS: {{"filepath": "{folder}/notes.md", "content": "x"}}'
    )
    settle(cycles, database)
    assert outcome(database, written) == "success"
    undone = send(database, f'TASK: rollback_file\nPARAMS: {{"filepath": "{folder}/notes.md"}}')
    cycles.kill("after the run")
    assert open_tasks(database) == [undone]
    monkeypatch.setattr(paths, "PROGRAM_FOLDER", folder)

    found = find_outcome(agent, settings)

    assert found is not None
    assert found.verdict == "success"


@pytest.mark.parametrize("lease_until", ["2999-01-01T00:00:00+00:00", "infinity", LONG_AGO])
def test_a_claim_that_a_sender_planted_holds_nothing_up(
    database: Database, cycles: Cycles, lease_until: str
) -> None:
    planted = interrupted(database, "TASK: disk_space", lease_until=lease_until, attempt=-1)
    change = interrupted(database, "TASK: restart_dashboard", lease_until=lease_until, pid=None)
    stranger = send(database, "TASK: disk_space", from_agent="mallory", status="processing")
    good = send(database, "TASK: disk_space")

    assert cycles.run().returncode == 0

    assert [outcome(database, id) for id in (planted, change, stranger, good)] == [
        "success",
        "unknown",
        "rejected",
        "success",
    ]


@on_every_schema
def test_an_interrupted_task_that_has_its_report_gets_no_second_one(
    database: Database, cycles: Cycles
) -> None:
    """Two of the schemas have no unique index that would stop it."""
    sent = interrupted(database, "TASK: restart_dashboard")
    said = {"from_agent": "public_claude", "msg_type": "response", "reply_to_id": sent}
    send(database, "done", **said, data={"final": True, "outcome": "success"})

    settle(cycles, database)

    assert outcome(database, sent) == "success"
    assert len(reports(database, sent)) == 1


def test_an_interrupted_request_that_is_not_acceptable_is_rejected(
    database: Database, cycles: Cycles
) -> None:
    bodies = [None, "TASK: disk_space\nPARAMS: null", "TASK: service_health", "x" * 3_000_000]
    sent = [interrupted(database, body) for body in bodies]  # type: ignore[arg-type]

    settle(cycles, database)

    assert [outcome(database, id) for id in sent] == ["rejected"] * 4

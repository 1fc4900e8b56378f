"""--status --json: names that a script may rely on, values that any JSON reader takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from support.postgres import Database, escalations, send

Heartbeat = Callable[..., CompletedProcess[str]]

# Each list with the names in its rows.
NAMES: dict[str, set[str]] = {
    "queue": {"priority", "pending", "oldest"},
    "at_work": {"id", "host", "pid", "since", "lease_until"},
    "approvals": {"id", "task", "subject", "status", "age", "left"},
    "look_alikes": {"id", "from_agent", "subject"},
    "unsent": {"file", "age"},
    "unreadable": {"file", "age"},
    "refused": {"file", "age"},
}
CYCLE = {"mode", "summary", "errors_today", "last_error", "polled", "failed"}


def told(result: CompletedProcess[str]) -> dict[str, Any]:
    """Read it as a strict reader does: JSON knows no Infinity and no NaN."""
    assert (result.returncode, result.stderr) == (0, "")

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


def test_status_as_json_has_one_set_of_names(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    empty = told(heartbeat("--status", "--json"))
    asked = send(database, "TASK: rm_rf")
    heartbeat()
    (card,) = escalations(database, asked)
    alike = send(
        database, "x", msg_type="escalation", to_agent="craig_mobile", subject=card["subject"]
    )
    working = send(database, "TASK: list_tasks", status="processing", data={"claim": {"pid": 5}})
    send(database, "TASK: list_tasks", priority=None)
    for name in ("outbox/1-a.json", "outbox/2-b.unreadable", "refused/3-c.json"):
        path = tmp_path / "state/public_claude" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    full = told(heartbeat("--status", "--json", FREEZE_WINDOWS="mon-sun 00:00-24:00 UTC"))

    assert empty.keys() == full.keys() == {"agent", "cycle", "brakes", *NAMES}
    assert (empty["agent"], empty["cycle"]) == ("public_claude", None)
    assert [empty[name] for name in NAMES] == [[]] * len(NAMES)
    assert full["cycle"].keys() == CYCLE
    for name, names in NAMES.items():
        (row,) = full[name]
        assert row.keys() == names, name
    assert [type(brake) for brake in full["brakes"]] == [str]
    (request,) = full["approvals"]
    assert (request["id"], request["task"], request["status"]) == (card["id"], asked, "pending")
    assert full["look_alikes"][0]["id"] == alike
    assert (full["at_work"][0]["id"], full["at_work"][0]["pid"]) == (working, "5")
    assert full["refused"][0]["file"] == str(tmp_path / "state/public_claude/refused/3-c.json")


def test_status_as_json_is_json_and_tells_no_secret(
    database: Database, heartbeat: Heartbeat
) -> None:
    heartbeat()
    send(database, "TASK: list_tasks", created_at="-infinity", priority="hunter-2-word")
    database.execute(
        "UPDATE claude_state SET last_poll_at = 'infinity', last_error_at = '-infinity',"
        " last_error = 'no hunter-2-word'"
    )
    url = database.url.replace("postgres@", "postgres:hunter-2-word@")

    result = heartbeat("--status", "--json", RESEARCH_DATABASE_URL=url)

    found = told(result)
    assert (found["cycle"]["polled"], found["queue"][0]["oldest"]) == (None, None)
    assert found["cycle"]["last_error"] == "no [redacted]"
    assert "hunter" not in result.stdout

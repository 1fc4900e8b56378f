"""Reports that could not be stored: kept on disk, delivered once, holding up nobody."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from support.cycles import (
    ACCEPT_REPORTS,
    REFUSE_REPORTS,
    Cycles,
    add_marker,
    end_leases,
    finals,
    markers,
    outcome,
    settle,
)
from support.postgres import Database, message, reports, send, state
from support.transitions import REPORT, TERMS, claim, ending

from catalyst_heartbeat.queue import claims, endings, listing, outbox
from catalyst_heartbeat.queue.claims import Claim
from catalyst_heartbeat.queue.connection import Database as Connection
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.settings import Settings


def store(settings: Settings, held: Claim) -> Path:
    return outbox.write(outbox.kept_folder(settings, "outbox"), ending(held))


def test_a_report_that_cannot_be_stored_is_kept_and_delivered_by_the_next_cycle(
    database: Database, cycles: Cycles, settings: Settings, tmp_path: Path
) -> None:
    sent = send(database, add_marker(tmp_path / "services/notes.md"))
    behind = send(database, "TASK: disk_space")
    database.execute(REFUSE_REPORTS)

    refused = cycles.run()

    (path,) = outbox.unsent(settings)
    assert refused.returncode == 1
    assert f"#{sent} edit_file: its report waits in {path}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert message(database, behind)["status"] == "pending"
    said = state(database)
    assert (said["current_mode"], said["error_count_today"]) == ("sleeping", 1)
    assert f"its report waits in {path}" in said["last_error"]
    assert said["last_error_at"] is not None

    database.execute(ACCEPT_REPORTS)
    end_leases(database)
    delivered = cycles.run()

    assert delivered.returncode == 0
    assert f"#{sent}: its report was waiting in the outbox and is delivered" in delivered.stderr
    assert [outcome(database, id) for id in (sent, behind)] == ["success", "success"]
    assert markers(tmp_path / "services/notes.md") == 1
    assert outbox.unsent(settings) == []


def test_a_kept_report_is_private_and_whole_on_disk(
    database: Database, agent: Connection, settings: Settings
) -> None:
    send(database, "TASK: disk_space")
    held = claim(agent)

    path = store(settings, held)

    assert path == Path(settings.state_dir, "public_claude/outbox", f"{held.id}-{held.token}.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    assert outbox.read(path) == (held.id, held.token, "processed", REPORT)


def test_reports_are_delivered_in_the_order_of_their_tasks(
    settings: Settings, agent: Connection
) -> None:
    paths = [
        outbox.write(
            outbox.kept_folder(settings, "outbox"), Ending(id, "token", "processed", REPORT)
        )
        for id in (10, 9, 100)
    ]

    assert outbox.unsent(settings) == [paths[1], paths[0], paths[2]]


def test_a_report_whose_task_was_settled_or_deleted_meanwhile_is_dropped(
    database: Database, agent: Connection, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settled, deleted, good = (send(database, "TASK: disk_space") for _ in range(3))
    held = claim(agent)
    store(settings, held)
    (found,) = listing.at_work(agent)
    taken = claims.claim_interrupted(agent, TERMS, found.id, found.claim_digest, 60)
    assert taken is not None
    endings.finish(agent, ending(taken))
    store(settings, claim(agent))
    database.execute("DELETE FROM claude_messages WHERE id = %s", (deleted,))
    store(settings, claim(agent))

    assert outbox.deliver(agent, settings)[0] == 1

    assert len(finals(database, settled)) == 1
    assert outcome(database, good) == "success"
    assert outbox.unsent(settings) == []
    dropped = [line for line in caplog.messages if "dropped its report" in line]
    assert [line.partition(":")[0] for line in dropped] == [f"#{settled}", f"#{deleted}"]


def content(**changes: Any) -> str:
    good = {"id": 1, "token": "t", "status": "processed", "report": REPORT._asdict()}
    return json.dumps({**good, **changes})


def with_report(**changes: Any) -> str:
    return content(report={**REPORT._asdict(), **changes})


BAD_FILES: dict[str, str | bytes] = {
    "empty": "",
    "torn": content()[:40],
    "list": "[]",
    "null": "null",
    "bytes": b"\xff\xfe\x00",
    "nothing": "{}",
    "id-text": content(id="1"),
    "id-true": content(id=True),
    "token-nul": content(token="a\0b"),
    "status-wrong": content(status="pending"),
    "report-list": content(report=["a", "b", {}]),
    "report-more": with_report(more=1),
    "body-null": with_report(body=None),
    "body-nul": with_report(body="a\0b"),
    "body-half": with_report(body="\ud800"),
    "subject-map": with_report(subject={}),
    "subject-long": with_report(subject="x" * 600),
    "data-nul": with_report(data={"final": True, "a": "\0"}),
    "data-text": with_report(data="x"),
    "deep": "[" * 100_000,
}


def test_a_file_that_is_no_report_is_put_aside_and_holds_up_nobody(
    database: Database, agent: Connection, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    aimed_at = send(
        database, "TASK: disk_space", status="processing", data={"claim": {"token": "t"}}
    )
    assert aimed_at == json.loads(content())["id"]
    good = send(database, "TASK: disk_space", status="processing", data={"claim": {"token": "g"}})
    last = outbox.write(
        outbox.kept_folder(settings, "outbox"), Ending(good, "g", "processed", REPORT)
    )
    for name, text in BAD_FILES.items():
        bad = text if isinstance(text, bytes) else text.encode()
        last.with_name(f"0-{name}.json").write_bytes(bad)
    last.with_name("0-folder.json").mkdir()
    last.with_name("0-nowhere.json").symlink_to("nowhere")
    last.with_name("0-half.new").write_text("{")

    assert outbox.deliver(agent, settings)[0] == 1

    assert outcome(database, good) == "success"
    assert reports(database, aimed_at) == []
    assert outbox.unsent(settings) == []
    aside = [line for line in caplog.messages if "put aside" in line]
    assert len(aside) == len(list(last.parent.glob("*.unreadable"))) == len(BAD_FILES) + 2


def test_a_sequence_of_ids_that_lags_behind_loses_no_report(
    database: Database, cycles: Cycles, settings: Settings
) -> None:
    """Another violation of uniqueness than that of the one final report."""
    sent = [send(database, "TASK: disk_space") for _ in range(3)]
    database.execute(
        "SELECT setval(pg_get_serial_sequence('claude_messages', 'id'), %s, false)", (sent[0],)
    )

    codes = [cycles.run().returncode]
    assert len(outbox.unsent(settings)) == 1
    for _ in range(4):
        end_leases(database)
        codes.append(cycles.run().returncode)

    assert codes[0] == 1
    assert codes[-1] == 0
    assert [outcome(database, task) for task in sent] == ["success"] * 3
    assert outbox.unsent(settings) == []


def test_a_database_that_takes_nothing_more_leaves_the_name_of_the_report_in_the_log(
    database: Database, cycles: Cycles, settings: Settings
) -> None:
    sent = send(database, "TASK: disk_space")
    database.execute(REFUSE_REPORTS)
    database.execute("ALTER TABLE claude_state ADD CHECK (current_mode = 'awake')")

    refused = cycles.run()

    (path,) = outbox.unsent(settings)
    assert refused.returncode == 1
    assert f"ERROR #{sent} disk_space: its report waits in {path}" in refused.stderr


def test_an_outbox_that_cannot_be_written_is_one_line_and_the_truth_is_found_out(
    database: Database, cycles: Cycles, settings: Settings, tmp_path: Path
) -> None:
    change = send(database, add_marker(tmp_path / "services/notes.md"))
    in_the_way = Path(settings.state_dir, "public_claude", "outbox")
    in_the_way.parent.mkdir()
    in_the_way.touch()
    database.execute(REFUSE_REPORTS)

    refused = cycles.run()

    assert refused.returncode == 1
    assert f"#{change} edit_file: its report could be neither stored nor kept in" in refused.stderr
    assert "Traceback" not in refused.stderr

    database.execute(ACCEPT_REPORTS)
    settle(cycles, database)

    assert outcome(database, change) == "success"
    assert markers(tmp_path / "services/notes.md") == 1


def test_an_outbox_file_that_cannot_be_removed_is_delivered_once(
    database: Database, agent: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = send(database, "TASK: disk_space")
    store(settings, claim(agent))

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", refuse)
        for _ in range(2):
            outbox.deliver(agent, settings)
    assert len(outbox.unsent(settings)) == 1
    outbox.deliver(agent, settings)

    assert outbox.unsent(settings) == []
    assert len(reports(database, sent)) == 1


def test_a_database_that_still_refuses_leaves_the_report_where_it_is(
    database: Database, cycles: Cycles, settings: Settings
) -> None:
    sent = send(database, "TASK: disk_space")
    database.execute(REFUSE_REPORTS)

    codes = [cycles.run().returncode for _ in range(3)]

    assert codes == [1, 1, 1]
    assert len(outbox.unsent(settings)) == 1
    database.execute(ACCEPT_REPORTS)
    settle(cycles, database)
    assert outcome(database, sent) == "success"
    assert finals(database, sent)[0]["data"]["attempt"] == 1

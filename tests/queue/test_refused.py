"""Reports that the server does not take: whole on disk, a short one at once, or later for ever."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.cycles import Cycles, add_marker, decided, end_leases, finals, markers, outcome
from support.postgres import Database, decide, escalations, message, send, state
from support.transitions import TERMS, claim, take_over

from catalyst_heartbeat.queue import claims
from catalyst_heartbeat.queue.connection import Database as Connection

pytestmark = pytest.mark.slow

Heartbeat = Callable[..., CompletedProcess[str]]

# A bridge to NOTIFY, whose payload has 8,000 bytes at most: it refuses every larger report.
TELL = """
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('m', row_to_json(NEW)::text); RETURN NEW; END $$;
CREATE TRIGGER tell AFTER INSERT ON claude_messages FOR EACH ROW EXECUTE FUNCTION tell()
"""
# A trigger that stores what it is given elsewhere, or nowhere, says so with no error.
SWALLOW = """
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER swallow BEFORE INSERT ON claude_messages FOR EACH ROW WHEN ({which})
    EXECUTE FUNCTION swallow()
"""
SHORT_ROWS = "ALTER TABLE claude_messages ADD CHECK (length(body) + length(data::text) < 4000)"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path, letters = tmp_path / "services" / "large.md", "x" * 60
    path.write_text("".join(f"line {number} of a large file, {letters}\n" for number in range(400)))
    return path


@pytest.mark.parametrize("refusal", [TELL, SHORT_ROWS], ids=["trigger", "constraint"])
def test_a_report_that_a_trigger_refuses_is_kept_whole_and_a_short_one_is_stored(
    refusal: str, database: Database, cycles: Cycles, large: Path, tmp_path: Path
) -> None:
    read = send(database, f'TASK: read_file\nPARAMS: {{"filepath": "{large}"}}')
    behind = send(database, add_marker(tmp_path / "services" / "notes.md"))
    database.execute(refusal)

    cycle = cycles.run()

    assert cycle.returncode == 0, cycle.stderr
    assert [outcome(database, task) for task in (read, behind)] == ["success", "success"]
    (kept,) = (tmp_path / "state/public_claude/refused").iterdir()
    (short,) = finals(database, read)
    assert len(short["body"].encode()) <= 1024
    assert short["body"].startswith("✅ SUCCESS\n\n## Task: read_file\n")
    assert str(kept) in short["body"]
    whole = json.loads(kept.read_text())["report"]
    assert "line 399 of a large file, x" in whole["data"]["result"]["text"]
    assert list((tmp_path / "state/public_claude").glob("outbox/*")) == []


# A trigger that quotes what it knows: a password by its name, and one of this agent's settings.
QUOTE = """
CREATE FUNCTION quote() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'audit: dsn password=swordfish9, key Marlin-In-Env'; END $$;
CREATE TRIGGER quote AFTER INSERT ON claude_messages FOR EACH ROW
    WHEN (NEW.msg_type = 'response' AND length(NEW.body) > {longest}) EXECUTE FUNCTION quote()
"""


@pytest.mark.parametrize("longest", [600, 0], ids=["short report", "no report"])
def test_a_secret_that_a_trigger_quotes_is_told_nowhere(
    longest: int, database: Database, cycles: Cycles, large: Path
) -> None:
    sent = send(database, f'TASK: read_file\nPARAMS: {{"filepath": "{large}"}}')
    database.execute(QUOTE.format(longest=longest))

    cycle = cycles.run(TRADER_SECRET="Marlin-In-Env")

    told = [state(database)["last_error"] or "", cycle.stderr]
    told += [report["body"] for report in finals(database, sent)]
    assert len(finals(database, sent)) == bool(longest)
    assert "audit: dsn password=[redacted]" in told[-1]
    for text in told:
        assert "swordfish9" not in text
        assert "Marlin" not in text


@pytest.mark.parametrize("subject", ["Test", "\U0001f600 & <b> " * 18])
@pytest.mark.parametrize("words", ["x", "long & <b>words</b> \u00e9\u00e9 " * 200])
def test_a_short_report_says_where_the_whole_one_is_whatever_else_is_long(
    words: str, subject: str, database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    task = send(database, "TASK: disk_space", subject=subject)
    failed = send(database, "TASK: docker_ps", subject=subject)
    database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE '{words}'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON claude_messages FOR EACH ROW"
        " WHEN (NEW.data ->> 'result' IS NOT NULL OR NEW.body LIKE '%%no-engine%%')"
        " EXECUTE FUNCTION refuse()"
    )

    assert cycles.run().returncode == 0

    for sent, mark, section in (
        (task, "✅ SUCCESS\n\n## Task: disk_space\n", "### Result"),
        (failed, "❌ FAILED\n\n## Task: docker_ps\n", "### Error"),
    ):
        (short,) = finals(database, sent)
        (kept,) = (tmp_path / "state/public_claude/refused").glob(f"{sent}-*.json")
        assert len(short["body"].encode()) <= 1024
        assert short["body"].startswith(f"{mark}**Original Request:** {short['subject'][13:17]}")
        assert f"\n\n{section}\n```\n" in short["body"]
        assert str(kept) in short["body"]
        assert f"the database refused it: {words[:4]}" in short["body"]
        assert short["body"].endswith("\n**Executed by:** public_claude")
        assert json.loads(kept.read_text())["report"]["data"] == {
            **short["data"], "result": json.loads(kept.read_text())["report"]["data"]["result"],
        }  # fmt: skip


def test_a_report_that_can_be_kept_nowhere_is_told_in_short(
    database: Database, cycles: Cycles, large: Path, tmp_path: Path
) -> None:
    read = send(database, f'TASK: read_file\nPARAMS: {{"filepath": "{large}"}}')
    database.execute(TELL)
    (tmp_path / "state" / "public_claude").mkdir()
    (tmp_path / "state" / "public_claude" / "refused").touch()

    assert cycles.run().returncode == 0

    assert outcome(database, read) == "success"
    said = finals(database, read)[0]["body"]
    assert "the whole report could not be kept (File exists); the database refused it: " in said


def test_a_request_that_the_server_refuses_is_told_and_nobody_is_called(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "new.md"
    asked = send(database, f'TASK: write_file\nPARAMS: {{"filepath": "{path}", "content": "x"}}')
    behind = send(database, "TASK: list_tasks")
    database.execute("ALTER TABLE claude_messages ADD CHECK (msg_type <> 'escalation')")

    with closing(socket.create_server(("127.0.0.1", 0))) as phone:
        url = "http://127.0.0.1:{1}/topic".format(*phone.getsockname())
        cycle = cycles.run(NOTIFY_URL=url, TASKS_REQUIRING_APPROVAL="write_file")
        phone.setblocking(False)
        with pytest.raises(BlockingIOError):
            phone.accept()

    assert cycle.returncode == 0, cycle.stderr
    assert [outcome(database, task) for task in (asked, behind)] == ["rejected", "success"]
    assert "craig_mobile could not be asked: new row for " in finals(database, asked)[0]["body"]
    assert escalations(database, asked) == []
    assert not path.exists()


@pytest.mark.parametrize("behind", [0, 1])
def test_a_report_that_a_trigger_swallows_waits_like_one_that_is_refused(
    behind: int, database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = [send(database, add_marker(path))]
    sent += [send(database, "TASK: disk_space") for _ in range(behind)]
    database.execute(SWALLOW.format(which="NEW.msg_type = 'response'"))

    cycle = cycles.run()

    assert cycle.returncode == 1
    assert message(database, sent[0])["status"] == "processing"
    assert f"#{sent[0]}" in state(database)["last_error"]
    assert "a trigger dropped it" in state(database)["last_error"]
    assert list((tmp_path / "state/public_claude/outbox").glob(f"{sent[0]}-*.json"))

    database.execute("DROP TRIGGER swallow ON claude_messages")
    end_leases(database)

    assert cycles.run().returncode == 0
    assert [outcome(database, task) for task in sent] == ["success"] * len(sent)
    assert markers(path) == 1


def test_a_refusal_that_a_trigger_swallows_leaves_its_task_pending(
    database: Database, cycles: Cycles
) -> None:
    sent = send(database, "TASK: disk_space", from_agent="mallory")
    database.execute(SWALLOW.format(which="NEW.to_agent = 'mallory'"))
    good = send(database, "TASK: disk_space")

    assert cycles.run().returncode == 1

    assert message(database, sent)["status"] == "pending"
    assert outcome(database, good) == "success"


@pytest.mark.parametrize("which", ["NEW.msg_type = 'escalation'", "NEW.body LIKE '%ESCALATED%'"])
def test_a_request_that_a_trigger_swallows_is_rejected(
    which: str, database: Database, cycles: Cycles
) -> None:
    asked = send(database, "TASK: disk_space")
    database.execute(SWALLOW.format(which=which))

    cycle = cycles.run(TASKS_REQUIRING_APPROVAL="disk_space")

    assert cycle.returncode == 0, cycle.stderr
    assert outcome(database, asked) == "rejected"
    assert escalations(database, asked) == []
    assert "craig_mobile could not be asked: " in finals(database, asked)[0]["body"]


def test_a_report_that_is_refused_even_in_short_holds_up_no_other_task(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    bad = send(database, add_marker(path), subject="poison")
    behind = [send(database, "TASK: list_tasks") for _ in range(2)]
    asked = send(database, "TASK: disk_space")
    database.execute(
        "ALTER TABLE claude_messages ADD CONSTRAINT not_this"
        " CHECK (subject <> 'Task Report: poison')"
    )

    first = cycles.run(TASKS_REQUIRING_APPROVAL="disk_space")

    assert first.returncode == 1
    assert [outcome(database, task) for task in behind] == ["success"] * 2
    (kept,) = (tmp_path / "state/public_claude/outbox").iterdir()
    assert f"#{bad} edit_file: its report waits in {kept}" in state(database)["last_error"]

    decide(database, escalations(database, asked)[0], "approved")
    for _ in range(2):
        behind.append(send(database, "TASK: list_tasks"))
        again = cycles.run(TASKS_REQUIRING_APPROVAL="disk_space")
        assert again.returncode == 1
        assert "another heartbeat" not in again.stderr
        assert f"#{bad}: its report still waits in {kept}" in state(database)["last_error"]
        end_leases(database)
    assert [outcome(database, task) for task in [*behind, asked]] == ["success"] * 5
    assert message(database, bad)["status"] == "processing"

    database.execute("ALTER TABLE claude_messages DROP CONSTRAINT not_this")

    assert cycles.run().returncode == 0
    assert outcome(database, bad) == "success"
    assert markers(path) == 1


def test_a_waiting_report_hides_no_other_heartbeat_that_took_its_task_over(
    database: Database, agent: Connection
) -> None:
    sent, behind = (send(database, "TASK: disk_space") for _ in range(2))
    lost = claim(agent)
    end_leases(database)
    held = take_over(agent)
    assert held is not None

    terms = TERMS._replace(unsent={sent: lost.token})

    assert claims.claim_next(agent, terms) is None
    assert message(database, behind)["status"] == "pending"


def test_a_subject_that_is_too_long_for_the_table_is_cut_in_the_short_report(
    database: Database, cycles: Cycles
) -> None:
    sent = send(database, "TASK: disk_space", subject="s" * 150)
    database.execute(
        "ALTER TABLE claude_messages ADD CHECK (msg_type <> 'response' OR length(subject) <= 60)"
    )

    assert cycles.run().returncode == 0

    assert outcome(database, sent) == "success"
    assert len(finals(database, sent)[0]["subject"]) == 60


def test_reports_that_wait_count_as_changes(
    database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    sent = [
        send(database, add_marker(tmp_path / "services" / f"{number}.md"), subject="poison")
        for number in range(3)
    ]
    database.execute(
        "ALTER TABLE claude_messages ADD CHECK (subject <> 'Task Report: poison'"
        " OR body LIKE '%ESCALATED%') NOT VALID"
    )

    assert cycles.run(MAX_CHANGES_PER_HOUR="2").returncode == 1

    assert [message(database, task)["status"] for task in sent] == [
        "processing", "processing", "escalated"
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["57014", "53100", "25006"])
def test_a_passing_trouble_costs_nothing_of_a_report(
    code: str, database: Database, cycles: Cycles, large: Path, tmp_path: Path
) -> None:
    read = send(database, f'TASK: read_file\nPARAMS: {{"filepath": "{large}"}}')
    behind = send(database, "TASK: list_tasks")
    database.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE 'not now' USING ERRCODE = '{code}'; END $$;"
        "CREATE TRIGGER wait BEFORE INSERT ON claude_messages FOR EACH ROW"
        " WHEN (NEW.data ->> 'result' IS NOT NULL) EXECUTE FUNCTION wait()"
    )

    assert cycles.run().returncode == 1

    assert finals(database, read) == []
    assert message(database, behind)["status"] == "pending"
    assert list((tmp_path / "state/public_claude").glob("refused/*")) == []

    database.execute("DROP TRIGGER wait ON claude_messages")

    assert cycles.run().returncode == 0
    assert "line 399 of a large file, x" in finals(database, read)[0]["data"]["result"]["text"]
    assert outcome(database, behind) == "success"


def test_a_change_whose_report_is_refused_happens_once_and_is_told(
    database: Database, cycles: Cycles, large: Path, tmp_path: Path
) -> None:
    before = large.read_text()
    params = {"filepath": str(large), "content": before.replace("line", "LINE")}
    written = send(database, f"TASK: write_file\nPARAMS: {json.dumps(params)}")
    undone = send(database, f'TASK: rollback_file\nPARAMS: {{"filepath": "{large}"}}')
    database.execute(TELL)

    assert cycles.run().returncode == 0

    assert [outcome(database, task) for task in (written, undone)] == ["success", "success"]
    assert large.read_text() == before
    assert len(list((tmp_path / "state/public_claude/refused").iterdir())) == 2


# As `SERIAL` makes it since PostgreSQL 10, and as it was made before.
NO_IDS = {
    "sequence": "ALTER SEQUENCE claude_messages_id_seq RESTART 2147483646",
    "column": "ALTER SEQUENCE claude_messages_id_seq AS bigint MAXVALUE 9000000000000000000"
    " RESTART 2147483646",
}


@pytest.mark.parametrize("end", NO_IDS)
def test_without_ids_a_report_waits_for_ever_and_nothing_runs_again(
    end: str, database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    last = [send(database, "TASK: list_tasks", priority="high") for _ in range(2)]
    sent = send(database, add_marker(path))
    database.execute(NO_IDS[end])

    codes = [cycles.run().returncode]
    for _ in range(2):
        end_leases(database)
        codes.append(cycles.run().returncode)

    assert codes == [1, 1, 1]
    assert [outcome(database, task) for task in last] == ["success"] * 2
    assert markers(path) == 1
    assert len(list((tmp_path / "state/public_claude").glob("outbox/*.json"))) == 1
    assert state(database)["last_error"].startswith(f"#{sent}: its report still waits in ")

    database.execute("ALTER SEQUENCE claude_messages_id_seq RESTART 1000")
    end_leases(database)

    assert cycles.run().returncode == 0
    assert outcome(database, sent) == "success"
    assert "marker" in finals(database, sent)[0]["body"]
    assert markers(path) == 1
    assert message(database, sent)["status"] == "processed"
    assert list((tmp_path / "state/public_claude").glob("*/*")) == []


def test_what_was_kept_goes_after_its_time_and_what_waits_never_does(
    database: Database, cycles: Cycles, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    """Half a file of a dead process after an hour, what was put aside after 90 days."""
    days, hour = 24 * 3600, 3600
    kept = {
        "outbox/1-a.json": (91 * days, True), "outbox/2-b.unreadable": (91 * days, False),
        "outbox/3-c.unreadable": (89 * days, True), "outbox/4-d.new": (2 * hour, False),
        "outbox/5-e.new": (hour // 2, True), "refused/6-f.json": (91 * days, False),
        "refused/7-g.json": (89 * days, True), "refused/8-h.new": (2 * hour, False),
    }  # fmt: skip
    folder = tmp_path / "state" / "public_claude"
    sent = send(database, "TASK: list_tasks", status="processing", data={"claim": {"token": "a"}})
    report = {"subject": "Task Report: x", "body": "x", "data": {"final": True}}
    ending = {"id": sent, "token": "a", "status": "processed", "report": report}
    for name, (age, _) in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(ending))
        os.utime(folder / name, (time.time() - age,) * 2)
    database.execute("ALTER TABLE claude_messages ADD CHECK (msg_type <> 'response') NOT VALID")

    assert cycles.run().returncode == 1

    assert {name: (folder / name).exists() for name in kept} == {
        name: stays for name, (_, stays) in kept.items()
    }
    shown = heartbeat("--status").stdout
    for name in ("outbox/1-a.json", "outbox/3-c.unreadable", "refused/7-g.json"):
        assert f"python3 -m json.tool {folder}/{name}" in shown


# Triggers on what moves a task on: one changes the row in a transaction of its own within ours, the
# other keeps the row as it was and says nothing.
READ_AS_WELL = """
CREATE FUNCTION read() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    BEGIN UPDATE claude_messages SET read_at = COALESCE(read_at, now()) WHERE id = NEW.id;
    EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NULL; END $$;
CREATE TRIGGER read AFTER UPDATE OF status ON claude_messages FOR EACH ROW
    WHEN (NEW.status = '{status}') EXECUTE FUNCTION read()
"""
KEEP = """
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER keep BEFORE UPDATE ON claude_messages FOR EACH ROW
    WHEN (OLD.msg_type = 'task' AND NEW.status = '{status}') EXECUTE FUNCTION keep()
"""


@pytest.mark.parametrize("behind", [0, 1])
def test_a_trigger_that_changes_the_finished_row_as_well_costs_no_report(
    behind: int, database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = [send(database, add_marker(path))]
    sent += [send(database, "TASK: disk_space") for _ in range(behind)]
    sent += [send(database, "TASK: disk_space", from_agent="mallory")]
    database.execute(READ_AS_WELL.format(status="processed"))

    cycle = cycles.run()

    assert cycle.returncode == 0, cycle.stderr
    assert [outcome(database, task) for task in sent] == ["success"] * (1 + behind) + ["rejected"]
    assert markers(path) == 1


@pytest.mark.parametrize("behind", [0, 1])
def test_an_end_that_a_trigger_swallows_waits_like_a_report_that_is_refused(
    behind: int, database: Database, heartbeat: Heartbeat, cycles: Cycles, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    sent = [send(database, add_marker(path))]
    sent += [send(database, "TASK: disk_space") for _ in range(behind)]
    database.execute(KEEP.format(status="processed"))

    check = heartbeat("--check")
    codes = []
    for _ in range(2):
        codes.append(cycles.run().returncode)
        end_leases(database)

    assert codes == [1, 1]
    assert "a trigger dropped it" in state(database)["last_error"]
    assert [message(database, task)["status"] for task in sent] == ["processing"] * len(sent)
    assert len(list((tmp_path / "state/public_claude/outbox").iterdir())) == len(sent)
    assert check.returncode == 1
    assert "a trigger dropped it" in check.stdout

    database.execute("DROP TRIGGER keep ON claude_messages")

    assert cycles.run().returncode == 0
    assert [outcome(database, task) for task in sent] == ["success"] * len(sent)
    assert markers(path) == 1


@pytest.mark.parametrize("status", ["escalated", "pending"])
def test_no_other_step_that_a_trigger_swallows_passes_for_done(
    status: str, database: Database, heartbeat: Heartbeat, cycles: Cycles
) -> None:
    asked = send(database, "TASK: disk_space")
    if status == "pending":  # given back, after its heartbeat died
        cycles.kill("before the run", TASKS_REQUIRING_APPROVAL="")
        end_leases(database)
    database.execute(KEEP.format(status=status))

    check = heartbeat("--check")
    cycle = cycles.run(TASKS_REQUIRING_APPROVAL="disk_space")

    told = cycle.stderr + "".join(report["body"] for report in finals(database, asked))
    assert "a trigger dropped it" in told
    assert escalations(database, asked) == []
    assert (check.returncode, cycle.returncode) == {
        "escalated": (1, 0), "pending": (0, 1),
    }[status]  # fmt: skip


def test_a_claim_that_a_trigger_swallows_is_told_and_holds_up_no_other(
    database: Database, cycles: Cycles
) -> None:
    sent = send(database, "TASK: disk_space")
    behind = send(database, "TASK: list_tasks")
    database.execute(KEEP.format(status=f"processing' AND OLD.id = {sent} AND '' = '"))

    assert cycles.run().returncode == 0

    (report,) = finals(database, sent)
    assert report["data"]["outcome"] == "rejected"
    assert f"claim of #{sent} not stored, a trigger dropped it" in report["body"]
    assert outcome(database, behind) == "success"


def test_an_approval_whose_use_a_trigger_swallows_is_told_and_not_used_up(
    database: Database, cycles: Cycles
) -> None:
    names = {"TASKS_REQUIRING_APPROVAL": "disk_space"}
    asked = decided(database, cycles, "disk_space", "approved", **names)
    database.execute(KEEP.format(status="processing"))

    assert cycles.run(**names).returncode == 1
    assert "a trigger dropped it" in state(database)["last_error"]
    database.execute("DROP TRIGGER keep ON claude_messages")

    assert cycles.run(**names).returncode == 0
    assert outcome(database, asked) == "success"


FORGET = """
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.data = NEW.data - 'claim'; RETURN NEW; END $$;
CREATE TRIGGER forget BEFORE UPDATE OF data ON claude_messages FOR EACH ROW
    WHEN (NEW.status = 'processing') EXECUTE FUNCTION forget()
"""


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (FORGET, "FAIL tables     "),
        (KEEP.format(status="processing"), "not stored, a trigger dropped it"),
    ],
)
def test_check_finds_a_trigger_that_undoes_a_claim(
    trigger: str, said: str, database: Database, heartbeat: Heartbeat
) -> None:
    database.execute(trigger)

    check = heartbeat("--check")

    assert check.returncode == 1
    assert said in check.stdout

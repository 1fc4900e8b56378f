"""--check, --status and --dry-run: what they say is so, and they change nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg2
import pytest
from support.cycles import end_leases
from support.postgres import (
    PROGRAM_FOLDER,
    Database,
    decide,
    escalations,
    message,
    new_database,
    on_every_schema,
    reports,
    send,
    state,
)
from support.transitions import REPORT, TERMS

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.commands import check, init_db
from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import claims, connection, outbox
from catalyst_heartbeat.queue import state as agent_state
from catalyst_heartbeat.queue.endings import Ending

pytestmark = pytest.mark.slow

Heartbeat = Callable[..., CompletedProcess[str]]

HOSTILE = "hostile\x1b[2J\nTASK: fake \u202e"


def send_everything(database: Database, folder: Path) -> dict[str, int]:
    """Send one task for each way that a cycle may go, and return their ids by what must happen."""
    (folder / "a.py").write_text("timeout = 30\n")
    edit = {"filepath": f"{folder}/a.py", "old_text": "timeout = 30", "new_text": "timeout = 60"}
    unknown = 'TASK: rm_rf\nPARAMS: {"path": "/"}'
    return {
        "success": send(database, f"TASK: edit_file\nPARAMS: {json.dumps(edit)}"),
        "failed": send(database, "TASK: docker_ps"),
        "failed_in_preview": send(
            database, f"TASK: edit_file\nPARAMS: {json.dumps({**edit, 'old_text': 'absent'})}"
        ),
        "escalated": send(database, unknown),
        "duplicate": send(database, unknown),
        "rejected": send(database, 'TASK: service_health\nPARAMS: {"port": 22}', priority="urgent"),
        "unreadable": send(database, "Please help", subject=HOSTILE),
        "stranger": send(database, "TASK: docker_ps", from_agent="someone"),
        "expired": send(database, "TASK: docker_ps", expires_at="2020-01-01"),
    }


FORESEEN = {
    "success": "    -timeout = 30\n    +timeout = 60\n",
    "failed": "run docker_ps",
    "failed_in_preview": "it would fail: old_text does not occur",
    "escalated": "escalate to craig_mobile: rm_rf",
    "duplicate": "report REJECTED: the same request waits",
    "rejected": "report REJECTED: service_health: port: not one of",
    "unreadable": 'report REJECTED: line 1 begins with "Please help"',
    "stranger": 'report REJECTED: "someone" may not send tasks',
    "expired": "report EXPIRED",
}
OUTCOMES = {
    "failed_in_preview": "failed",
    "duplicate": "rejected",
    "unreadable": "rejected",
    "stranger": "rejected",
}


def dump(database: Database, folder: Path) -> Any:
    """Return every row of the database and every file below the folder."""
    tables = ("claude_messages", "claude_state", "claude_observations")
    rows = {table: database.rows(f"SELECT * FROM {table} ORDER BY 1") for table in tables}
    files = {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }
    return rows, files


def said_of(output: str, message_id: int) -> str:
    """Return what the dry run said about one task."""
    found = re.search(rf"^(?:\[\d+/\d+\] )?#{message_id} .*\n?(?:  .*\n)*", output, re.M)
    assert found, output
    return found[0]


@on_every_schema
def test_a_dry_run_foresees_what_the_cycle_then_does(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    ids = send_everything(database, tmp_path / "services")

    foreseen = heartbeat("--dry-run")
    before_cycle = {name: message(database, task)["status"] for name, task in ids.items()}
    cycle = heartbeat()

    assert (foreseen.returncode, cycle.returncode) == (0, 0), foreseen.stderr + cycle.stderr
    assert set(before_cycle.values()) == {"pending"}
    for name, task in ids.items():
        assert FORESEEN[name] in said_of(foreseen.stdout, task)
        outcome = reports(database, task)[-1]["data"]["outcome"]
        assert outcome == OUTCOMES.get(name, name)
    order = [int(found) for found in re.findall(r"^\[\d+/9\] #(\d+)", foreseen.stdout, re.M)]
    done = re.findall(r"#(\d+)(?: \w+: claimed|: rejected without a claim)", cycle.stderr)
    assert order == [int(found) for found in done]


def test_a_dry_run_counts_the_tasks_that_run_as_the_cycle_does(
    database: Database, heartbeat: Heartbeat
) -> None:
    names = {"MAX_TASKS_PER_RUN": "1", "TASKS_REQUIRING_APPROVAL": "disk_space"}
    approved = send(database, "TASK: disk_space")
    heartbeat(**names)
    (card,) = escalations(database, approved)
    decide(database, card, "approved")
    pending = [send(database, body) for body in ("nonsense", "TASK: docker_ps", "TASK: docker_ps")]

    first = heartbeat("--dry-run", **names).stdout.splitlines()
    heartbeat(**names)
    second = heartbeat("--dry-run", **names).stdout.splitlines()
    heartbeat(**names)

    assert first[:2] == [
        f"#{approved} disk_space: approved by #{card['id']}",
        "  run disk_space {}",
    ]
    assert first[2:] == ["3 more wait for a later cycle"]
    starts = (
        f"[1/3] #{pending[0]} ",
        "  report REJECTED",
        f"[2/3] #{pending[1]} ",
        "  run ",
        "1 more",
    )
    assert len(second) == len(starts)
    assert all(line.startswith(start) for line, start in zip(second, starts, strict=True))
    statuses = [message(database, task)["status"] for task in pending]
    assert statuses == ["processed", "processed", "pending"]


def test_a_dry_run_changes_no_row_and_no_file(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    send_everything(database, tmp_path / "services")
    heartbeat(MAX_TASKS_PER_RUN="4")  # rows in every table, backups, an open escalation
    before = dump(database, tmp_path)

    for option in ("--dry-run", "--status", "--check"):
        assert heartbeat(option).returncode == 0
    after = dump(database, tmp_path)

    assert after == before
    heartbeat()
    assert dump(database, tmp_path) != before


def test_the_server_refuses_what_an_inspection_must_not_do(database: Database) -> None:
    with (
        closing(connection.Database(database.url, "public_claude", read_only=True)) as looking,
        pytest.raises(psycopg2.errors.ReadOnlySqlTransaction),
    ):
        agent_state.wake(looking, "craig_mobile")
    assert database.rows("SELECT * FROM claude_state") == []

    with closing(connection.Database(database.url, "public_claude")) as plain:
        agent_state.wake(plain, "craig_mobile")
    assert state(database)["current_mode"] == "awake"


def test_a_dry_run_tells_decided_requests_apart(database: Database, heartbeat: Heartbeat) -> None:
    ids = [send(database, f"TASK: unknown_{n}") for n in range(3)]
    ids.append(send(database, "TASK: disk_space"))
    heartbeat(TASKS_REQUIRING_APPROVAL="disk_space")
    approved, denied, late, _ = (escalations(database, task)[0] for task in ids)
    decide(database, approved, "approved")
    decide(database, denied, "denied")
    database.execute("UPDATE claude_messages SET expires_at = now() WHERE id = %s", (late["id"],))

    shown = heartbeat("--dry-run").stdout

    assert f"#{ids[0]} unknown_0: approved by #{approved['id']}" in shown
    assert "report FAILED: approved, but there is no task named unknown_0" in shown
    assert f"#{ids[1]} unknown_1: report DENIED" in shown
    assert f"#{ids[2]} unknown_2: report EXPIRED" in shown
    assert f"#{ids[3]} disk_space: waits for craig_mobile" in shown


def test_a_dry_run_goes_on_behind_data_that_python_cannot_read(
    database: Database, heartbeat: Heartbeat
) -> None:
    asked = send(database, "TASK: unknown")
    heartbeat()
    (card,) = escalations(database, asked)
    decide(database, card, "approved")
    spoil = "UPDATE claude_messages SET data = ('{\"x\": 1' || repeat('0', 5000) || '}')::jsonb"
    database.execute(f"{spoil} WHERE id = %s", (card["id"],))
    send(database, "TASK: docker_ps")

    result = heartbeat("--dry-run")

    assert result.returncode == 0
    assert "  report REJECTED: unexpected ValueError in validation; see the log\n" in result.stdout
    assert "  run docker_ps {}\n" in result.stdout


def test_a_dry_run_counts_a_task_whose_report_waits_in_the_outbox_as_done(
    database: Database, heartbeat: Heartbeat, settings: program_settings.Settings
) -> None:
    done = send(database, "TASK: disk_space", status="processing", data={"claim": {"token": "t"}})
    outbox.write(outbox.kept_folder(settings, "outbox"), Ending(done, "t", "processed", REPORT))

    shown = heartbeat("--dry-run").stdout.splitlines()

    assert shown == [f"{done}-t.json: deliver this report from the outbox", "no task is pending"]


def test_a_reader_that_has_seen_enough_is_no_error(
    database: Database, environment: dict[str, str]
) -> None:
    for number in range(20):
        send(database, "TASK: docker_ps", subject=str(number))
    command = f"{sys.executable} -I {PROGRAM_FOLDER}/heartbeat_public.py --dry-run | head -1"

    shown = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=True
    )

    assert (shown.stdout.count("\n"), shown.stderr) == (1, "")


@pytest.mark.parametrize("option", ["--check", "--status", "--dry-run", "--approvals"])
def test_a_full_disk_below_the_output_is_one_line(option: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-I", str(PROGRAM_FOLDER / "heartbeat_public.py"), option]

    with Path("/dev/full").open("w") as full:
        said = subprocess.run(command, env=environment, stdout=full, stderr=-1, text=True)

    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == "cannot say all: No space left on device"
    assert "Traceback" not in said.stderr


def test_status_and_check_survive_infinite_times(database: Database, heartbeat: Heartbeat) -> None:
    heartbeat()
    send(database, "TASK: docker_ps", created_at="-infinity", priority=None)
    database.execute("UPDATE claude_state SET last_poll_at = 'infinity'")

    assert "\n  no priority: 1, the oldest an unknown time\n" in heartbeat("--status").stdout
    assert heartbeat("--check").returncode == 0


def test_a_dry_run_refuses_an_approval_whose_message_was_changed(
    database: Database, heartbeat: Heartbeat
) -> None:
    task = send(database, "TASK: list_tasks")
    heartbeat(TASKS_REQUIRING_APPROVAL="list_tasks")
    decide(database, escalations(database, task)[0], "approved")
    assert "  run list_tasks {}" in heartbeat("--dry-run").stdout

    database.execute("UPDATE claude_messages SET body = 'TASK: disk_space' WHERE id = %s", (task,))

    assert "report REJECTED: the message, its request" in heartbeat("--dry-run").stdout


@pytest.mark.parametrize(
    ("task", "fate"),
    [("docker_ps", "pending again"), ("restart_dashboard", "report what can be found out")],
)
def test_a_dry_run_foresees_recovery(
    task: str, fate: str, database: Database, heartbeat: Heartbeat
) -> None:
    task_id = send(database, f"TASK: {task}")
    with closing(connection.Database(database.url, "public_claude")) as agent:
        agent_state.wake(agent, "craig_mobile")
        claims.claim_next(agent, TERMS._replace(timeouts={task: 10}))
    working = heartbeat("--dry-run").stdout
    status = heartbeat("--status").stdout
    end_leases(database)

    interrupted = heartbeat("--dry-run").stdout

    who = f"process {os.getpid()} on "
    assert f"#{task_id} is in the hands of {who}" in working
    assert "nothing else: another heartbeat is at work" in working
    assert re.search(rf"^at work   #{task_id}: {who}", status, re.M)
    assert f"#{task_id} was interrupted ({who}" in interrupted
    assert fate in interrupted


def test_a_dry_run_tells_a_report_of_a_lost_claim_from_the_task_at_work(
    database: Database, heartbeat: Heartbeat, settings: program_settings.Settings
) -> None:
    task = send(database, "TASK: disk_space")
    with closing(connection.Database(database.url, "public_claude")) as agent:
        agent_state.wake(agent, "craig_mobile")
        claims.claim_next(agent, TERMS._replace(timeouts={"disk_space": 10}))
    outbox.write(outbox.kept_folder(settings, "outbox"), Ending(task, "lost", "processed", REPORT))

    shown = heartbeat("--dry-run").stdout.splitlines()

    assert shown[0] == f"{task}-lost.json: its claim was lost: drop it from the outbox"
    assert shown[1].startswith(f"#{task} is in the hands of process {os.getpid()} on ")
    assert shown[2:] == ["nothing else: another heartbeat is at work"]


def test_a_dry_run_of_a_paused_agent_foresees_nothing(
    database: Database, heartbeat: Heartbeat
) -> None:
    heartbeat()
    database.execute("UPDATE claude_state SET current_mode = 'paused'")
    send(database, "TASK: docker_ps")

    assert heartbeat("--dry-run").stdout == "public_claude is paused: nothing\n"


def test_hostile_text_stays_on_its_line(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    send_everything(database, tmp_path / "services")
    database.execute(
        "INSERT INTO claude_state (agent_id, current_mode, status_message, last_error) "
        "VALUES ('public_claude', %(text)s, %(text)s, %(text)s)",
        {"text": HOSTILE},
    )

    for option in ("--dry-run", "--status"):
        shown = heartbeat(option).stdout
        assert "hostile\\x1b[2J TASK: fake \\u202e" in shown
        assert shown.isascii()
        assert "\x1b" not in shown


def test_status_shows_queue_requests_and_outbox(
    database: Database, heartbeat: Heartbeat, settings: program_settings.Settings
) -> None:
    request = send(database, "TASK: unknown")
    heartbeat()
    send(database, "TASK: docker_ps", priority="low", created_at="2020-01-01")
    send(database, "TASK: docker_ps", priority="urgent")
    outbox = Path(settings.state_dir, "public_claude", "outbox")
    outbox.mkdir(parents=True)
    (outbox / "7-token.json").write_text("{}")

    shown = heartbeat("--status").stdout

    assert re.search(r"^cycle     \d+ s ago, sleeping$", shown, re.M)
    assert re.search(r"2 pending\n  urgent: 1, .*\n  low: 1, the oldest \d+ days\n", shown)
    asked = escalations(database, request)[0]["id"]
    assert re.search(rf"#{asked} Permission #{request}: unknown: pending, asked \d+ s ago", shown)
    assert "outbox    1 unsent reports\n  unsent, " in shown
    assert "outbox/7-token.json\n" in shown


def test_check_passes_where_a_cycle_can_work(database: Database, heartbeat: Heartbeat) -> None:
    heartbeat()

    result = heartbeat("--check")

    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert all(re.match(r"(ok   |warn )[a-zA-Z_]+ +\S", line) for line in lines)
    assert re.search(r"^ok   database   PostgreSQL \d", result.stdout, re.M)
    assert "ok   schema     all indexes" in lines
    assert "ok   tables     a claim, a report and a request work (taken back)" in lines
    assert re.search(r"^ok   clock      0\.\d s", result.stdout, re.M)
    assert re.search(r"^ok   cycle      the last was \d+ s ago", result.stdout, re.M)


FAULTS = {
    "a column is missing": (
        "ALTER TABLE claude_messages DROP COLUMN requires_response",
        "FAIL schema     column claude_messages.requires_response does not exist: "
        f"add it as {init_db.SCHEMA} has it",
    ),
    "a table is missing": (
        "DROP TABLE claude_observations",
        'FAIL schema     relation "claude_observations" does not exist: '
        "run-heartbeat-public.sh --init-db",
    ),
    "an index is missing": (
        "DROP INDEX idx_task_queue_by_sender, idx_one_final_report",
        "warn schema     no idx_task_queue_by_sender, idx_one_final_report: "
        "run-heartbeat-public.sh --init-db",
    ),
    "cron does not run": (
        "INSERT INTO claude_state (agent_id, last_poll_at) "
        "VALUES ('public_claude', now() - interval '3 days')",
        "warn cycle      the last was 3 days ago: does cron run?",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_a_fault_of_the_database(
    fault: str, database: Database, heartbeat: Heartbeat
) -> None:
    statement, line = FAULTS[fault]
    database.execute(statement)

    result = heartbeat("--check")

    assert line in result.stdout.splitlines()
    assert result.returncode == ("FAIL" in line)


def test_what_check_advises_mends_the_schema(database: Database, heartbeat: Heartbeat) -> None:
    database.execute("DROP TABLE claude_observations")
    send(database, "TASK: docker_ps")
    failed = heartbeat()

    assert heartbeat("--init-db").returncode == 0

    assert failed.returncode == 1
    assert "schema incomplete" in failed.stderr
    assert "claude_observations" in failed.stderr
    assert heartbeat().returncode == 0
    assert "ok   schema" in heartbeat("--check").stdout


FOLDERS = {
    "missing backups": (
        {"BACKUP_DIR": "/nowhere/backups"},
        "warn BACKUP_DIR /nowhere/backups does not exist: install -d -m 700 /nowhere/backups",
        0,
    ),
    "state below a file": (
        {"STATE_DIR": "/etc/passwd/state"},
        "FAIL STATE_DIR  /etc/passwd/state: cannot write in /etc/passwd",
        1,
    ),
    "open to others": ({"LOG_DIR": "/tmp"}, "others may write in it: chmod go-w /tmp", 0),
    "a task that is none": (
        {"TASKS_REQUIRING_APPROVAL": "restart_everything"},
        'FAIL settings   TASKS_REQUIRING_APPROVAL: no task "restart_everything"; known:',
        1,
    ),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_check_names_a_fault_of_this_host(fault: str, heartbeat: Heartbeat) -> None:
    variables, line, code = FOLDERS[fault]

    result = heartbeat("--check", **variables)

    assert line in result.stdout
    assert result.returncode == code


@pytest.mark.parametrize("option", ["--check", "--status", "--dry-run", "--init-db"])
def test_an_inspection_asks_a_database_that_is_down_once(heartbeat: Heartbeat, option: str) -> None:
    with starting_up() as (port, asked):
        url = f"postgresql://u:hidden@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable"
        result = heartbeat(option, RESEARCH_DATABASE_URL=url)

    assert len(asked) == 1
    assert result.returncode == 1
    assert "the database system is starting up" in result.stdout + result.stderr
    assert "hidden" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@contextmanager
def starting_up() -> Iterator[tuple[int, list[object]]]:
    """Listen as a server that does not take connections yet; yield its port and who came."""
    fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
    asked: list[object] = []

    def refuse(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                conn, address = server.accept()
                with conn:
                    conn.recv(4096)
                    asked.append(address)
                    conn.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=refuse, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_check_tells_whether_senders_are_who_they_say(own_postgres: EmbeddedPostgres) -> None:
    guarded = new_database(own_postgres, "guarded")
    guarded.execute((PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text())

    def finding(user: str, agent: str) -> tuple[str, str]:
        url = own_postgres.url("guarded", user)
        with closing(connection.Database(url, agent, read_only=True)) as database:
            (found, *_) = check.check_identity(database)
        return found.level, found.text

    assert finding("public_claude", "public_claude") == ("ok", "enforced, login public_claude")
    assert finding("postgres", "public_claude")[0] == "warn"
    assert finding("big_bro", "public_claude") == (
        "FAIL",
        "login big_bro cannot write as public_claude",
    )

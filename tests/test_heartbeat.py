"""The main job, end to end: messages in, reports out, through the real program."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.docker_engine import Engine, RunContainer, wait_for
from support.postgres import (
    Database,
    message,
    messages,
    on_every_schema,
    reports,
    require,
    send,
    state,
)

Heartbeat = Callable[..., CompletedProcess[str]]

SEED_FOLDER = Path("/root/catalyst-trading-system")
SEED_MESSAGES = """
-- Health check
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
VALUES ('big_bro', 'public_claude', 'task', 'Hourly Health Check',
        'TASK: docker_ps
PARAMS: {}
REASON: Routine hourly health check', 'normal', 'pending');

-- Restart service
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
VALUES ('big_bro', 'public_claude', 'task', 'Restart Trading Service',
        'TASK: restart_service
PARAMS: {"service": "trading"}
REASON: Service unresponsive', 'high', 'pending');

-- Edit file
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
VALUES ('big_bro', 'public_claude', 'task', 'Fix timeout',
        'TASK: edit_file
PARAMS: {"filepath": "/root/catalyst-trading-system/services/consciousness/heartbeat.py", "old_text": "timeout=30", "new_text": "timeout=60"}
REASON: Timeout too short', 'normal', 'pending');
"""  # noqa: E501 - the seed's statements word for word
# One process answers on port 5005 and says in its log when it started.
TRADING = """
mkdir -p /tmp/www && echo '{"status": "healthy"}' > /tmp/www/health
echo started
trap 'exit 0' TERM
httpd -f -p 127.0.0.1:5005 -h /tmp/www & wait
"""


@pytest.fixture
def seed_folder() -> Iterator[Path]:
    """The seed's own paths, on a machine that has nothing there."""
    free = os.geteuid() == 0 and not SEED_FOLDER.exists()
    require(free, f"needs to be root and to find no {SEED_FOLDER}: a real one is not touched")
    consciousness = SEED_FOLDER / "services/consciousness"
    consciousness.mkdir(parents=True)
    (consciousness / "heartbeat.py").write_text("session = connect(timeout=30)\n")
    yield SEED_FOLDER
    shutil.rmtree(SEED_FOLDER)


@on_every_schema
def test_seed_messages_all_succeed(
    database: Database,
    heartbeat: Heartbeat,
    engine: Engine,
    run_container: RunContainer,
    seed_folder: Path,
    tmp_path: Path,
) -> None:
    run_container("trading", TRADING, network="host")
    started_before = engine.state("trading")["StartedAt"]
    database.execute(SEED_MESSAGES)

    cycle = heartbeat(
        DOCKER_HOST=engine.host,
        ALLOWED_PATHS=f"{seed_folder}/services/:{seed_folder}/scripts/",
        CHANGELOG_PATH=f"{seed_folder}/CHANGELOG-AUTO.md",
    )

    assert cycle.returncode == 0, cycle.stderr
    answers = messages(database, from_agent="public_claude", msg_type="response")
    assert [answer["subject"] for answer in answers] == [
        "Task Report: Restart Trading Service",
        "Task Report: Hourly Health Check",
        "Task Report: Fix timeout",
    ]
    assert all(answer["body"].startswith("✅ SUCCESS\n\n## Task: ") for answer in answers)
    assert engine.state("trading")["StartedAt"] > started_before
    edited = seed_folder / "services/consciousness/heartbeat.py"
    assert edited.read_text() == "session = connect(timeout=60)\n"
    backups = [path for path in (tmp_path / "backups").rglob("*") if path.suffix != ".json"]
    assert [path.read_text() for path in backups if path.is_file()] == [
        "session = connect(timeout=30)\n"
    ]
    assert str(edited) in (seed_folder / "CHANGELOG-AUTO.md").read_text()
    body = answers[2]["body"]
    assert "### Change Summary\n```diff\n" in body
    assert "-session = connect(timeout=30)\n+session = connect(timeout=60)" in body
    assert f"**Backup:** {tmp_path}/backups/" in body
    assert "*Changelog automatically updated.*" in body


@on_every_schema
def test_a_report_has_the_columns_and_the_shape_of_the_contract(
    database: Database, heartbeat: Heartbeat
) -> None:
    task = send(database, "TASK: db_pending_messages", subject="How much?", priority="high")

    heartbeat()

    (answer,) = reports(database, task)
    assert {name: answer[name] for name in ("from_agent", "to_agent", "priority", "status")} == {
        "from_agent": "public_claude", "to_agent": "big_bro", "priority": "high",
        "status": "pending",
    }  # fmt: skip
    assert answer["thread_id"] == task
    assert answer["subject"] == "Task Report: How much?"
    lines = answer["body"].splitlines()
    assert lines[:6] == [
        "✅ SUCCESS", "", "## Task: db_pending_messages", "**Original Request:** How much?", "",
        "### Result",
    ]  # fmt: skip
    assert lines[-2].startswith("**Executed at:** ")
    assert lines[-2].endswith("+00:00")
    assert lines[-1] == "**Executed by:** public_claude"
    data = answer["data"]
    assert data.pop("duration_ms") >= 0
    assert data == {
        "task": "db_pending_messages", "outcome": "success", "final": True, "message_id": task,
        "attempt": 1, "result": {"total": 0, "agents": {}},
    }  # fmt: skip
    original = message(database, task)
    assert original["status"] == "processed"
    assert original["read_at"] <= original["processed_at"]
    claim = original["data"]["claim"]
    assert sorted(claim) == ["attempt", "host", "lease_until", "pid", "token"]


def test_an_idle_cycle_adds_nothing(database: Database, heartbeat: Heartbeat) -> None:
    send(database, "TASK: list_tasks")
    heartbeat()
    before = messages(database)

    cycle = heartbeat()

    assert (cycle.returncode, messages(database)) == (0, before)
    assert database.execute("SELECT count(*) FROM claude_observations") == [(1,)]
    assert state(database)["status_message"] == "Nothing to do"


def test_a_cycle_notes_what_it_ran(database: Database, heartbeat: Heartbeat) -> None:
    first = send(database, "TASK: list_tasks")
    second = send(database, 'TASK: catalyst_logs\nPARAMS: {"logfile": "none"}')
    send(database, "TASK: Docker_PS")

    heartbeat()

    (note,) = database.rows("SELECT * FROM claude_observations")
    assert (note["observation_type"], note["subject"]) == ("system", "Executed 2 tasks")
    assert note["content"] == f"#{first} list_tasks: success\n#{second} catalyst_logs: failed"
    row = state(database)
    assert row["current_mode"] == "sleeping"
    assert row["last_action_at"] >= row["last_wake_at"]
    assert (row["error_count_today"], row["last_error"]) == (0, None)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("port", [5005, '"5005"'])
def test_service_health_takes_the_port_as_a_number_or_as_digits(
    database: Database, heartbeat: Heartbeat, run_container: RunContainer, port: object
) -> None:
    run_container("trading", TRADING, network="host")
    wait_for(lambda: listens(5005))
    task = send(database, f'TASK: service_health\nPARAMS: {{"port": {port}}}')

    heartbeat()

    (answer,) = reports(database, task)
    assert answer["data"]["outcome"] == "success"
    assert answer["data"]["result"]["port"] == 5005


def test_service_health_of_a_closed_port_fails_and_of_port_22_is_rejected(
    database: Database, heartbeat: Heartbeat
) -> None:
    closed = send(database, 'TASK: service_health\nPARAMS: {"port": 5007}')
    foreign = send(database, 'TASK: service_health\nPARAMS: {"port": 22}')

    heartbeat()

    assert "nobody listens on port 5007" in reports(database, closed)[0]["body"]
    assert reports(database, foreign)[0]["body"].startswith("⛔ REJECTED")


def test_pending_messages_of_more_agents_than_are_listed_are_counted(
    database: Database, heartbeat: Heartbeat
) -> None:
    database.execute(
        """INSERT INTO claude_messages (from_agent, to_agent, msg_type, status)
           SELECT 'big_bro', 'agent_' || number, 'message', 'pending'
             FROM generate_series(1, 101) AS number"""
    )
    task = send(database, "TASK: db_pending_messages")

    heartbeat()

    assert reports(database, task)[0]["data"]["result"]["total"] == 101


def test_the_database_password_reaches_no_row_and_no_log(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    url = database.url.replace("postgres@", "postgres:hunter2-secret@")
    (tmp_path / "logs/app.log").write_text(f"connecting to {url}\nalone: hunter2-secret\n")
    send(database, 'TASK: catalyst_logs\nPARAMS: {"logfile": "app"}')
    send(database, 'TASK: hunter2_secret\nPARAMS: {"x": "hunter2-secret"}')

    cycle = heartbeat(RESEARCH_DATABASE_URL=url)

    assert cycle.returncode == 0
    assert "hunter2-secret" not in cycle.stderr + cycle.stdout
    answered = messages(database, from_agent="public_claude")
    assert len(answered) == 3
    assert "[redacted]" in answered[0]["body"]
    assert not any("hunter2-secret" in answer["body"] for answer in answered)
    assert not any("hunter2-secret" in str(answer["data"].get("result")) for answer in answered)


def test_every_task_answers_in_its_plain_form(
    database: Database, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    """Without Docker and systemd each task still ends in a report that says what is missing."""
    script = tmp_path / "services/a.sh"
    (tmp_path / "logs/app.log").write_text("one\ntwo\n")
    wanted = {
        "docker_ps": ("{}", "Docker"), "disk_space": ("{}", ""), "memory_usage": ("{}", ""),
        "process_list": ("{}", ""), "service_health": ('{"port": 5009}', "nobody listens"),
        "all_services_health": ("{}", ""), "list_tasks": ("{}", ""),
        "docker_logs": ('{"service": "trading"}', "Docker"),
        "catalyst_logs": ('{"logfile": "app"}', ""),
        "db_agent_status": ("{}", ""), "db_pending_messages": ("{}", ""),
        "db_recent_observations": ("{}", ""), "db_task_history": ('{"limit": 5}', ""),
        "restart_service": ('{"service": "trading"}', "Docker"),
        "restart_all_services": ("{}", "Docker"),
        "write_file": (f'{{"filepath": "{script}", "content": "echo 1\\n"}}', ""),
        "edit_file": (f'{{"filepath": "{script}", "old_text": "1", "new_text": "2"}}', ""),
        "rollback_file": (f'{{"filepath": "{script}"}}', ""),
        "read_file": (f'{{"filepath": "{script}"}}', ""),
        "list_backups": (f'{{"filepath": "{script}"}}', ""),
    }  # fmt: skip
    sent = {
        name: send(database, f"TASK: {name}\nPARAMS: {params}")
        for name, (params, _) in wanted.items()
    }

    cycle = heartbeat()

    assert cycle.returncode == 0, cycle.stderr
    for name, (_, trouble) in wanted.items():
        (answer,) = reports(database, sent[name])
        expected = "failed" if trouble else "success"
        assert answer["data"]["outcome"] == expected, answer["body"]
        assert trouble in answer["body"]
    assert script.read_text() == "echo 1\n"

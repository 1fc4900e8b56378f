"""The command line: exit codes, what is printed where, and what a log never holds."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.postgres import PROGRAM_FOLDER, Database, decide, escalations, message, reports, send

from catalyst_heartbeat.commands import options
from catalyst_heartbeat.commands.by_hand import main as by_hand_main
from task_executor import WHITELIST

Heartbeat = Callable[..., CompletedProcess[str]]

CLOSED = ("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
PASSWORD = "hunter-2-password"
LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) (#\d+ [a-z0-9_]+: )?\S.*"
)


@pytest.fixture
def by_hand(environment: dict[str, str]) -> Callable[..., CompletedProcess[str]]:
    """Return a function that runs task_executor.py, with settings that name no database."""
    settings = {**environment, "RESEARCH_DATABASE_URL": ""}

    def run(*arguments: str, **variables: str) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", PROGRAM_FOLDER / "task_executor.py", *arguments],
            env={"HOME": "/root", **settings, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


def test_a_cycle_without_work_ends_with_0(heartbeat: Heartbeat) -> None:
    result = heartbeat()

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines()[-1].endswith("INFO nothing to do")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--unknown"],
        ["--check", "--status"],
        ["--json"],
        ["--json", "--dry-run"],
        ["--yes"],
        ["--deny", "x"],
        ["--deny", "9" * 5000, "no"],
        ["--approve", "9" * 5000],
        ["--approve", "1_0"],
        ["--approve", "-1"],
        ["--stat"],
        ["docker_ps"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], heartbeat: Heartbeat) -> None:
    result = heartbeat(*arguments)

    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: " in result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENT_ID", "Robert'); DROP TABLE"),
        ("MAX_TASKS_PER_RUN", "many"),
        ("ALLOWED_PATHS", "relative/path"),
        ("RESEARCH_DATABASE_URL", ""),
        ("RESEARCH_DATABASE_URL", f"mysql://root:{PASSWORD}@localhost/x"),
        ("RESEARCH_DATABASE_URL", f"postgresql://root:{PASSWORD}@localhost/x?no_such_option=1"),
        ("HEARTBEAT_PING_URL", "not\na url"),
        ("MAX_CHANGES_PER_HOUR", "many"),
        ("FREEZE_WINDOWS", "mon-fri 09:30-16:00 Mars/Olympus"),
        ("READ_ONLY_SENDERS", "a b"),
        ("NOTIFY_URL", "ftp://x"),
        ("APPROVER_DATABASE_URL", "mysql://x"),
    ],
)
def test_a_bad_setting_ends_with_2_and_one_line_that_names_it(
    name: str, value: str, database: Database, heartbeat: Heartbeat
) -> None:
    task = send(database, "TASK: list_tasks")

    for option in ((), ("--check",)):
        result = heartbeat(*option, **{name: value})

        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"{name}: ")
        assert PASSWORD not in line
    assert message(database, task)["status"] == "pending"


def test_a_task_to_approve_that_does_not_exist_ends_with_2(
    database: Database, heartbeat: Heartbeat
) -> None:
    result = heartbeat(TASKS_REQUIRING_APPROVAL="docker_px")

    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith('TASKS_REQUIRING_APPROVAL: no task "docker_px"; known: docker_ps, ')
    assert database.execute("SELECT FROM claude_state") == []


def test_a_log_has_one_line_a_transition_in_utc_and_no_parameter(
    database: Database, heartbeat: Heartbeat
) -> None:
    ids = [
        send(database, 'TASK: service_health\nPARAMS: {"port": 5000}\nREASON: my words'),
        send(database, 'TASK: read_file\nPARAMS: {"filepath": "/etc/secret_name.py"}'),
        send(database, 'TASK: delete_all\nPARAMS: {"path": "/secret_name"}'),
    ]
    first = heartbeat(TZ="Asia/Shanghai")
    decide(database, escalations(database, ids[2])[0], "denied", "no, secret_name")
    second = heartbeat(TZ="Asia/Shanghai")

    assert (first.returncode, second.returncode) == (0, 0)
    lines = (first.stderr + second.stderr).splitlines()
    assert all(LOG_LINE.fullmatch(line) for line in lines), lines
    said = [line.split(" ", 2)[2] for line in lines]
    assert [re.sub(r"\d+\.\d s", "N s", line) for line in said] == [
        f"#{ids[0]} service_health: claimed, attempt 1",
        f"#{ids[0]} service_health: failed in N s",
        f"#{ids[1]} read_file: claimed, attempt 1",
        f"#{ids[1]} read_file: rejected in N s",
        f"#{ids[2]} delete_all: claimed, attempt 1",
        f"#{ids[2]} delete_all: escalated to craig_mobile",
        f"#{ids[2]} delete_all: denied",
    ]
    utc = database.execute("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')")
    assert lines[-1].startswith(str(utc[0][0])[:11])


def test_no_log_and_no_inspection_shows_the_password(
    database: Database, heartbeat: Heartbeat
) -> None:
    send(database, f"TASK: docker_ps\nREASON: {PASSWORD}", subject=PASSWORD)
    url = database.url.replace("postgres@", f"postgres:{PASSWORD}@")
    send(database, f"TASK: read_file\nPARAMS: {json.dumps({'filepath': url})}")

    for arguments in (("--dry-run",), (), ("--status",), ("--check",)):
        result = heartbeat(*arguments, RESEARCH_DATABASE_URL=url)
        assert result.returncode == 0
        assert PASSWORD not in result.stdout + result.stderr


def test_a_terminal_shows_each_task_its_place(
    database: Database, environment: dict[str, str]
) -> None:
    ids = [send(database, "TASK: list_tasks") for _ in range(3)]

    shown = run_on_a_terminal(environment)

    for place, task in enumerate(ids, 1):
        assert f"[{place}/3] #{task} list_tasks: claimed, attempt 1\r\n" in shown


def run_on_a_terminal(environment: dict[str, str]) -> str:
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-I", PROGRAM_FOLDER / "heartbeat_public.py"],
        env={"HOME": "/root", **environment},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(terminal)
    assert process.wait(60) == 0, shown
    return shown.decode()


def test_cron_gets_no_places(database: Database, heartbeat: Heartbeat) -> None:
    send(database, "TASK: list_tasks")

    assert "[1/1]" not in heartbeat().stderr


def test_list_tasks_needs_no_database(heartbeat: Heartbeat) -> None:
    text = heartbeat("--list-tasks", RESEARCH_DATABASE_URL="")
    tools = heartbeat("--list-tasks", "--json", RESEARCH_DATABASE_URL="")

    assert (text.returncode, tools.returncode) == (0, 0)
    assert "\n  edit_file(filepath, old_text, new_text): Replace text" in text.stdout
    assert "\n  db_task_history([limit]): " in text.stdout
    assert len(json.loads(tools.stdout)) == 22
    assert text.stderr + tools.stderr == ""


def test_init_db_may_run_again(database: Database, heartbeat: Heartbeat) -> None:
    database.execute("DROP TABLE claude_messages, claude_state, claude_observations")

    codes = [heartbeat("--init-db").returncode for _ in range(2)]

    assert codes == [0, 0]
    assert heartbeat().returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "first_line"),
    [
        (["list_tasks"], 0, "✅ SUCCESS"),
        (["docker_ps", "{}"], 1, "❌ FAILED"),
        (["db_agent_status"], 1, "❌ FAILED"),
        (["service_health", '{"port": 22}'], 2, "⛔ REJECTED"),
        (["service_health", '{"port": 5000} trailing'], 2, "⛔ REJECTED"),
        (["service_health\nPARAMS: {}"], 2, "⛔ REJECTED"),
        (["no_such_task"], 2, "⛔ REJECTED"),
    ],
)
def test_a_task_by_hand_prints_its_report(
    arguments: list[str], code: int, first_line: str, by_hand: Heartbeat
) -> None:
    result = by_hand(*arguments)

    assert result.stdout.splitlines()[0] == first_line
    assert result.returncode == code
    assert "**Original Request:** run by hand" in result.stdout


def test_a_mistyped_task_by_hand_is_answered_with_the_names(by_hand: Heartbeat) -> None:
    result = by_hand("docker_px")

    assert result.returncode == 2
    assert "no task docker_px; known: docker_ps, disk_space, " in result.stdout


def test_task_executor_without_a_name_shows_the_names(by_hand: Heartbeat) -> None:
    result = by_hand()

    assert result.returncode == 2
    assert "usage: task_executor.py NAME [PARAMS_JSON]" in result.stderr
    assert "docker_ps(): List running containers" in result.stderr


def test_a_cycle_that_is_started_without_streams_does_its_tasks(
    database: Database, environment: dict[str, str]
) -> None:
    task = send(database, "TASK: list_tasks")

    code = subprocess.run(
        [*CLOSED, sys.executable, "-I", PROGRAM_FOLDER / "heartbeat_public.py"],
        env={"HOME": "/root", **environment},
    ).returncode

    assert code == 0
    assert reports(database, task)[0]["data"]["outcome"] == "success"


def test_a_database_task_by_hand_uses_the_database_where_it_is_set(
    by_hand: Heartbeat, heartbeat: Heartbeat, database: Database
) -> None:
    heartbeat()

    elsewhere = {"PGHOSTADDR": "127.0.0.9", "PGPORT": "1"}
    result = by_hand("db_agent_status", RESEARCH_DATABASE_URL=database.url, **elsewhere)

    assert result.returncode == 0, result.stdout
    assert "public_claude   sleeping" in result.stdout


def test_a_change_by_hand_needs_no_database_and_is_under_no_brake(
    by_hand: Heartbeat, tmp_path: Path
) -> None:
    path = tmp_path / "services" / "notes.md"
    params = json.dumps({"filepath": str(path), "content": "by hand\n"})

    result = by_hand("write_file", params, FREEZE_WINDOWS="mon-sun 00:00-24:00 UTC")

    assert result.returncode == 0, result.stdout
    assert path.read_text() == "by hand\n"


@pytest.mark.parametrize("task", ["", "list_tasks"])
def test_a_terminal_that_knows_few_characters_ends_no_option_and_no_task(
    task: str, database: Database, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(database, "TASK: list_tasks", subject="\U0001f600 please")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", shown)

    code = by_hand_main([task], WHITELIST) if task else options.run(["--dry-run"], WHITELIST)

    shown.flush()
    assert code == 0
    assert (b"SUCCESS" if task else b"\\U0001f600 please") in shown.buffer.getvalue()

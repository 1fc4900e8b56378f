"""The whole loop on an embedded PostgreSQL: what is sent, what runs, what the tables then say.

Everything happens in a temporary folder; no database, file or container of this host is changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import psycopg2
from psycopg2.extras import RealDictCursor

from catalyst_heartbeat.demo.embedded_postgres import (
    INTERRUPTIONS,
    EmbeddedPostgres,
    PostgresFailed,
    end_with_parent,
    open_folder,
    signals_held,
)
from catalyst_heartbeat.host.containers import connect, listing, stands_for
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.settings import PROGRAM_FOLDER, VARIABLES, Settings, load

NO_DOCKER_HOST = "unix:///nonexistent/docker.sock"
DOCKER_SECONDS = 5
SHOWN_LINES = 40

EDITED_FILE = "/root/catalyst-trading-system/services/consciousness/heartbeat.py"
ORIGINAL = """\
import urllib.request


def fetch(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()
"""
EDITED = ORIGINAL.replace("timeout=30", "timeout=60")

# Three messages as big_bro has always sent them, then what must not simply run.
MESSAGES = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
VALUES ('big_bro', 'public_claude', 'task', 'Hourly Health Check',
        'TASK: docker_ps
PARAMS: {}
REASON: Routine hourly health check', 'normal', 'pending'),
       ('big_bro', 'public_claude', 'task', 'Restart Trading Service',
        'TASK: restart_service
PARAMS: {"service": "trading"}
REASON: Service unresponsive', 'high', 'pending'),
       ('big_bro', 'public_claude', 'task', 'Fix timeout',
        'TASK: edit_file
PARAMS: {"filepath": "/root/catalyst-trading-system/services/consciousness/heartbeat.py", \
"old_text": "timeout=30", "new_text": "timeout=60"}
REASON: Timeout too short', 'normal', 'pending'),
       ('big_bro', 'public_claude', 'task', 'Clean up',
        'TASK: rm_rf
PARAMS: {"path": "/"}
REASON: Disk nearly full', 'normal', 'pending'),
       ('big_bro', 'public_claude', 'task', 'Return early',
        'TASK: edit_file
PARAMS: {"filepath": "/root/catalyst-trading-system/services/consciousness/heartbeat.py", \
"old_text": "return answer.read()", "new_text": "return (answer.read()"}
REASON: An edit that is not valid Python', 'normal', 'pending'),
       ('big_bro', 'public_claude', 'task', 'Undo the timeout',
        'TASK: rollback_file
PARAMS: {"filepath": "/root/catalyst-trading-system/services/consciousness/heartbeat.py"}
REASON: 60 s is too long after all', 'low', 'pending');
"""


class DemoFailed(Exception):
    """What the rows and files show is not what the program promises."""


class Demo:
    """A database, a folder with one file to edit, and the settings of one agent for both."""

    def __init__(self, url: str, folder: Path, docker: dict[str, str]) -> None:
        self.url = url
        self.shown = 0
        self.file = folder / "services" / "heartbeat.py"
        self.backups = folder / "backups"
        self.changelog = folder / "CHANGELOG-AUTO.md"
        for name in ("services", "backups", "logs", "state"):
            (folder / name).mkdir()
        self.file.write_text(ORIGINAL)
        self.environment = {
            **{name: default for name, (default, _) in VARIABLES.items()},
            **docker,
            "RESEARCH_DATABASE_URL": url,
            "TASKS_REQUIRING_APPROVAL": "rollback_file",
            "ALLOWED_PATHS": str(folder / "services"),
            "BACKUP_DIR": str(self.backups),
            "CHANGELOG_PATH": str(self.changelog),
            "LOG_DIR": str(folder / "logs"),
            "STATE_DIR": str(folder / "state"),
            "HOME": str(folder),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def heartbeat(self, *arguments: str) -> None:
        """Run the real program; its log goes to the terminal."""
        command = [sys.executable, "-I", f"{PROGRAM_FOLDER}/heartbeat_public.py", *arguments]
        print("$", "heartbeat_public.py", *arguments, flush=True)
        process = None
        try:
            with signals_held():
                process = subprocess.Popen(
                    command, env=self.environment, preexec_fn=end_with_parent
                )
            code = process.wait()
        finally:
            if process:
                process.kill()
                process.wait()
        if code != 0:
            raise DemoFailed(f"heartbeat_public.py ended with exit code {code}")

    def execute(self, statement: str, params: Any = None) -> list[dict[str, Any]]:
        conn = psycopg2.connect(self.url)
        try:
            with conn, conn.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute(statement, params)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            conn.close()

    def messages(self, msg_type: str) -> list[dict[str, Any]]:
        query = "SELECT * FROM claude_messages WHERE msg_type = %s ORDER BY id"
        return self.execute(query, (msg_type,))

    def show_new_rows(self) -> None:
        query = "SELECT * FROM claude_messages WHERE id > %s ORDER BY id"
        for row in self.execute(query, (self.shown,)):
            self.shown = row["id"]
            show(row)


def main() -> int:
    # The server and the folders must go also when the terminal is closed.
    for number in INTERRUPTIONS:
        signal.signal(number, stop)
    try:
        docker = choose_docker()
        with tempfile.TemporaryDirectory(prefix="demo-", dir=open_folder()) as folder:
            say("Starting an embedded PostgreSQL, for this demo only")
            with EmbeddedPostgres() as server:
                run(Demo(server.url(), Path(folder), docker))
        say("All of it was real; the server has stopped, and its folders are gone")
    except KeyboardInterrupt:
        return 130
    except (DemoFailed, PostgresFailed) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def choose_docker() -> dict[str, str]:
    """Return what lets the heartbeat reach Docker, unless a demo restart could hit a container."""
    given = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    settings = load(given)
    try:
        taken = ", ".join(containers_in_reach(settings))
        trouble = taken and f"Docker is left alone: a restart here would hit {taken}."
    except TaskFailed as error:
        trouble = f"Without Docker: {error}"
    if trouble:
        print(f"{trouble}\nTasks that need it will fail and say so.")
        return {"DOCKER_HOST": NO_DOCKER_HOST}
    print("With Docker: the real list of containers; none of them is a service of this demo.")
    return {"DOCKER_HOST": settings.docker_host, **given}


def containers_in_reach(settings: Settings) -> list[str]:
    """Return the containers, running or not, that the demo's restart task could restart."""
    services = {*settings.trading_services, *settings.log_services}
    with connect(settings, DOCKER_SECONDS) as api:
        return [
            ", ".join(container.get("Names") or [container["Id"]])
            for container in listing(api, stopped=True)
            if any(stands_for(container, service, settings) for service in services)
        ]


def run(demo: Demo) -> None:
    say("Creating the tables")
    demo.heartbeat("--init-db")
    say("big_bro sends six tasks, as rows of claude_messages")
    demo.execute(MESSAGES.replace(EDITED_FILE, str(demo.file)))
    demo.show_new_rows()
    say("The heartbeat runs one cycle, as cron starts it every hour")
    demo.heartbeat()
    say("What it wrote: reports to big_bro, requests to craig_mobile")
    demo.show_new_rows()
    check_first_cycle(demo)
    say("craig_mobile decides, here from a shell")
    for escalation in demo.messages("escalation"):
        if escalation["data"]["task"] == "rollback_file":
            demo.heartbeat("--approve", str(escalation["id"]), "--yes")
        else:
            demo.heartbeat("--deny", str(escalation["id"]), "Certainly not", "--yes")
    demo.show_new_rows()
    say("The next cycle does what he decided")
    demo.heartbeat()
    demo.show_new_rows()
    check_second_cycle(demo)


def check_first_cycle(demo: Demo) -> None:
    say("What the rows and the file show")
    tasks = {task["subject"]: task["id"] for task in demo.messages("task")}
    reports = {report["reply_to_id"]: report for report in demo.messages("response")}
    cards = {card["reply_to_id"]: card for card in demo.messages("escalation")}
    expect("every task has its report", set(reports) == set(tasks.values()))
    outcomes = {subject: reports[id]["data"]["outcome"] for subject, id in tasks.items()}
    first = min(reports, key=lambda id: reports[id]["id"])
    expect("the task of high priority ran first", first == tasks["Restart Trading Service"])
    expect("the edit was made", outcomes["Fix timeout"] == "success")
    expect("the file says timeout=60", demo.file.read_text() == EDITED)
    expect("a backup holds what it said before", ORIGINAL in backups(demo))
    expect("the changelog names the file", str(demo.file) in demo.changelog.read_text())
    expect("the edit that is not valid Python was refused", outcomes["Return early"] == "failed")
    expect("the unknown task waits for approval", outcomes["Clean up"] == "escalated")
    subject = cards[tasks["Clean up"]]["subject"]
    expect("its request has its number and name", subject.endswith(f"#{tasks['Clean up']}: rm_rf"))
    expect("the rollback waits for approval", outcomes["Undo the timeout"] == "escalated")


def check_second_cycle(demo: Demo) -> None:
    say("What the rows and the file show")
    tasks = {task["subject"]: task["id"] for task in demo.messages("task")}
    final = [report for report in demo.messages("response") if (report["data"] or {}).get("final")]
    outcomes = {report["reply_to_id"]: report["data"]["outcome"] for report in final}
    expect("every task has exactly one final report", len(final) == len(outcomes) == len(tasks))
    expect("the approved rollback ran", outcomes[tasks["Undo the timeout"]] == "success")
    expect("the file says timeout=30 again", demo.file.read_text() == ORIGINAL)
    expect("the unknown task was denied", outcomes[tasks["Clean up"]] == "denied")
    waiting = [row for kind in ("task", "escalation") for row in demo.messages(kind)]
    expect("nothing is left to do", {row["status"] for row in waiting} == {"processed"})


def backups(demo: Demo) -> list[str]:
    return [path.read_text() for path in demo.backups.rglob("*") if path.is_file()]


def expect(what: str, holds: bool) -> None:
    if not holds:
        raise DemoFailed(f"not so: {what}")
    print(f"  ✓ {what}")


def say(heading: str) -> None:
    print(f"\n== {heading}", flush=True)


def show(row: dict[str, Any]) -> None:
    """Print a message as it stands in the table, wrapped to the terminal's width."""
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    way = f"{row['from_agent']} -> {row['to_agent']}"
    print(f"\n#{row['id']}  {row['msg_type']}  {way}  {row['priority']}  {row['status']}")
    print(row["subject"])
    for line in shown_lines(row["body"], width - 4):
        print("  |", line)


def shown_lines(text: str, width: int) -> list[str]:
    lines = []
    for line in text.splitlines():
        # Wrapped lines keep every blank, so that a diff still reads as one.
        lines += textwrap.wrap(line, width, drop_whitespace=False) or [""]
    more = len(lines) - SHOWN_LINES
    return lines if more <= 0 else [*lines[:SHOWN_LINES], f"({more} more lines)"]

"""The server, the deployed copies of the program, and the stopwatch."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg2

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

FOLDER = Path(__file__).resolve().parent
PROGRAM = FOLDER.parent
# Reads one small file: the least that a whitelisted task does.
CHEAP_TASK = 'TASK: catalyst_logs\nPARAMS: {"logfile": "small"}\nREASON: benchmark'
WRAPPER = "run-heartbeat-public.sh"
DEPLOYED = (
    "heartbeat_public.py", "task_executor.py", WRAPPER, "requirements.txt", "requirements.lock"
)  # fmt: skip
BARE_WRAPPER = """#!/bin/sh
exec "${0%/*}/.venv/bin/python" -I "${0%/*}/bare_idle.py"
"""
# A process of its own between, since a child's peak memory begins with its parent's.
LAUNCHER = """
import os, sys, time
started = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - started, usage.ru_maxrss, status)
"""
TASKS = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
SELECT 'big_bro', 'public_claude', 'task', 'Benchmark ' || number, %(body)s, 'normal', 'pending'
  FROM generate_series(1, %(count)s) AS number
"""


class Spent(NamedTuple):
    """What a process took: seconds by the clock on the wall, and KiB at its peak."""

    seconds: float
    peak: int


class Contender(NamedTuple):
    """A program to measure: what to do before each round, what to run, where."""

    prepare: Callable[[], object]
    command: list[str]
    environment: dict[str, str]


class Machine:
    """The server, and a copy of the program with a .env beside it, for each database."""

    def __init__(self, server: EmbeddedPostgres, folder: Path, quick: bool) -> None:
        self.server = server
        self.folder = folder
        self.rounds = 3 if quick else 11
        self.jobs = 100 if quick else 1000
        self.history = 10_000 if quick else 1_000_000
        for name in ("logs", "backups", "state"):
            (folder / name).mkdir()
        (folder / "logs" / "small.log").write_text("one line\n")
        self.venv = folder / "built" / ".venv"
        self.copy_program(self.venv.parent)
        # The environment as the wrapper makes it; every copy of the program shares it.
        subprocess.run(
            [self.venv.parent / WRAPPER, "--list-tasks"], check=True, capture_output=True
        )

    def deploy(self, name: str, user: str = "postgres") -> str:
        """Make a database with the program's tables and a copy of the program that uses it."""
        url = self.database(name)
        self.execute(url, (PROGRAM / "catalyst_heartbeat/sql/schema.sql").read_text())
        place = self.folder / name
        self.copy_program(place)
        (place / ".venv").symlink_to(self.venv)
        (place / "bare.sh").write_text(BARE_WRAPPER)
        (place / "bare.sh").chmod(0o755)
        (place / ".env").write_text(
            f"RESEARCH_DATABASE_URL={self.server.url(name, user)}\nMAX_TASKS_PER_RUN=100000\n"
            f"LOG_DIR={self.folder}/logs\nBACKUP_DIR={self.folder}/backups\n"
            f"STATE_DIR={self.folder}/state\n"
        )
        return url

    def copy_program(self, place: Path) -> None:
        place.mkdir()
        for source in (*(PROGRAM / name for name in DEPLOYED), *FOLDER.glob("bare_*.py")):
            shutil.copy2(source, place)
        package = place / "catalyst_heartbeat"
        shutil.copytree(PROGRAM / package.name, package, ignore=shutil.ignore_patterns("*.pyc"))

    def database(self, name: str) -> str:
        self.execute(self.server.url(), f"CREATE DATABASE {name}")
        return self.server.url(name)

    def execute(self, url: str, *statements: str, **params: object) -> None:
        with closing(psycopg2.connect(url)) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement, params or None)

    def fill(self, url: str, count: int, body: str = CHEAP_TASK) -> None:
        """Replace the messages by so many pending tasks."""
        self.execute(url, "TRUNCATE claude_messages")
        self.execute(url, TASKS, count=count, body=body)
        self.execute(url, "VACUUM ANALYZE claude_messages", "CHECKPOINT")

    def heartbeat(self, name: str, **variables: str) -> list[str]:
        """Return the command of a cycle, as cron has it."""
        settings = [f"{key}={value}" for key, value in variables.items()]
        return ["/usr/bin/env", *settings, f"{self.folder / name / WRAPPER}"]

    def bare_loop(self, name: str) -> list[str]:
        place = self.folder / name
        return [f"{place}/.venv/bin/python", "-I", f"{place}/bare_loop.py"]

    def contend(self, contenders: dict[str, Contender], rounds: int = 0) -> dict[str, Spent]:
        """Run each in turn, round after round, and return the medians; the first warms up."""
        found: dict[str, list[Spent]] = {name: [] for name in contenders}
        for turn in range((rounds or self.rounds) + 1):
            for name, contender in contenders.items():
                contender.prepare()
                spent = launch(contender)
                if turn:
                    found[name].append(spent)
        return {name: median(spent) for name, spent in found.items()}


def launch(contender: Contender) -> Spent:
    """Run a program once; its log goes to a file, as under cron."""
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            [sys.executable, "-ISc", LAUNCHER, *contender.command],
            env={"PATH": "/usr/bin:/bin", "HOME": "/root", **contender.environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=True,
        )
        seconds, peak, status = done.stdout.split()[-3:]
        if status != "0":
            log.seek(0)
            raise SystemExit(f"{' '.join(contender.command)} failed:\n{log.read()[-2000:]}")
    return Spent(float(seconds), int(peak))


def median(spent: list[Spent]) -> Spent:
    return Spent(
        statistics.median(one.seconds for one in spent),
        int(statistics.median(one.peak for one in spent)),
    )

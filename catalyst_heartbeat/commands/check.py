"""--check: what a cycle needs, and what its tasks need, one finding a line."""

from __future__ import annotations

import math
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg2

from catalyst_heartbeat.commands.init_db import SCHEMA
from catalyst_heartbeat.executor.decide import check_names
from catalyst_heartbeat.host import containers, systemd
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.queue import messages
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.settings import Settings, SettingsError, env_file
from catalyst_heartbeat.tasks.base import Task

LONGEST_SKEW_SECONDS = 5
# Cron starts a cycle every hour.
LATEST_CYCLE_SECONDS = 2 * 3600
DOCKER_SECONDS = 10


class Finding(NamedTuple):
    """A line of --check. A cycle can do its job beside a warning, not beside a failure."""

    level: Literal["ok", "warn", "FAIL"]
    subject: str
    text: str


def check(
    database: Database, settings: Settings, whitelist: Mapping[str, Task]
) -> Iterator[Finding]:
    """Look at all that a cycle needs, then at what its tasks need."""
    yield from check_settings(settings, whitelist)
    try:
        yield from check_database(database)
        faults = schema_faults(database)
        yield from (Finding("FAIL", "schema", fault) for fault in faults)
        if not faults:
            yield from check_schema(database)
            yield check_identity(database)
            yield check_last_cycle(database)
    except (DatabaseLost, psycopg2.Error) as error:
        yield Finding("FAIL", "database", first_line(error))
    yield from check_services(settings)
    yield from check_folders(settings)


def check_settings(settings: Settings, whitelist: Mapping[str, Task]) -> Iterator[Finding]:

    path = env_file()
    try:
        check_names(settings, whitelist)
        yield Finding("ok", "settings", f"agent {settings.agent_id}, {path or 'no .env found'}")
    except SettingsError as error:
        yield Finding("FAIL", "settings", str(error))
    if path and path.stat().st_mode & 0o077:
        yield Finding("warn", "settings", f"others may read the password: chmod 600 {path}")


def check_database(database: Database) -> Iterator[Finding]:
    """Say which server answers, and how far its clock is from this machine's."""
    sent = time.time()
    version, clock = messages.server(database)
    skew = clock - (sent + time.time()) / 2
    yield Finding("ok", "database", f"PostgreSQL {version}")
    level: Literal["ok", "warn"] = "warn" if abs(skew) > LONGEST_SKEW_SECONDS else "ok"
    yield Finding(level, "clock", f"{abs(skew):.1f} s from the database's")


def schema_faults(database: Database) -> list[str]:
    """Say what the tables lack, each with the command that adds it."""
    missing = messages.missing_columns(database)
    faults = []
    for table, columns in messages.NEEDED_COLUMNS.items():
        lacking = [column for column in columns if f"{table}.{column}" in missing]
        if len(lacking) == len(columns):
            faults.append(f"no table {table}: run-heartbeat-public.sh --init-db")
        else:
            faults += [f"no {table}.{column}: {add_column(table, column)}" for column in lacking]
    return faults


def add_column(table: str, column: str) -> str:
    """Return the statement that adds a column as schema.sql defines it."""
    definitions = SCHEMA.read_text().partition(f"EXISTS {table} (")[2].partition("\n);")[0]
    found = re.search(rf"^ *{column} +(.*?),?$", definitions, re.M)
    definition = found[1] if found else ""
    return f"ALTER TABLE {table} ADD COLUMN {column} {definition}"


def check_schema(database: Database) -> Iterator[Finding]:
    wanted = re.findall(r"INDEX IF NOT EXISTS (\w+)", SCHEMA.read_text())
    there = messages.indexes(database)
    missing = [name for name in wanted if name not in there]
    if missing:
        yield Finding(
            "warn", "schema", f"no {', '.join(missing)}: run-heartbeat-public.sh --init-db"
        )
    else:
        yield Finding("ok", "schema", "all columns and indexes")


def check_identity(database: Database) -> Finding:
    """Say whether roles.sql is in force for this login: whether from_agent can be trusted."""
    login, held, creates = messages.identity(database)
    if not held:
        why = "from_agent is a claim; roles.sql makes it an identity"
        return Finding("warn", "identity", f"not enforced for login {login}: {why}")
    if login != database.agent:
        return Finding("FAIL", "identity", f"login {login} cannot write as {database.agent}")
    if creates:
        why = "may create objects in the tables' schema, and so undo roles.sql; run it again"
        return Finding("FAIL", "identity", f"login {login} {why}")
    return Finding("ok", "identity", f"enforced, login {login}")


def check_last_cycle(database: Database) -> Finding:
    state = messages.state(database)
    if state is None or state.polled is None:
        return Finding("warn", "cycle", f"{database.agent} has had none yet")
    if state.polled > LATEST_CYCLE_SECONDS:
        return Finding("warn", "cycle", f"the last was {age(state.polled)} ago: does cron run?")
    return Finding("ok", "cycle", f"the last was {age(state.polled)} ago")


def check_services(settings: Settings) -> Iterator[Finding]:
    """Look at what the tasks of this host need: Docker and systemd."""

    try:
        with containers.connect(settings, DOCKER_SECONDS) as api:
            live = containers.listing(api, stopped=True)
        found = [
            service
            for service in settings.trading_services
            if any(containers.stands_for(container, service, settings) for container in live)
        ]
        absent = [service for service in settings.trading_services if service not in found]
        level: Literal["ok", "warn"] = "warn" if absent else "ok"
        missing = f", none for {', '.join(absent)}" if absent else ""
        yield Finding(level, "docker", f"{len(live)} containers{missing}")
    except TaskFailed as error:
        yield Finding("warn", "docker", str(error))
    try:
        systemd.require()
        yield Finding("ok", "systemd", "running")
    except TaskFailed as error:
        yield Finding("warn", "systemd", str(error))


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Look at each folder; only STATE_DIR is required, for reports that cannot be stored."""
    yield check_state_dir(Path(settings.state_dir))
    backup = settings.backup_dir
    yield check_folder("BACKUP_DIR", backup, os.W_OK, f": install -d -m 700 {backup}")
    yield check_folder("CHANGELOG", os.path.dirname(settings.changelog_path), os.W_OK)
    yield check_folder("LOG_DIR", settings.log_dir, os.R_OK)
    for path in settings.allowed_paths:
        yield check_folder("ALLOWED", path, os.W_OK)


def check_state_dir(path: Path) -> Finding:
    existing = path
    while not os.path.exists(existing):
        existing = existing.parent
    if not (os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)):
        return Finding("FAIL", "STATE_DIR", f"{path}: cannot write in {existing}")
    if existing != path:
        return Finding("ok", "STATE_DIR", f"{path} is made when it is needed")
    return check_folder("STATE_DIR", str(path), os.W_OK)


def check_folder(subject: str, path: str, need: int, remedy: str = "") -> Finding:
    """Say whether a folder is there, can be used, and is closed to others."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return Finding("warn", subject, f"{path}: {error.strerror}{remedy}")
    if not stat.S_ISDIR(mode):
        return Finding("warn", subject, f"{path} is not a folder")
    if not os.access(path, need | os.X_OK):
        right = "write in" if need == os.W_OK else "read"
        return Finding("warn", subject, f"{path}: this user cannot {right} it")
    if mode & 0o022:
        return Finding("warn", subject, f"{path}: others may write in it: chmod go-w {path}")
    return Finding("ok", subject, path)


def age(seconds: float | None) -> str:
    """Return a length of time as people say it."""
    if seconds is None or not math.isfinite(seconds):
        return "an unknown time"
    minutes = max(0, int(seconds)) // 60
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days"

"""--check: what a cycle needs, and what its tasks need, one finding a line."""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psycopg2

from catalyst_heartbeat import env_file
from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.approvals.card import Card
from catalyst_heartbeat.approvals.decisions import Escalation
from catalyst_heartbeat.commands.init_db import SCHEMA
from catalyst_heartbeat.executor.decide import brakes
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.files.backups import LOCK_NAME, check_lock
from catalyst_heartbeat.host import beneath, containers, restarts, systemd
from catalyst_heartbeat.host.restarts import Restart
from catalyst_heartbeat.outcome import Context, TaskFailed
from catalyst_heartbeat.queue import claims, endings, listing, rights, state
from catalyst_heartbeat.queue.claims import Terms
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, Rehearsal, first_line
from catalyst_heartbeat.queue.endings import Ending
from catalyst_heartbeat.report import Report
from catalyst_heartbeat.settings import (
    VARIABLES,
    Settings,
    SettingsError,
    check_names,
    read_env_file,
)
from catalyst_heartbeat.tasks import service_control
from catalyst_heartbeat.tasks.base import Task
from catalyst_heartbeat.text import clean_line

LONGEST_SKEW_SECONDS = 5
# Cron starts a cycle every hour.
LATEST_CYCLE_SECONDS = 2 * 3600
TOOL_SECONDS = 10
INIT_DB = "run-heartbeat-public.sh --init-db"
# How alike two names are, of 1, where one is probably meant to be the other.
ALMOST = 0.85
# What lay beside heartbeat_public.py before there was a package.
OLD_FILES = (
    "approval_statements.py", "approvals.py", "checks.py", "connection.py", "demo.py",
    "dry_run.py", "embedded_postgres.py", "inspection.py", "inspection_statements.py",
    "log_format.py", "messages.py", "outbox.py", "ping.py", "recovery.py", "reports.py",
    "settings.py", "statements.py", "task_format.py", "tasks/base.py",
)  # fmt: skip

GUINEA_PIGS = """
-- Two tasks for the rehearsal to claim, should there be none.
INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body, status)
SELECT %(agent)s, %(agent)s, 'task', 'urgent', '--check', 'TASK: list_tasks', 'pending'
  FROM generate_series(1, 2)
"""


SERVER = """
SELECT current_setting('server_version'), EXTRACT(EPOCH FROM clock_timestamp())::float8
"""

INDEXES = """
-- The indexes on claude_messages that can be used.
SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
 WHERE indrelid = to_regclass('claude_messages') AND indisvalid
"""


class Finding(NamedTuple):
    """A line of --check. A cycle can do its job beside a warning, not beside a failure."""

    level: Literal["ok", "warn", "FAIL"]
    subject: str
    text: str


def print_findings(findings: Iterable[Finding], secrets: tuple[str, ...], *, as_json: bool) -> int:
    """Print the findings, as they come where people read them, and return the exit code."""
    shown = (found._replace(text=clean_line(found.text, secrets)) for found in findings)
    printed = []
    for found in shown:
        printed.append(found)
        if not as_json:
            print(f"{found.level:5}{found.subject:11}{found.text}", flush=True)
    if as_json:
        print(json.dumps([found._asdict() for found in printed], indent=2))
    return int(any(found.level == "FAIL" for found in printed))


def check(agent: Agent) -> Iterator[Finding]:
    """Look at all that a cycle needs, then at what its tasks need."""
    database, settings, whitelist = agent.database, agent.settings, agent.whitelist
    yield from check_settings(settings, whitelist)
    yield from check_program()
    try:
        yield from check_database(database)
        yield from check_schema(database)
        yield from check_ids(database)
        yield check_cycle(settings)
        yield from check_identity(database)
        yield check_last_cycle(database)
        for brake in brakes(agent):
            yield Finding("warn", "brakes", f"what changes something needs approval: {brake}")
    except DatabaseLost as error:
        yield Finding("FAIL", "database", str(error))
    except psycopg2.errors.UndefinedTable as error:
        yield Finding("FAIL", "schema", f"{first_line(error)}: {INIT_DB}")
    except psycopg2.errors.UndefinedColumn as error:
        yield Finding("FAIL", "schema", f"{first_line(error)}: add it as {SCHEMA} has it")
    except psycopg2.Error as error:
        yield Finding("FAIL", "database", first_line(error))
    yield from check_docker(settings, whitelist)
    yield from check_units(settings)
    yield from check_folders(settings)


def check_settings(settings: Settings, whitelist: Mapping[str, Task]) -> Iterator[Finding]:
    path = env_file.find(program_settings.PROGRAM_FOLDER)
    try:
        check_names(settings, whitelist)
        yield Finding("ok", "settings", f"agent {settings.agent_id}, {path or 'no .env found'}")
    except SettingsError as error:
        yield Finding("FAIL", "settings", str(error))
    if path and os.stat(path).st_mode & 0o077:
        yield Finding("warn", "settings", f"others may read {path}: chmod 600 {path}")
    for name in sorted({*os.environ, *read_env_file()} - VARIABLES.keys()):
        for meant in difflib.get_close_matches(name.upper(), VARIABLES, 1, ALMOST):
            yield Finding("warn", "settings", f"{name} is not a setting; is {meant} meant?")
    defaults = program_settings.load({"TRADING_SERVICES": ",".join(settings.trading_services)})
    for name, value in settings._asdict().items():
        if name != "secrets" and value != getattr(defaults, name):
            yield Finding("ok", "settings", f"{name.upper()}={shown(value)}")


def shown(value: Any) -> str:
    """Return a setting as it was set, of a URL only what is no secret."""
    if isinstance(value, tuple):
        return ",".join(getattr(item, "text", str(item)) for item in value)
    url = re.match(r"(https?://|postgres(?:ql)?://)(?:[^/?]*@)?([^/?]*)(/?)", str(value))
    return f"{url[1]}{url[2]}{url[3] and '/...'}" if url else str(value)


def check_program() -> Iterator[Finding]:
    folder = program_settings.PROGRAM_FOLDER
    old = [name for name in OLD_FILES if os.path.exists(f"{folder}/{name}")]
    if old:
        why = "of the version before the package, or another program's; it is never imported"
        yield Finding("warn", "program", f"{', '.join(old)} in {folder}: {why}")


def check_database(database: Database) -> Iterator[Finding]:
    """Say which server answers, and how far its clock is from this machine's."""
    sent = time.time()
    ((version, clock),) = database.fetch(SERVER)
    skew = clock - (sent + time.time()) / 2
    yield Finding("ok", "database", f"PostgreSQL {version}, schema {database.schema}")
    level: Literal["ok", "warn"] = "warn" if abs(skew) > LONGEST_SKEW_SECONDS else "ok"
    yield Finding(level, "clock", f"{abs(skew):.1f} s from the database's")


def check_schema(database: Database) -> Iterator[Finding]:
    wanted = re.findall(r"INDEX IF NOT EXISTS (\w+)", SCHEMA.read_text())
    there = database.fetch(INDEXES)
    missing = [name for name in wanted if (name,) not in there]
    if missing:
        yield Finding("warn", "schema", f"no {', '.join(missing)}: {INIT_DB}")
    else:
        yield Finding("ok", "schema", "all indexes")


def check_cycle(settings: Settings) -> Finding:
    """Do all that a cycle does to the tables, and take it back; raise what it would raise."""
    with closing(Rehearsal(settings.research_database_url, settings.agent_id)) as stage:
        state.check_tables(stage)
        mode, _ = state.wake(stage, settings.approver)
        stage.fetch(GUINEA_PIGS, {"agent": stage.agent})
        terms = Terms((stage.agent,), settings.task_expiry_hours, {"list_tasks": 10}, [], {})
        claim = claims.claim_next(stage, terms)
        if claim:
            report = Report("--check", "--check", {"final": True})
            if not endings.finish(stage, Ending(claim.id, claim.token, "processed", report)):
                return Finding("FAIL", "tables", "a claim does not last: does a trigger change it?")
            claim = claims.claim_next(stage, terms)
        elif mode == "awake" and not listing.at_work(stage):
            return Finding("FAIL", "tables", "no claim is taken: does a trigger drop it?")
        if claim:
            card = Card("--check", "--check", {"digest": ""}, time.time() + 60, "--check")
            notice = Report("--check", "--check", {"final": False})
            decisions.escalate(stage, claim, settings.approver, Escalation(card, notice))
        state.observe(stage, "--check", "--check")
        state.rest(stage, "--check", acted=True, error="--check")
    if claim:
        return Finding("ok", "tables", "a claim, a report and a request work (taken back)")
    why = f"the agent is {mode}" if mode != "awake" else "another heartbeat is at work"
    return Finding("warn", "tables", f"no claim was tried: {why}")


def check_identity(database: Database) -> Iterator[Finding]:
    """Say whether roles.sql is in force for this login: whether from_agent can be trusted."""
    found = rights.rights(database)
    yield from (Finding("FAIL", "identity", fault) for fault in found.faults)
    if not found.enforced:
        why = "from_agent is a claim; roles.sql makes it an identity"
        yield Finding("warn", "identity", f"not enforced for login {found.login}: {why}")
    elif not found.faults:
        yield Finding("ok", "identity", f"enforced, login {found.login}")


def check_ids(database: Database) -> Iterator[Finding]:
    for table in rights.ids_left(database):
        if table.few:
            left = f"{table.left} ids are left in {table.table}"
            yield Finding("warn", "ids", f"{left}: {table.remedy}")


def check_last_cycle(database: Database) -> Finding:
    row = state.state(database)
    if row is None or row.polled is None:
        return Finding("warn", "cycle", f"{database.agent} has had none yet")
    if row.polled > LATEST_CYCLE_SECONDS:
        return Finding("warn", "cycle", f"the last was {age(row.polled)} ago: does cron run?")
    return Finding("ok", "cycle", f"the last was {age(row.polled)} ago")


def check_docker(settings: Settings, whitelist: Mapping[str, Task]) -> Iterator[Finding]:
    """Look for each service's container, and whether it can be restarted in the task's time."""
    try:
        with containers.connect(settings, TOOL_SECONDS) as api:
            live = containers.listing(api, stopped=True)
            planned = [
                Restart(service)
                for service in settings.trading_services
                if any(containers.stands_for(container, service, settings) for container in live)
            ]
            for restart in planned:
                restarts.plan(api, restart, settings)
    except TaskFailed as error:
        yield Finding("warn", "docker", str(error))
        return
    absent = set(settings.trading_services) - {restart.service for restart in planned}
    missing = f", none for {', '.join(sorted(absent))}" if absent else ""
    yield Finding("warn" if absent else "ok", "docker", f"{len(live)} containers{missing}")
    for task, groups in (
        ("restart_service", [[restart] for restart in planned]),
        ("restart_all_services", [planned]),
    ):
        for group in groups:
            try:
                service_control.check_fit(group, whitelist[task].timeout)
            except TaskFailed as error:
                yield Finding("warn", "docker", f"{task}: {error}")


def check_units(settings: Settings) -> Iterator[Finding]:
    try:
        systemd.require()
        for unit in dict.fromkeys((*settings.system_units, settings.dashboard_unit)):
            context = Context(settings, 0, "", "", time.monotonic() + TOOL_SECONDS)
            state = systemd.properties(unit, ("LoadState",), context)["LoadState"]
            yield Finding("ok" if state == "loaded" else "warn", "systemd", f"{unit}: {state}")
    except TaskFailed as error:
        yield Finding("warn", "systemd", str(error))


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Look at each folder; only STATE_DIR is required, for reports that cannot be stored."""
    yield check_state_dir(Path(settings.state_dir))
    backup = settings.backup_dir
    folder = check_folder("BACKUP_DIR", backup, os.W_OK, f": install -d -m 700 {backup}")
    yield check_opened(folder, f"{backup}/{LOCK_NAME}", check_lock)
    changelog = settings.changelog_path
    folder = check_folder("CHANGELOG", os.path.dirname(changelog), os.W_OK)
    yield check_opened(folder, changelog, beneath.check_plain)
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
    return check_folder("STATE_DIR", os.path.realpath(path), os.W_OK)


def check_folder(subject: str, path: str, need: int, remedy: str = "") -> Finding:
    """Say whether a folder is there, can be used as a task does, and is closed to others."""
    try:
        with beneath.closing(beneath.open_folder(path)) as folder:
            mode = os.fstat(folder).st_mode
    except OSError as error:
        return Finding("warn", subject, f"{beneath.cannot_open(error, path)}{remedy}")
    if not os.access(path, need | os.X_OK):
        right = "write in" if need == os.W_OK else "read"
        return Finding("warn", subject, f"{path}: this user cannot {right} it")
    if need == os.W_OK and (trouble := write_trouble(path)):
        return Finding("warn", subject, f"{path}: {trouble}")
    if mode & 0o022:
        return Finding("warn", subject, f"{path}: others may write in it: chmod go-w {path}")
    return Finding("ok", subject, path)


def check_opened(folder: Finding, path: str, check: Callable[[int, str], object]) -> Finding:
    """Return what was found of a folder, or why what a task opens in it would be refused."""
    try:
        with beneath.closing(beneath.open_path(*os.path.split(path), os.O_RDONLY)) as opened:
            check(opened, path)
    except FileNotFoundError:
        return folder
    except (OSError, TaskFailed) as error:
        said = beneath.cannot_open(error, path) if isinstance(error, OSError) else error
        return folder if folder.level != "ok" else Finding("warn", folder.subject, str(said))
    return folder


def write_trouble(folder: str) -> str:
    """Return why a file cannot be written in a folder, having tried it with one without a name."""
    try:
        with beneath.closing(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)) as file:
            os.write(file, bytes(4096))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # not every file system has these
            return error.strerror or str(error)
    return ""


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

"""The settings, read once from the environment and the .env file found upward from this folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Where the operator's files and .env are: the package lies in it.
PROGRAM_FOLDER = Path(__file__).resolve().parent.parent

SECRET_NAME = re.compile(
    r"PASS|_PWD?$|SECRET|TOKEN|CREDENTIAL|PRIVATE|AUTH(?!OR)|API_?KEY|(^|_)KEY(_|$)", re.IGNORECASE
)
URL_PASSWORDS = (
    re.compile(r"://[^:@/\s]*:([^@\s]+)@"),
    re.compile(r"://[^:@/\s]*:(\S+)@"),
    re.compile(r"[?&]password=([^&\s]+)"),
)
# A shorter value, or one of these words, would blank out half of every report.
SHORTEST_SECRET = 4
SECRET_LINE_LENGTH = 8
NOT_SECRETS = frozenset({"true", "false", "none", "null"})


class SettingsError(Exception):
    """A setting is missing or bad; the message is one line that names the variable."""


class Settings(NamedTuple):
    """Every setting under its variable's name in lower case, and what must never be shown."""

    research_database_url: str
    agent_id: str
    task_senders: tuple[str, ...]
    approver: str
    tasks_requiring_approval: tuple[str, ...]
    task_expiry_hours: int
    approval_expiry_hours: int
    max_open_escalations: int
    max_tasks_per_run: int
    run_seconds: int
    allowed_paths: tuple[str, ...]
    backup_dir: str
    changelog_path: str
    log_dir: str
    state_dir: str
    trading_services: tuple[str, ...]
    log_services: tuple[str, ...]
    container_prefix: str
    health_ports: tuple[int, ...]
    system_units: tuple[str, ...]
    dashboard_unit: str
    backup_keep: int
    heartbeat_ping_url: str
    docker_host: str
    secrets: tuple[str, ...]


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; a variable of the environment wins over the same name in .env.

    Raises SettingsError for the first bad value.
    """
    file: Mapping[str, str] = {}
    if environment is None:
        file, environment = read_env_file(), os.environ
    secrets = collect_secrets(file, environment)
    environment = {**file, **environment}
    values: dict[str, Any] = {}
    for name, (default, parse) in VARIABLES.items():
        if name == "LOG_SERVICES":
            default = ",".join([*values["trading_services"], "orchestration"])
        try:
            values[name.lower()] = parse(environment.get(name, default))
        except ValueError as error:
            raise SettingsError(" ".join(f"{name}: {error}".split())) from None
    if values["approver"] == values["agent_id"]:
        raise SettingsError("APPROVER: must not be the agent itself (AGENT_ID)")
    return Settings(**values, secrets=secrets)


def read_env_file() -> dict[str, str]:
    """Return what the nearest .env says, {} without one."""
    path = env_file()
    if path is None:
        return {}
    from dotenv import dotenv_values  # slow, and not needed where there is no .env

    try:
        values = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env: cannot read {path}: {error}") from None
    return {name: value for name, value in values.items() if value is not None}


def env_file() -> Path | None:
    """Return the nearest .env, this folder's first, then its parents'."""
    found = (folder / ".env" for folder in (PROGRAM_FOLDER, *PROGRAM_FOLDER.parents))
    return next((path for path in found if path.is_file()), None)


def collect_secrets(*environments: Mapping[str, str]) -> tuple[str, ...]:
    """Return every value that must never be shown, longest first.

    A secret of many lines is also each of its longer lines: they may be shown apart.
    """
    found: set[str] = set()
    for name, value in (item for variables in environments for item in variables.items()):
        if SECRET_NAME.search(name):
            found |= {value, value.strip()}
            if "\n" in value:
                found.update(filter(is_secret_line, map(str.strip, value.split("\n"))))
        if "://" in value:
            for pattern in URL_PASSWORDS:
                found.update(pattern.findall(value))
    found |= {percent_decoded(value) for value in found if "%" in value}
    kept = {value for value in found if len(value) >= SHORTEST_SECRET}
    return tuple(sorted(kept - NOT_SECRETS, key=lambda value: (-len(value), value)))


def is_secret_line(line: str) -> bool:
    """Tell a line of a secret from a short one and from the frame that every private key has."""
    return len(line) >= SECRET_LINE_LENGTH and not line.startswith("----")


def percent_decoded(value: str) -> str:
    from urllib.parse import unquote  # rarely needed, and an idle cycle pays for every import

    return unquote(value)


def database_url(value: str) -> str:
    if value and not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("not a PostgreSQL URL; expected postgresql://user:password@host/database")
    return value


def agent(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,50}", value) or value == "all":
        raise ValueError(f'"{value}" is not an agent; expected 1-50 letters, digits, "_" or "-"')
    return value


def agents(value: str) -> tuple[str, ...]:
    return tuple(agent(item) for item in items(value))


def name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}", value):
        raise ValueError(f'"{value}" is not a name; expected letters, digits and "_.@-"')
    return value


def names(value: str) -> tuple[str, ...]:
    return tuple(name(item) for item in items(value))


def names_or_none(value: str) -> tuple[str, ...]:
    return names(value) if value.strip() else ()


def items(value: str) -> list[str]:
    """Split at commas; blanks around an item do not count."""
    found = [item.strip() for item in value.split(",")]
    if not all(found):
        raise ValueError(f'"{value}" has an empty item; expected a comma-separated list')
    return found


def prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,50}", value):
        raise ValueError(f'"{value}" is not a prefix; expected letters, digits and "_.-"')
    return value


def whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f'"{value}" is not a whole number from {least} to {most}')
        return int(value)

    return parse


def folder(value: str) -> str:
    """Return an absolute path without its trailing slash, refusing what would need resolving."""
    path = value.rstrip("/")
    if not path.startswith("/") or {"", ".", ".."} & set(path.split("/")[1:]):
        raise ValueError(f'"{value}" is not an absolute path without "//", "." and ".."')
    return path


def folders(value: str) -> tuple[str, ...]:
    return tuple(folder(item) for item in value.split(":"))


def ports(value: str) -> tuple[int, ...]:
    """Return the ports of "5000-5009" or "5000,5001,6000-6010", in ascending order."""
    found: set[int] = set()
    for item in items(value):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f'"{item}" is not a port or a range of ports such as 5000-5009')
        found.update(range(first, last + 1))
    if len(found) > 100:
        raise ValueError(f"{len(found)} ports; at most 100 are surveyed")
    return tuple(sorted(found))


def ping_url(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^\s/]+\S*", value):
        raise ValueError("not an http:// or https:// URL")
    return value


def text(value: str) -> str:
    return value


# Variable -> (default, reader); a reader raises ValueError with what was found and what is right.
VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "RESEARCH_DATABASE_URL": ("", database_url),
    "AGENT_ID": ("public_claude", agent),
    "TASK_SENDERS": ("big_bro", agents),
    "APPROVER": ("craig_mobile", agent),
    "TASKS_REQUIRING_APPROVAL": ("", names_or_none),
    "TASK_EXPIRY_HOURS": ("24", whole_number(1, 8760)),
    "APPROVAL_EXPIRY_HOURS": ("24", whole_number(1, 8760)),
    "MAX_OPEN_ESCALATIONS": ("20", whole_number(1, 1000)),
    "MAX_TASKS_PER_RUN": ("100", whole_number(1, 1_000_000)),
    "RUN_SECONDS": ("3000", whole_number(1, 86_400)),
    "ALLOWED_PATHS": (
        "/root/catalyst-trading-system/services/:/root/catalyst-trading-system/scripts/"
        ":/root/catalyst-intl/src/",
        folders,
    ),
    "BACKUP_DIR": ("/root/catalyst-backups", folder),
    "CHANGELOG_PATH": ("/root/catalyst-trading-system/CHANGELOG-AUTO.md", folder),
    "LOG_DIR": ("/var/log/catalyst", folder),
    "STATE_DIR": ("/var/lib/catalyst-heartbeat", folder),
    "TRADING_SERVICES": (
        "trading,scanner,workflow,risk-manager,pattern,technical,news,reporting",
        names,
    ),
    "LOG_SERVICES": (
        "trading,scanner,workflow,risk-manager,pattern,technical,news,reporting,orchestration",
        names,
    ),
    "CONTAINER_PREFIX": ("catalyst-", prefix),
    "HEALTH_PORTS": ("5000-5009", ports),
    "SYSTEM_UNITS": ("consciousness-dashboard,docker", names),
    "DASHBOARD_UNIT": ("consciousness-dashboard", name),
    "BACKUP_KEEP": ("50", whole_number(1, 10_000)),
    "HEARTBEAT_PING_URL": ("", ping_url),
    "DOCKER_HOST": ("", text),
}

"""The settings, read once from the environment and the .env file found upward from this folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2 import extensions

from catalyst_heartbeat import env_file
from catalyst_heartbeat.configured_secrets import collect_secrets, hide

if TYPE_CHECKING:
    from datetime import tzinfo

# Where the operator's files and .env are: the package lies in it.
PROGRAM_FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


class SettingsError(Exception):
    """A setting is missing or bad; the message is one line that names the variable."""


class Window(NamedTuple):
    """A time of some days, in minutes by the clocks of a zone.

    One that ends before it begins ends on the next day.
    """

    text: str
    days: frozenset[int]
    start: int
    end: int
    zone: tzinfo


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
    docker_tls_verify: str
    docker_cert_path: str
    read_only_senders: tuple[str, ...]
    max_changes_per_hour: int
    freeze_windows: tuple[Window, ...]
    notify_url: str
    approver_database_url: str
    secrets: tuple[str, ...]

    @property
    def senders(self) -> tuple[str, ...]:
        """Return all who may send tasks."""
        return tuple(dict.fromkeys((*self.task_senders, *self.read_only_senders)))


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
            said = " ".join(f"{name}: {error}".split())
            raise SettingsError(hide(said, secrets)) from None
    if values["approver"] == values["agent_id"]:
        raise SettingsError("APPROVER: must not be the agent itself (AGENT_ID)")
    return Settings(**values, secrets=secrets)


def check_names(settings: Settings, whitelist: Collection[str]) -> None:
    """Raise SettingsError for a task that should need approval and does not exist."""
    for name in settings.tasks_requiring_approval:
        if name not in whitelist:
            known = ", ".join(whitelist)
            raise SettingsError(f'TASKS_REQUIRING_APPROVAL: no task "{name}"; known: {known}')


def read_env_file() -> dict[str, str]:
    """Return what the nearest .env says, {} without one."""
    path = env_file.find(PROGRAM_FOLDER)
    if path is None:
        return {}
    try:
        return env_file.read(path, VARIABLES)
    except (OSError, ValueError) as error:
        raise SettingsError(f".env: cannot read {path}: {error}") from None


def database_url(value: str) -> str:
    """Return a URL that every parser cuts into the same parts; no error quotes what it holds."""
    if not value:
        return value
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("not a PostgreSQL URL; expected postgresql://user:password@host/database")
    if re.search("%(?![0-9A-Fa-f]{2})|%00", value):
        raise ValueError('a "%" in it begins no escape such as %2F; write %25 for the sign itself')
    if not DATABASE_URL.fullmatch(value):
        raise ValueError(
            "percent-encode the password and the other parts: "
            '"/" is %2F, "@" %40, ":" %3A, "?" %3F, "#" %23, a blank %20'
        )
    try:
        extensions.parse_dsn(value)
    except UnicodeDecodeError:
        raise ValueError('its escapes are not UTF-8: "é" is %C3%A9; write %25 for "%"') from None
    except psycopg2.ProgrammingError as error:
        raise ValueError(str(error).strip().removeprefix("invalid dsn: ")) from None
    return value


def agent(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,50}", value) or value == "all":
        raise ValueError(f'"{value}" is not an agent; expected 1-50 letters, digits, "_" or "-"')
    return value


def name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}", value):
        raise ValueError(f'"{value}" is not a name; expected letters, digits and "_.@-"')
    return value


def several(read: Callable[[str], Any], *, or_none: bool = False) -> Callable[[str], Any]:
    """Return the reader of a comma-separated list; what is in it twice counts once."""

    def parse(value: str) -> tuple[Any, ...]:
        if or_none and not value.strip():
            return ()
        return tuple(dict.fromkeys(map(read, items(value))))

    return parse


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
    host = r"(?:[\w.-]+|\[[\w:.%]+\])(?::(\d{1,5}))?"
    match = re.fullmatch(rf"https?://(?:[^\s/?#]+@)?{host}(?:[/?#]\S*)?", value)
    if value and not (match and 0 < int(match[1] or 1) < 2**16):
        raise ValueError("not an http:// or https:// URL of a host")
    return value


def engine(value: str) -> str:
    host = r"(?:tcp|https?)://(?:[\w.-]+|\[[\w:.%]+\]):(\d{1,5})/?"
    match = re.fullmatch(rf"unix:///\S+|{host}", value)
    if value and not (match and 0 < int(match[1] or 1) < 2**16):
        raise ValueError(
            f'"{value}" is not an engine; expected unix:///var/run/docker.sock or tcp://host:2375'
        )
    return value


def window(value: str) -> Window:
    match = re.fullmatch(
        rf"({DAY})(?:-({DAY}))? +({TIME})-({TIME}|24:00) +([\w+/-]+)", value.lower(), re.ASCII
    )
    if match is None or match[3] == match[4]:
        raise ValueError(f'"{value}" is not a window such as mon-fri 09:30-16:00 America/New_York')
    first, last = DAYS.index(match[1]), DAYS.index(match[2] or match[1])
    days = frozenset((first + n) % 7 for n in range((last - first) % 7 + 1))
    return Window(value, days, minutes(match[3]), minutes(match[4]), zone(value.split()[-1]))


def minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # only who has a window pays for it

    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(
            f'this host knows no time zone "{name}"; if that is its name: apt-get install tzdata'
        ) from None


# Variable -> (default, reader); a reader raises ValueError with what was found and what is right.
VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "RESEARCH_DATABASE_URL": ("", database_url),
    "AGENT_ID": ("public_claude", agent),
    "TASK_SENDERS": ("big_bro", several(agent)),
    "APPROVER": ("craig_mobile", agent),
    "TASKS_REQUIRING_APPROVAL": ("", several(name, or_none=True)),
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
        several(name),
    ),
    "LOG_SERVICES": (
        "trading,scanner,workflow,risk-manager,pattern,technical,news,reporting,orchestration",
        several(name),
    ),
    "CONTAINER_PREFIX": ("catalyst-", prefix),
    "HEALTH_PORTS": ("5000-5009", ports),
    "SYSTEM_UNITS": ("consciousness-dashboard,docker", several(name)),
    "DASHBOARD_UNIT": ("consciousness-dashboard", name),
    "BACKUP_KEEP": ("50", whole_number(1, 10_000)),
    "HEARTBEAT_PING_URL": ("", ping_url),
    "DOCKER_HOST": ("", engine),
    "DOCKER_TLS_VERIFY": ("", str),
    "DOCKER_CERT_PATH": ("", str),
    "READ_ONLY_SENDERS": ("", several(agent, or_none=True)),
    "MAX_CHANGES_PER_HOUR": ("20", whole_number(0, 1_000_000)),
    "FREEZE_WINDOWS": ("", several(window, or_none=True)),
    "NOTIFY_URL": ("", ping_url),
    "APPROVER_DATABASE_URL": ("", database_url),
}

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = "|".join(DAYS)
TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"

# RFC 3986, where a part cannot hold a sign that would end it.
SIGN = r"[\w.~!$&'()*+;=%,-]"
DATABASE_URL = re.compile(
    rf"postgres(?:ql)?://(?:{SIGN}*(?::{SIGN}*)?@)?"
    rf"(?:{SIGN}|\[[0-9A-Fa-f:.]+\]|:[0-9]{{0,5}}(?![^,/?]))*"
    rf"(?:/{SIGN}*)?(?:\?[\w.~!$&'()*+;=%,:/?-]*)?",
    re.ASCII,
)

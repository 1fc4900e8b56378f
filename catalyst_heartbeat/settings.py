"""The settings, read once from the environment and the .env file found upward from this folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2 import extensions

if TYPE_CHECKING:
    from datetime import tzinfo

# Where the operator's files and .env are: the package lies in it.
PROGRAM_FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

SECRET_NAME = re.compile(
    r"PASS|_PWD?$|SECRET|TOKEN|CREDENTIAL|PRIVATE|AUTH(?!OR)|API_?KEY|(^|_)KEY(_|$)", re.IGNORECASE
)
# In URLs, also those that a parser would cut elsewhere, and in keyword DSNs.
PASSWORDS = (
    re.compile(r"://[^:@/\s]*:([^@\s]+)@"),
    re.compile(r"://[^:@/\s]*:(\S+)@"),
    re.compile(r"[?&]password=([^&\s]+)"),
    re.compile(r"(?:^|\s)password\s*=\s*'((?:\\.|[^'\\])*)'"),
    re.compile(r"(?:^|\s)password\s*=\s*([^\s']\S*)"),
)
# Where a parser may cut a password that is not percent-encoded, and then show a part of it.
CUTS = re.compile(r"[/@:?#&=\[\],]")
ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
# A shorter value, or one of these words, would blank out half of every report.
SHORTEST_SECRET = 4
SECRET_LINE_LENGTH = 8
NOT_SECRETS = frozenset({"true", "false", "none", "null"})


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
            raise SettingsError(" ".join(f"{name}: {error}".split())) from None
    if values["approver"] == values["agent_id"]:
        raise SettingsError("APPROVER: must not be the agent itself (AGENT_ID)")
    return Settings(**values, secrets=secrets)


def read_env_file() -> dict[str, str]:
    """Return what the nearest .env says, {} without one."""
    path = env_file()
    if path is None:
        return {}
    try:
        if not os.path.isfile(path):  # what waits or leads nowhere must not pass for no settings
            raise OSError("not a file, and no link to one")
        with open(path, encoding="utf-8-sig", newline="") as file:
            return parse_env(file.read().replace("\r\n", "\n"))
    except (OSError, ValueError) as error:
        raise SettingsError(f".env: cannot read {path}: {error}") from None


def parse_env(text: str) -> dict[str, str]:
    """Return what the assignments of a .env file say.

    Raises ValueError with the number of a line that is none, or that gives one of the settings
    in a way that a shell, which may source the same file, and dotenv read differently.
    """
    found: dict[str, str] = {}
    place = 0
    if control := CONTROL.search(text):
        raise ValueError(f"{line_of(text, control.start())} holds a control character")
    while place < len(text):
        if (match := SETTING_LINE.match(text, place)) and match["name"] in VARIABLES:
            value = match["value"]
            found[match["name"]] = value[1:-1] if value.startswith(("'", '"')) else value
        elif not (match := OTHER_LINE.match(text, place)):
            where = line_of(text, place)
            raise ValueError(f"{where} is not NAME=value, or a quote in it is not closed")
        elif mixed := settings_in(PARTS.sub("", match[0]) + later_lines(match[0])):
            where = line_of(text, place)
            raise ValueError(f"{where}: write {mixed[0]}='value', alone on its line")
        elif match["name"]:
            found[match["name"]] = PARTS.sub(part_of_word, match["value"]).strip()
        place = match.end()
    return found


def line_of(text: str, place: int) -> str:
    return f"line {text.count(NEWLINE, 0, place) + 1}"


def settings_in(code: str) -> list[str]:
    """Return our variables that a line sets, or hands on, elsewhere than at its beginning."""
    return [name for _, name in ASSIGNMENT.findall(code) if name in VARIABLES]


def later_lines(statement: str) -> str:
    """Return what dotenv would not take for a part of the quotes before it."""
    return "".join(statement.partition(NEWLINE)[1:])


def part_of_word(part: re.Match[str]) -> str:
    """Return what a shell reads where there are quotes, a backslash or a comment."""
    return part["single"] or part["double"] or part["escaped"] or ""


def env_file() -> str | None:
    """Return the nearest .env that is no folder, this folder's first, then its parents'."""
    folder = PROGRAM_FOLDER
    while not os.path.lexists(path := os.path.join(folder, ".env")) or os.path.isdir(path):
        if folder == "/":
            return None
        folder = os.path.dirname(folder)
    return path


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
        found |= passwords(value)
    found |= {percent_decoded(value) for value in found if "%" in value}
    kept = {value for value in found if len(value) >= SHORTEST_SECRET}
    return tuple(sorted(kept - NOT_SECRETS, key=lambda value: (-len(value), value)))


def passwords(value: str) -> set[str]:
    """Return the passwords of a URL or a keyword DSN, and the parts that an error may quote."""
    if "://" not in value and "password" not in value:
        return set()
    whole = {password for pattern in PASSWORDS for password in pattern.findall(value)}
    return whole.union(*map(CUTS.split, whole))


def hide(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text of the program's own without any secret."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return text


def is_secret_line(line: str) -> bool:
    """Tell a line of a secret from a short one and from the frame that every private key has."""
    return len(line) >= SECRET_LINE_LENGTH and not line.startswith("----")


def percent_decoded(value: str) -> str:
    def decoded(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("%", "")).decode(errors="replace")

    return ESCAPES.sub(decoded, value)


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


def agents(value: str) -> tuple[str, ...]:
    return tuple(agent(item) for item in items(value))


def agents_or_none(value: str) -> tuple[str, ...]:
    return agents(value) if value.strip() else ()


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
    host = r"(?:[\w.-]+|\[[\w:.%]+\])(?::(\d{1,5}))?"
    match = re.fullmatch(rf"https?://(?:[^\s/?#]+@)?{host}(?:[/?#]\S*)?", value)
    if value and not (match and 0 < int(match[1] or 1) < 2**16):
        raise ValueError("not an http:// or https:// URL of a host")
    return value


def windows(value: str) -> tuple[Window, ...]:
    return tuple(map(window, items(value))) if value.strip() else ()


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
    "DOCKER_HOST": ("", str),
    "DOCKER_TLS_VERIFY": ("", str),
    "DOCKER_CERT_PATH": ("", str),
    "READ_ONLY_SENDERS": ("", agents_or_none),
    "MAX_CHANGES_PER_HOUR": ("20", whole_number(0, 1_000_000)),
    "FREEZE_WINDOWS": ("", windows),
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

NEWLINE = "\n"
# What a shell or dotenv takes for the end of a line, or leaves out, where the other does not.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# A setting as every shell and dotenv read it alike: no sign in its value means more than itself.
SETTING_LINE = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Z_]+)=(?P<value>"
    r"'(?:[^'\\\x00-\x1f$]|\$(?!\{))*'"
    r'|"[^"\\$`\x00-\x1f]*"'
    r"""|[^\s'"\\$`;&|<>(){}~]*"""
    r")[ \t]*(?:(?<=[ \t])#[^\n]*)?(?:\n|\Z)"
)
# What is not plain text in a line: a comment, quotes, a backslash.
PARTS = re.compile(
    r"(?<=[ \t])#[^\n]*"
    r"|\$?'(?P<single>[^']*)'"
    r'|"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|\\(?P<escaped>.)",
    re.DOTALL,
)
# A line that is others': an assignment whose quotes are closed, `export NAME`, a comment, nothing.
UNNAMED_PARTS = re.sub(r"\?P<\w+>", "?:", PARTS.pattern)
OTHER_LINE = re.compile(
    r"[ \t]*(?:(?:export[ \t]+)?"
    rf"(?P<name>[^\s='\"#]+)[ \t]*=(?P<value>(?:{UNNAMED_PARTS}|[^\n'\"\\$]|\$(?!'))*)"
    r"|export[ \t]+\w+[ \t]*)?(?:#[^\n]*)?(?:\n|\Z)",
    re.DOTALL,
)
ASSIGNMENT = re.compile(r"(?<![\w$])(export[ \t]+)?([A-Z_]+)(?(1)\b|[ \t]*:?\+?=)")

"""Logs: the newest lines of a container, of a log file, of a systemd unit."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from catalyst_heartbeat.host import beneath, containers, systemd, tail
from catalyst_heartbeat.outcome import Context, Result, TaskFailed
from catalyst_heartbeat.tasks.base import OneOf, Params

# So many lines are looked at, newest first, for those that hold a text.
SEARCHED_LINES = 10_000
LISTED_ENTRIES = 10_000
LOG_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"

Lines = Annotated[int, Field(ge=1, le=500, description="How many of the newest lines to show")]
Contains = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^\n\r\x00]*$",
        description=(
            "Show only lines with this text in them, one line, taken literally; case counts. "
            "The first line of the answer counts the lines looked at and those that matched"
        ),
    ),
]
Minutes = Annotated[
    int,
    Field(ge=1, le=10_080, description="Show only what was written in the last so many minutes"),
]


class LogServiceParams(Params):
    service: Annotated[str, OneOf("log_services")] = Field(
        description="Name of the service, with or without a running container"
    )
    lines: Lines = 50
    contains: Contains = ""
    since_minutes: Minutes = 0


class LogFileParams(Params):
    logfile: str = Field(
        pattern=LOG_NAME,
        description="Name of the log file without folder and .log: at most 100 letters, digits and "
        '_.-, and neither "." nor "-" first',
    )
    lines: Lines = 100
    contains: Contains = ""


class UnitParams(Params):
    service: Annotated[str, OneOf("system_units")] = Field(description="Name of the systemd unit")
    lines: Lines = 50
    contains: Contains = ""
    since_minutes: Minutes = 0


LogParams = LogServiceParams | LogFileParams | UnitParams


def docker_logs(params: LogServiceParams, context: Context) -> Result:
    """Read a service's newest log lines, both streams.

    Finds the service's container, running or stopped, and shows what it last wrote to stdout and
    stderr. Use it to see why a service is unhealthy or does not start.
    """
    minutes = params.since_minutes
    with containers.connect(context.settings, context.remaining()) as api:
        container = containers.resolve(api, params.service, context.settings)
        lines = containers.newest_log_lines(
            api, container, depth(params), context.settings.secrets, minutes
        )
        containers.inspect(api, container)
    value = {"service": params.service, "container": container.name}
    return answer(lines, params, f"{container.name} has written nothing{within(minutes)}", value)


def catalyst_logs(params: LogFileParams, context: Context) -> Result:
    """Read the last lines of a log file.

    The name is that of a file in the log folder, without folder and .log; an unknown name is
    answered with the names there are.
    """
    folder, name = context.settings.log_dir, f"{params.logfile}.log"
    path = f"{folder}/{name}"
    try:
        descriptor = beneath.open_path(folder, name, os.O_RDONLY)
    except FileNotFoundError:
        raise TaskFailed(f"{path} does not exist; there are: {log_names(folder)}") from None
    except OSError as error:
        raise beneath.cannot_open(error, path) from error
    with beneath.closing(descriptor):
        beneath.check_plain(descriptor, path)
        lines = tail.last_lines(descriptor, depth(params), context.settings.secrets)
    return answer(lines, params, f"{path} is empty", {"logfile": params.logfile})


def log_names(folder: str) -> str:
    """Name the log files of the folder, the first thirty of them."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in islice(entries, LISTED_ENTRIES)]
    except OSError as error:
        return f"none ({error.strerror})"
    names = (name[:-4] for name in found if name.endswith(".log"))
    return containers.named(name for name in names if re.fullmatch(LOG_NAME, name))


def system_logs(params: UnitParams, context: Context) -> Result:
    """Read the newest journal lines of a systemd unit.

    Use it for what runs outside Docker, such as the dashboard or the Docker engine itself. It
    fails where there is no such unit or where the journal is off.
    """
    unit, minutes = params.service, params.since_minutes
    systemd.require_unit(unit, context)
    lines = systemd.newest_journal(unit, depth(params), context, minutes)
    nothing = f"the journal is on and has nothing of {unit}{within(minutes)}"
    return answer(lines, params, nothing, {"unit": unit})


def within(minutes: int) -> str:
    return f" in the last {minutes} minutes" if minutes else ""


def depth(params: LogParams) -> int:
    """Return how many lines to look at: those that hold a text may be far apart."""
    return SEARCHED_LINES if params.contains else params.lines


def answer(lines: list[str], params: LogParams, nothing: str, value: dict[str, Any]) -> Result:
    """Return the newest lines, or those of them with the text that was asked for, counted."""
    if not params.contains:
        return Result("\n".join(lines) or nothing, {**value, "lines": lines})
    # Of redacted lines: a text that finds a secret would give it away letter by letter.
    matching = [line for line in lines if params.contains in line]
    shown = matching[-params.lines :]
    first = f"{len(lines):,} lines looked at, {len(matching):,} matched"
    if len(shown) < len(matching):
        first += f", the newest {len(shown)} of them:"
    counts = {"looked_at": len(lines), "matched": len(matching)}
    return Result("\n".join([first, "", *shown]).rstrip("\n"), {**value, **counts, "lines": shown})

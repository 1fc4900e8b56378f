"""Logs: the newest lines of a container, of a log file, of a systemd unit."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import Annotated

from pydantic import Field

from catalyst_heartbeat.host import beneath, containers, systemd
from catalyst_heartbeat.outcome import Context, Result, TaskFailed
from catalyst_heartbeat.tasks.base import OneOf, Params
from catalyst_heartbeat.text import without_start

CONTAINER_LINES = 50
FILE_LINES = 100
JOURNAL_LINES = 50
BLOCK_BYTES = 64 * 1024
# So far back a file is searched for its last lines: a hundred of them may be one endless line.
TAIL_BYTES = 1024 * 1024
LISTED_ENTRIES = 10_000
LOG_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"


class LogServiceParams(Params):
    service: Annotated[str, OneOf("log_services")] = Field(
        description="Name of the service, with or without a running container"
    )


class LogFileParams(Params):
    logfile: str = Field(
        pattern=LOG_NAME, description="Name of the log file without folder and .log"
    )


class UnitParams(Params):
    service: Annotated[str, OneOf("system_units")] = Field(description="Name of the systemd unit")


def docker_logs(params: LogServiceParams, context: Context) -> Result:
    """Read a service's newest 50 log lines, both streams.

    Finds the service's container, running or stopped, and shows what it last wrote to stdout and
    stderr. Use it to see why a service is unhealthy or does not start.
    """
    with containers.connect(context.settings, context.remaining()) as api:
        container = containers.resolve(api, params.service, context.settings)
        secrets = context.settings.secrets
        lines = containers.newest_log_lines(api, container, CONTAINER_LINES, secrets)
        containers.inspect(api, container)
    value = {"service": params.service, "container": container.name, "lines": lines}
    return Result("\n".join(lines) or f"{container.name} has written nothing", value)


def catalyst_logs(params: LogFileParams, context: Context) -> Result:
    """Read the last 100 lines of a log file.

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
        lines = last_lines(descriptor, FILE_LINES, context.settings.secrets)
    value = {"logfile": params.logfile, "lines": lines}
    return Result("\n".join(lines) or f"{path} is empty", value)


def log_names(folder: str) -> str:
    """Name the log files of the folder, the first thirty of them."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in islice(entries, LISTED_ENTRIES)]
    except OSError as error:
        return f"none ({error.strerror})"
    names = (name[:-4] for name in found if name.endswith(".log"))
    return containers.named(name for name in names if re.fullmatch(LOG_NAME, name))


def last_lines(descriptor: int, count: int, secrets: tuple[str, ...]) -> list[str]:
    """Read a file's last lines from its end backwards, at most 1 MiB of them."""
    start = os.fstat(descriptor).st_size
    tail = b""
    while start > 0 and tail.count(b"\n") <= count and len(tail) < TAIL_BYTES:
        step = min(BLOCK_BYTES, start)
        start -= step
        block = os.pread(descriptor, step, start)
        if not block:  # the file was cut off meanwhile
            break
        tail = block + tail
    if not tail:
        return []
    lines = tail.decode(errors="replace").removesuffix("\n").split("\n")
    if start > 0 and len(lines) <= count:
        lines[0] = without_start(lines[0], secrets)
    return [line.rstrip("\r") for line in lines[-count:]]


def system_logs(params: UnitParams, context: Context) -> Result:
    """Read the newest 50 journal lines of a systemd unit.

    Use it for what runs outside Docker, such as the dashboard or the Docker engine itself.
    """
    systemd.require()
    text = systemd.newest_journal(params.service, JOURNAL_LINES, context)
    return Result(text, {"unit": params.service, "lines": text.splitlines()})

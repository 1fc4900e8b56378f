"""The Docker engine: reaching it, finding a service's container, and what `docker ps` prints."""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from catalyst_heartbeat.host.tail import LINES_ABOVE, TAIL_BYTES, newest_lines
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import one_line

if TYPE_CHECKING:
    from docker import APIClient

DEFAULT_HOST = "unix:///var/run/docker.sock"
COMPOSE_SERVICE = "com.docker.compose.service"
COMPOSE_ONE_OFF = "com.docker.compose.oneoff"
MOST_NAMES = 30
# What the engine itself gives a container that was made without a stop timeout.
STOP_TIMEOUT = 10
LINE_PART_BYTES = 16 * 1024
KILLED = "137"
# A container on its way out still has its name and labels, and is no service any more.
GOING = ("removing", "dead")


class Container(NamedTuple):
    """The one container that a service's name stands for."""

    id: str
    name: str


class State(NamedTuple):
    """What the engine says of a container; `health` is empty where it has no health check.

    `stop_timeout` is what the container was made with, in seconds; a negative one never ends.
    """

    running: bool
    up: bool
    status: str
    started_at: str
    restart_count: int
    exit_code: int
    health: str
    stop_timeout: int

    @property
    def healthy(self) -> bool:
        return self.health in ("", "healthy")

    @property
    def started(self) -> float:
        """Return when it was started, in seconds since 1970."""
        match = re.match(r"(\d{4}-.{14})(\.\d{1,6})?", self.started_at)
        if match is None:
            return 0.0
        whole = datetime.datetime.fromisoformat(match[1] + "+00:00")
        return whole.timestamp() + float(match[2] or 0)

    def __str__(self) -> str:
        if not self.up:
            return f"{self.status}, exit code {self.exit_code}, last started {self.started_at}"
        health = f', health "{self.health}"' if self.health else ""
        return f"up, started {self.started_at}, restart count {self.restart_count}{health}"


NO_CONTAINER = Container("", "")
UNSEEN = State(False, False, "", "", 0, 0, "", 0)


@contextmanager
def connect(settings: Settings, timeout: float) -> Iterator[APIClient]:
    """Connect to the engine; `timeout` in seconds holds for each single answer.

    Raises TaskFailed where the engine cannot be reached.
    """
    import docker.utils  # only a task that needs the engine pays for the SDK

    host = settings.docker_host or DEFAULT_HOST
    with engine_errors(f"Docker is not reachable at {host}", "; is the engine running?"):
        given = {"DOCKER_CERT_PATH": settings.docker_cert_path}
        if settings.docker_tls_verify:
            given["DOCKER_TLS_VERIFY"] = settings.docker_tls_verify
        tls: Any = docker.utils.kwargs_from_env(environment=given).get("tls", False)
        seconds = math.ceil(timeout)
        api = docker.APIClient(base_url=host, version="auto", timeout=seconds, tls=tls)
    try:
        yield api
    finally:
        api.close()


@contextmanager
def engine_errors(
    failure: str = "Docker does not answer", hint: str = "", container: Container | None = None
) -> Iterator[None]:
    """Turn what the SDK and the layers below it raise into one sentence.

    A container that is no longer there is named: the engine says only its id.
    """
    from docker.errors import APIError, DockerException, NotFound
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        if container and isinstance(error, NotFound):
            which = f"container {container.name} ({container.id[:12]})"
            raise TaskFailed(f"{which} is gone: removed or recreated meanwhile") from error
        raise TaskFailed(f"Docker refused: {one_line(error.explanation or error)}") from error
    except (DockerException, HTTPError, HTTPException, OSError) as error:
        raise TaskFailed(f"{failure}: {one_line(first_cause(error))}{hint}") from error


def first_cause(error: BaseException) -> BaseException:
    """Return what the SDK's wrappers hide: the error that all the others came from."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def listing(api: APIClient, *, stopped: bool = False) -> list[dict[str, Any]]:
    """List the running containers, or all of them, in one call."""
    with engine_errors():
        found: list[dict[str, Any]] = api.containers(all=stopped)
    return found


def resolve(api: APIClient, service: str, settings: Settings) -> Container:
    """Find the one container that a service's name stands for, running or not.

    Raises TaskFailed where there is none or more than one; the name never reaches the engine.
    """
    live = [each for each in listing(api, stopped=True) if each.get("State") not in GOING]
    matches = [container for container in live if stands_for(container, service, settings)]
    if len(matches) == 1:
        return Container(matches[0]["Id"], shown_name(matches[0]))
    if matches:
        both = ", ".join(f"{shown_name(match)} ({match['Id'][:12]})" for match in matches)
        raise TaskFailed(f'{len(matches)} containers match service "{service}": {both}')
    known = named(shown_name(container) for container in live)
    raise TaskFailed(f'no container for service "{service}"; known: {known}')


def stands_for(container: dict[str, Any], service: str, settings: Settings) -> bool:
    """Say whether a container has the service's name, bare or with prefix, or its label."""
    names = {name.removeprefix("/") for name in container.get("Names") or []}
    labels = container.get("Labels") or {}
    # What `docker compose run` leaves behind has the service's label, but is not the service.
    labelled = labels.get(COMPOSE_SERVICE) == service and labels.get(COMPOSE_ONE_OFF) != "True"
    return service in names or settings.container_prefix + service in names or labelled


def named(names: Iterable[str]) -> str:
    """Join names for a message, the first thirty of them."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMES} more" * (len(ordered) > MOST_NAMES)
    return (", ".join(ordered[:MOST_NAMES]) or "none") + more


def inspect(api: APIClient, container: Container) -> State:
    """Return the state of a container that must still be there under its name."""
    with engine_errors(container=container):
        found = api.inspect_container(container.id)
    name = one_line(found["Name"].removeprefix("/"))
    if name != container.name:
        raise TaskFailed(f"container {container.name} was renamed to {name} meanwhile")
    state, config = found["State"], found.get("Config") or {}
    running = state.get("Running", False)
    health = (state.get("Health") or {}).get("Status", "")
    stop_timeout = config.get("StopTimeout")
    return State(
        running=running,
        up=running and not any(state.get(name) for name in ("Restarting", "Paused", "Dead")),
        status=state.get("Status", ""),
        started_at=state.get("StartedAt", ""),
        restart_count=found.get("RestartCount", 0),
        exit_code=state.get("ExitCode", 0),
        health="" if health == "none" else health,
        stop_timeout=STOP_TIMEOUT if stop_timeout is None else stop_timeout,
    )


def restart(api: APIClient, container: Container, stop_timeout: int) -> None:
    """Restart a container by its id; what still runs after so many seconds is killed."""
    with engine_errors(container=container):
        api.restart(container.id, timeout=stop_timeout)


def was_killed(api: APIClient, container: Container, before: State, after: State) -> bool:
    """Say whether the run that a restart ended was ended by SIGKILL, as the engine remembers it.

    An engine that does not tell is taken to have killed what used up its whole stop timeout.
    """
    which = {"type": "container", "container": container.id, "event": "die"}
    since, until = int(before.started), int(after.started) + 1
    try:
        with engine_errors():
            deaths = list(api.events(since=since, until=until, filters=which, decode=True))
    except TaskFailed:
        return True
    own = [death for death in deaths if death.get("timeNano", 0) / 1e9 >= before.started]
    return not own or own[0].get("Actor", {}).get("Attributes", {}).get("exitCode") == KILLED


def newest_log_lines(
    api: APIClient,
    container: Container,
    count: int,
    secrets: tuple[str, ...],
    since_minutes: int = 0,
) -> list[str]:
    """Read the newest lines of both streams, keeping no more than their last 1 MiB."""
    since = int(time.time()) - 60 * since_minutes if since_minutes else None
    kept, cut, tail = bytearray(), False, count + LINES_ABOVE
    with engine_errors(container=container):
        for chunk in api.logs(container.id, stream=True, follow=False, tail=tail, since=since):
            # An engine that calls a terminal's log plain text gets it decoded by the SDK.
            kept += chunk.encode() if isinstance(chunk, str) else chunk
            cut = cut or len(kept) > TAIL_BYTES
            del kept[:-TAIL_BYTES]
    # The engine counts the parts of a long line as lines: the first may be half a line.
    cut = cut or any(len(line) >= LINE_PART_BYTES for line in kept.split(b"\n"))
    return newest_lines(bytes(kept), cut, count, secrets)


def rows(live: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what is shown of each container."""
    return [
        {
            "name": shown_name(container),
            "status": one_line(container.get("Status", "")),
            "ports": shown_ports(container.get("Ports") or []),
            "image": one_line(container.get("Image", "")),
            "id": container["Id"],
        }
        for container in live
    ]


def shown_name(container: dict[str, Any]) -> str:
    """Return a container's own name; names with a slash are links to it."""
    names = [name.removeprefix("/") for name in container.get("Names") or []]
    own = [name for name in names if "/" not in name] or names or [container["Id"][:12]]
    return one_line(own[0])


def shown_ports(ports: list[dict[str, Any]]) -> str:
    """Return the PORTS column: runs of ports as ranges, unequal mappings one by one at the end."""
    ranges: list[tuple[tuple[str, str], int, int]] = []
    open_ranges: dict[tuple[str, str], tuple[int, int]] = {}
    mappings: list[str] = []
    for address, public, private, kind in sorted(map(port_fields, ports), key=port_order):
        if address and public != private:
            mappings.append(f"{host_port(address, str(public))}->{private}/{kind}")
            continue
        first, last = open_ranges.get((address, kind), (private, private - 1))
        if private != last + 1:
            ranges.append(((address, kind), first, last))
            first = private
        open_ranges[address, kind] = (first, private)
    ranges += [(key, first, last) for key, (first, last) in open_ranges.items()]
    return ", ".join([*(shown_range(*one) for one in ranges), *mappings])


def port_fields(port: dict[str, Any]) -> tuple[str, int, int, str]:
    return port.get("IP", ""), port.get("PublicPort", 0), port["PrivatePort"], port["Type"]


def port_order(fields: tuple[str, int, int, str]) -> tuple[int, str, int, str]:
    address, public, private, kind = fields
    return private, address, public, kind


def shown_range(key: tuple[str, str], first: int, last: int) -> str:
    address, kind = key
    numbers = str(first) if first == last else f"{first}-{last}"
    return f"{host_port(address, numbers)}->{numbers}/{kind}" if address else f"{numbers}/{kind}"


def host_port(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

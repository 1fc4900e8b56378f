"""System Health: what runs on this machine, what it uses, and whether its services say healthy."""

from __future__ import annotations

import errno
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from catalyst_heartbeat.host import containers
from catalyst_heartbeat.host.command import checked_output
from catalyst_heartbeat.outcome import Context, Result, TaskFailed
from catalyst_heartbeat.tasks.base import NoParams, OneOf, Params
from catalyst_heartbeat.text import Cleaned, clean, table

PROCESSES_SHOWN = 10
# One answer of a health endpoint: less than the task's own limit, so that the report can say why.
ANSWER_SECONDS = 8.0
BODY_BYTES = 64 * 1024
EXCERPT_LINES, EXCERPT_LENGTH = 5, 500
STATUS_LENGTH = 80
HEALTHY = ("healthy", "ok")
# A service may listen on either, and a host may have no IPv6 at all.
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
NOBODY_THERE = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH)


class PortParams(Params):
    port: Annotated[int, OneOf("health_ports")] = Field(
        description="Port of the service on this machine, such as 5005"
    )


class Health(NamedTuple):
    """What one port answered; `detail` says in a few words why it is or is not healthy."""

    port: int
    healthy: bool
    detail: str
    http_status: int | None = None
    status: str | None = None
    excerpt: str = ""

    def value(self) -> dict[str, Any]:
        fields = self._asdict()
        del fields["excerpt"]
        return fields


class DeadlineSocket(socket.socket):
    """A socket whose reads end at one deadline, however slowly the bytes drip in."""

    deadline = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(seconds_until(self.deadline))
        return super().recv_into(*args, **kwargs)


def docker_ps(params: NoParams, context: Context) -> Result:
    """List running containers.

    Shows name, status and published ports of each, as `docker ps` does. Use it first to see what
    is up.
    """
    with containers.connect(context.settings, context.remaining()) as api:
        found = containers.rows(containers.listing(api))
    rows = [(row["name"], row["status"], row["ports"]) for row in found]
    names = ("NAMES", "STATUS", "PORTS")
    return Result(table(names, rows, context.settings.secrets), found)


def disk_space(params: NoParams, context: Context) -> Result:
    """Check disk usage.

    Shows size, use and free space of the root file system (`df -h /`).
    """
    text = checked_output(["/usr/bin/df", "-h", "/"], context)
    names = ("filesystem", "size", "used", "available", "use_percent", "mounted_on")
    value: dict[str, Any] = dict(zip(names, text.splitlines()[-1].split(None, 5), strict=True))
    value["use_percent"] = int(value["use_percent"].rstrip("%"))
    return Result(text, value)


def memory_usage(params: NoParams, context: Context) -> Result:
    """Check RAM usage.

    Shows total, used and available memory and swap in MiB (`free -m`).
    """
    text = checked_output(["/usr/bin/free", "-m"], context)
    header, *lines = text.splitlines()
    value = {}
    for line in lines:
        kind, _, numbers = line.partition(":")
        value[kind.lower()] = dict(zip(header.split(), map(int, numbers.split()), strict=False))
    return Result(text, value)


def process_list(params: NoParams, context: Context) -> Result:
    """List the top 10 processes by memory.

    Shows process id, user, memory and command name, largest first. Arguments are left out, since
    they may hold secrets.
    """
    columns = "pid,user,%mem,rss,comm"
    text = checked_output(["/usr/bin/ps", "-eo", columns, "--sort=-rss"], context)
    lines = text.split("\n")[: PROCESSES_SHOWN + 1]
    return Result("\n".join(lines), [process(line) for line in lines[1:] if line])


def process(line: str) -> dict[str, Any]:
    pid, user, percent, kilobytes, *command = line.split(None, 4)  # a process may have no name
    return {
        "pid": int(pid),
        "user": user,
        "memory_percent": float(percent),
        "rss_kib": int(kilobytes),
        "command": "".join(command),
    }


def service_health(params: PortParams, context: Context) -> Result:
    """Check one service's HTTP health endpoint.

    Asks http://127.0.0.1:<port>/health, or [::1] where nobody listens there. Succeeds only if the
    service answers 2xx and, where the answer is a JSON object, its status is "healthy" or "ok".
    """
    deadline = time.monotonic() + min(ANSWER_SECONDS, context.remaining())
    health = ask(params.port, deadline, context.settings.secrets)
    if health.healthy:
        text = f"port {health.port} is healthy: {health.detail}\n\n{health.excerpt}"
        return Result(text.rstrip(), health.value())
    if health.http_status is None:
        raise TaskFailed(f"{health.detail} on port {health.port}", value=health.value())
    message = f"port {health.port} is not healthy: {health.detail}"
    raise TaskFailed(message, health.excerpt, health.value())


def all_services_health(params: NoParams, context: Context) -> Result:
    """Survey the health endpoints of all services.

    Asks every service at once and counts the healthy ones in its first line. It succeeds when the
    survey was made, whatever the services say.
    """
    ports, secrets = context.settings.health_ports, context.settings.secrets
    deadline = time.monotonic() + min(ANSWER_SECONDS, context.remaining())
    with ThreadPoolExecutor(len(ports)) as pool:
        answers = list(pool.map(lambda port: ask(port, deadline, secrets), ports))
    healthy = sum(answer.healthy for answer in answers)
    first = [f"{healthy} of {len(ports)} healthy"]
    first += [f"{answer.port}: {answer.detail}" for answer in answers if not answer.healthy]
    rows = [(a.port, "healthy" if a.healthy else "unhealthy", a.detail) for a in answers]
    value = {"healthy": healthy, "total": len(ports), "ports": [a.value() for a in answers]}
    shown = table(("PORT", "HEALTH", "DETAIL"), rows, secrets)
    return Result(Cleaned("; ".join(first) + f"\n\n{shown}"), value)


def ask(port: int, deadline: float, secrets: tuple[str, ...]) -> Health:
    """Ask whoever listens on a port for its health: 127.0.0.1 first, then ::1."""
    for family, address in LOOPBACKS:
        try:
            return ask_at(family, address, port, deadline, secrets)
        except TimeoutError:
            return Health(port, False, "no whole answer in time")
        except (HTTPException, OSError, ValueError) as error:
            if not isinstance(error, OSError) or error.errno not in NOBODY_THERE:
                return Health(port, False, f"no proper HTTP answer ({type(error).__name__})")
    return Health(port, False, "nobody listens")


def ask_at(
    family: int, address: str, port: int, deadline: float, secrets: tuple[str, ...]
) -> Health:
    """Send one request: no redirects, 64 KiB, done at the deadline."""
    connection = HTTPConnection(address, port)
    with DeadlineSocket(family, socket.SOCK_STREAM) as channel:
        channel.deadline = deadline
        channel.settimeout(seconds_until(deadline))
        channel.connect((address, port))
        connection.sock = channel
        connection.request("GET", "/health", headers={"Connection": "close"})
        with connection.getresponse() as response:
            return judge(port, response, secrets)


def seconds_until(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def judge(port: int, response: HTTPResponse, secrets: tuple[str, ...]) -> Health:
    """Decide whether an HTTP answer says healthy; what it says is cleaned before it is cut."""
    http = f"HTTP {response.status}"
    if encoded(response):
        return Health(port, False, f"{http}, encoded answer not read", response.status)
    body = response.read(BODY_BYTES + 1)
    excerpt = short(body, secrets)
    if len(body) > BODY_BYTES:
        return Health(port, False, f"{http}, answer over 64 KiB", response.status)
    if not 200 <= response.status <= 299:
        return Health(port, False, http, response.status, excerpt=excerpt)
    if response.length:
        return Health(port, False, f"{http}, answer cut short", response.status, excerpt=excerpt)
    try:
        status = said_status(body)
    except ValueError:
        detail = f"{http}, broken JSON"
        return Health(port, False, detail, response.status, excerpt=excerpt)
    if status is None:
        return Health(port, True, http, response.status, excerpt=excerpt)
    healthy = status in HEALTHY
    shown = clean(json.dumps(status), secrets)[:STATUS_LENGTH]
    text = clean(status, secrets)[:STATUS_LENGTH] if isinstance(status, str) else shown
    return Health(port, healthy, f"{http}, status {shown}", response.status, text, excerpt)


def encoded(response: HTTPResponse) -> bool:
    """Say whether the body is anything but plain bytes: a few may unpack to gigabytes."""
    codings = response.msg.get_all("Content-Encoding", [])
    codings += response.msg.get_all("Transfer-Encoding", [])
    return not {coding.strip().lower() for coding in codings} <= {"identity", "chunked", ""}


def said_status(body: bytes) -> Any:
    """Return the status that a JSON object gives, None for anything but an object.

    Raises ValueError for what begins as an object and is none, or gives two statuses.
    """
    try:
        answer = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            raise ValueError("broken JSON") from error
        return None
    return (answer.get("status") or "") if isinstance(answer, dict) else None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("the same key twice")
    return dict(pairs)


def short(body: bytes, secrets: tuple[str, ...]) -> str:
    """Return the first lines of an answer."""
    text = clean(body.decode(errors="replace"), secrets)
    return "\n".join(text[:EXCERPT_LENGTH].split("\n")[:EXCERPT_LINES])

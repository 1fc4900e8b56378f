"""Service Control: restarts, each a success only once the service is up again and stays up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from catalyst_heartbeat.host import containers, systemd
from catalyst_heartbeat.host.command import run_command
from catalyst_heartbeat.host.containers import Container, State
from catalyst_heartbeat.outcome import (
    Context,
    LimitReached,
    Outcome,
    Result,
    TaskFailed,
    end_time_limit,
)
from catalyst_heartbeat.tasks.base import NoParams, OneOf, Params

if TYPE_CHECKING:
    from docker import APIClient

GRACE_SECONDS = 10
STAYS_UP_SECONDS = 3.0
POLL_SECONDS = 0.25
# Kept back from a task's time to find out and say why a service did not come up.
EXPLAIN_SECONDS = 4.0
FAILURE_LOG_LINES = 5
JOURNAL_LINES = 20
NO_CONTAINER = Container("", "")
# In any other state systemd is still at work, perhaps on the restart that was interrupted.
SETTLED = ("active", "inactive", "failed")
UNIT_PROPERTIES = (
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "ActiveEnterTimestamp",
    "ActiveEnterTimestampMonotonic",
)


class TradingServiceParams(Params):
    service: Annotated[str, OneOf("trading_services")] = Field(
        description="Name of the trading service, without the prefix of its container"
    )


@dataclass
class Restart:
    """One service's restart: what was seen before and after it; no error means that it is so."""

    service: str
    container: Container = NO_CONTAINER
    before: State | None = None
    after: State | None = None
    error: str = "not finished within the time limit"
    log: Sequence[str] = ()

    @property
    def line(self) -> str:
        name = f" ({self.container.name})" if self.container.name else ""
        return f"{self.service}{name}: {self.error or 'restarted and stays up'}"

    @property
    def seen(self) -> str:
        states = {"before": self.before, "after": self.after}
        lines = [f"  {name}: {state}" for name, state in states.items() if state]
        return "\n".join([*lines, *(f"  log: {line}" for line in self.log)])

    @property
    def text(self) -> str:
        return f"{self.line}\n{self.seen}".rstrip()

    def value(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "container": self.container.name or None,
            "id": self.container.id or None,
            "started_before": self.before.started_at if self.before else None,
            "started_after": self.after.started_at if self.after else None,
            "restart_count": self.after.restart_count if self.after else None,
            "health": (self.after.health or None) if self.after else None,
            "error": self.error or None,
        }


def restart_service(params: TradingServiceParams, context: Context) -> Result:
    """Restart one service and wait until it stays up.

    Restarts the service's container and succeeds only if it was still up 3 seconds later without
    another restart and, where it has a health check, is healthy. Use it for one service that is
    unhealthy or hangs. It interrupts that service for some seconds.
    """
    (restart,) = perform([params.service], context)
    if restart.error:
        raise TaskFailed(restart.line, restart.seen, restart.value())
    return Result(restart.text, restart.value())


def restart_dashboard(params: NoParams, context: Context) -> Result:
    """Restart the consciousness dashboard.

    Restarts its systemd unit and succeeds only if the unit was still active 3 seconds later. Use
    it when the dashboard does not answer. It interrupts the dashboard for some seconds.
    """
    systemd.require()
    unit = context.settings.dashboard_unit
    try:
        restart_unit(unit, context)
        before = systemd.properties(unit, UNIT_PROPERTIES, context)
        time.sleep(STAYS_UP_SECONDS)
        after = systemd.properties(unit, UNIT_PROPERTIES, context)
        if after["ActiveState"] != "active" or after != before:
            raise TaskFailed(f"{unit} did not stay up: {unit_state(after)}", value=after)
    except TaskFailed as error:
        journal = ""
        with contextlib.suppress(TaskFailed):  # what went wrong counts more
            journal = systemd.newest_journal(unit, JOURNAL_LINES, context)
        raise TaskFailed(str(error), f"{error.output}\n\n{journal}".strip(), error.value) from error
    return Result(f"{unit} restarted and stays up: {unit_state(after)}", after)


def restart_all_services(params: NoParams, context: Context) -> Result:
    """Restart all trading services, in order.

    Goes on after a failure, has one line for each service and fails if one failed. Use it only
    when several services are in trouble: it interrupts all trading for up to two minutes.
    """
    restarts = perform(context.settings.trading_services, context)
    text = "\n".join(restart.text for restart in restarts)
    value = [restart.value() for restart in restarts]
    failed = [restart.service for restart in restarts if restart.error]
    if failed:
        message = f"{len(failed)} of {len(restarts)} services failed: {', '.join(failed)}"
        raise TaskFailed(message, text, value)
    return Result(f"{len(restarts)} of {len(restarts)} services restarted\n\n{text}", value)


def investigate_service(
    params: TradingServiceParams, context: Context, claimed_at: float
) -> Outcome | None:
    """Find out whether an interrupted restart happened."""
    outcome = found_out([params.service], context, claimed_at)
    return outcome and replace(outcome, value=outcome.value[0])


def investigate_all_services(
    params: NoParams, context: Context, claimed_at: float
) -> Outcome | None:
    """Find out whether an interrupted restart of all services happened."""
    return found_out(context.settings.trading_services, context, claimed_at)


def investigate_dashboard(params: NoParams, context: Context, claimed_at: float) -> Outcome | None:
    """Find out whether an interrupted restart of the dashboard happened."""
    unit = context.settings.dashboard_unit
    try:
        systemd.require()
        state = systemd.properties(unit, UNIT_PROPERTIES, context)
        age = time.monotonic() - int(state["ActiveEnterTimestampMonotonic"]) / 1e6
    except (TaskFailed, KeyError, ValueError):
        return None
    if state["ActiveState"] not in SETTLED:
        return None
    text = f"found after an interruption: {unit} is {unit_state(state)}"
    if state["ActiveState"] == "active" and time.time() - age >= claimed_at:
        return Outcome("success", text, value=state)
    return Outcome("failed", text, f"{unit} was not restarted, or is not up", state)


def perform(services: Sequence[str], context: Context) -> list[Restart]:
    """Restart the services in order, then watch them all; one that fails stops no other."""
    restarts = [Restart(service) for service in services]
    try:
        with containers.connect(context.settings, context.remaining()) as api:
            firsts = [begin(api, restart, context) for restart in restarts]
            settle(api, restarts, firsts, context.deadline - EXPLAIN_SECONDS)
            for restart in restarts:
                explain(api, restart, context.settings.secrets)
    except LimitReached:
        end_time_limit()  # it repeats, and what was seen so far must still be said
    return restarts


def begin(api: APIClient, restart: Restart, context: Context) -> State | None:
    """Restart one service; return its state right after, or None where it is not up."""
    try:
        restart.container = containers.resolve(api, restart.service, context.settings)
        restart.before = containers.inspect(api, restart.container)
        containers.restart(api, restart.container, GRACE_SECONDS)
        restart.after = containers.inspect(api, restart.container)
    except TaskFailed as error:
        restart.error = str(error)
        return None
    return restart.after


def settle(
    api: APIClient, restarts: Sequence[Restart], firsts: Sequence[State | None], deadline: float
) -> None:
    """Watch restarted services until each has stayed up and is healthy, or has failed."""
    steady_at = time.monotonic() + STAYS_UP_SECONDS
    watched = [(restart, first) for restart, first in zip(restarts, firsts, strict=True) if first]
    while watched:
        steady = time.monotonic() >= steady_at
        watched = [pair for pair in watched if unsettled(api, *pair, steady=steady)]
        if time.monotonic() + POLL_SECONDS >= deadline:
            return
        time.sleep(POLL_SECONDS)


def unsettled(api: APIClient, restart: Restart, first: State, *, steady: bool) -> bool:
    """Look at a restarted service once; return whether to look again."""
    try:
        restart.after = now = containers.inspect(api, restart.container)
    except TaskFailed as error:
        restart.error = str(error)
        return False
    if not now.up:
        restart.error = f"did not stay up: {now}"
        return False
    if (now.started_at, now.restart_count) != (first.started_at, first.restart_count):
        restart.error = f"restarted again by itself: {now}"
        return False
    if not now.healthy:
        restart.error = f'is up, but its health check says "{now.health}"'
    elif steady:
        restart.error = ""
    return not (steady and now.healthy)


def explain(api: APIClient, restart: Restart, secrets: tuple[str, ...]) -> None:
    """Add the last log lines of a service that was restarted and did not come up."""
    if restart.error and restart.after:
        with contextlib.suppress(TaskFailed):
            restart.log = containers.newest_log_lines(
                api, restart.container, FAILURE_LOG_LINES, secrets
            )


def found_out(services: Sequence[str], context: Context, claimed_at: float) -> Outcome | None:
    """Find out which services were restarted since the claim and are up."""
    restarts = [Restart(service) for service in services]
    try:
        with containers.connect(context.settings, context.remaining()) as api:
            for restart in restarts:
                look(api, restart, context, claimed_at)
    except TaskFailed:
        return None
    if not any(restart.after for restart in restarts):
        return None
    value = [restart.value() for restart in restarts]
    text = "\n".join(["found after an interruption:", *(restart.line for restart in restarts)])
    failed = [restart.service for restart in restarts if restart.error]
    if not failed:
        return Outcome("success", text, value=value)
    message = f"not restarted, or not up: {', '.join(failed)}"
    return Outcome("failed", text, message, value)


def look(api: APIClient, restart: Restart, context: Context, claimed_at: float) -> None:
    """Note whether a service was started after the claim and is up."""
    try:
        restart.container = containers.resolve(api, restart.service, context.settings)
        restart.after = state = containers.inspect(api, restart.container)
    except TaskFailed as error:
        restart.error = str(error)
        return
    restarted = state.up and state.healthy and state.started >= claimed_at
    restart.error = "" if restarted else f"not restarted since the claim, or not up: {state}"


def restart_unit(unit: str, context: Context) -> None:
    """Restart a unit, leaving time to watch it and to explain a failure."""
    deadline = context.deadline - EXPLAIN_SECONDS - STAYS_UP_SECONDS
    command = run_command([systemd.SYSTEMCTL, "restart", "--", unit], deadline)
    if command.code != 0:
        message = f"systemctl restart {unit} ended with exit code {command.code}"
        raise TaskFailed(message, command.output)


def unit_state(state: dict[str, str]) -> str:
    active, detail = state["ActiveState"], state["SubState"]
    return (
        f"{active} ({detail}) since {state['ActiveEnterTimestamp'] or 'never'}, "
        f"result {state['Result']}, restart count {state['NRestarts']}"
    )

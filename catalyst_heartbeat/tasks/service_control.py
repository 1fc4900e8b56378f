"""Service Control: restarts, each a success only once the service is up again and stays up."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from catalyst_heartbeat.host import containers, restarts, systemd
from catalyst_heartbeat.host.command import TimeOver, run_command
from catalyst_heartbeat.host.restarts import STAYS_UP_SECONDS, Restart
from catalyst_heartbeat.outcome import (
    Context,
    LimitReached,
    Outcome,
    Result,
    TaskFailed,
    end_time_limit,
)
from catalyst_heartbeat.tasks.base import NoParams, OneOf, Params

# Kept back from a task's time to find out and say why a service did not come up.
EXPLAIN_SECONDS = 4.0
# What a restart takes beside stopping: starting, staying up, explaining.
RESERVE_SECONDS = 10
JOURNAL_LINES = 20
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


def restart_service(params: TradingServiceParams, context: Context) -> Result:
    """Restart one service and wait until it stays up.

    Restarts the service's container and succeeds only if it was still up 3 seconds later without
    another restart and, where it has a health check, is healthy. Use it for one service that is
    unhealthy or hangs. It interrupts that service for some seconds.
    """
    (restart,) = perform([params.service], context)
    if restart.problem:
        raise TaskFailed(restart.line, restart.seen, restart.value())
    return Result(restart.text, restart.value())


def restart_dashboard(params: NoParams, context: Context) -> Result:
    """Restart the consciousness dashboard.

    Restarts its systemd unit and succeeds only if the unit was still active 3 seconds later. Use
    it when the dashboard does not answer. It interrupts the dashboard for some seconds.
    """
    unit = context.settings.dashboard_unit
    systemd.require_unit(unit, context)
    try:
        restart_unit(unit, context)
        before = systemd.properties(unit, UNIT_PROPERTIES, context)
        time.sleep(STAYS_UP_SECONDS)
        after = systemd.properties(unit, UNIT_PROPERTIES, context)
        if after["ActiveState"] != "active" or after != before:
            raise TaskFailed(f"{unit} did not stay up: {unit_state(after)}", value=after)
    except TaskFailed as error:
        journal: list[str] = []
        with contextlib.suppress(TaskFailed):  # what went wrong counts more
            journal = systemd.newest_journal(unit, JOURNAL_LINES, context)
        output = "\n".join([error.output, "", *journal]).strip("\n")
        raise TaskFailed(str(error), output, error.value) from error
    return Result(f"{unit} restarted and stays up: {unit_state(after)}", after)


def restart_all_services(params: NoParams, context: Context) -> Result:
    """Restart all trading services, in order.

    Goes on after a failure, has one line for each service and fails if one failed. Use it only
    when several services are in trouble: it interrupts all trading for up to two minutes.
    """
    done = perform(context.settings.trading_services, context)
    text = "\n".join(restart.text for restart in done)
    value = [restart.value() for restart in done]
    failed = [restart.service for restart in done if restart.problem]
    if failed:
        message = f"{len(failed)} of {len(done)} services failed: {', '.join(failed)}"
        raise TaskFailed(message, text, value)
    return Result(f"{len(done)} of {len(done)} services restarted\n\n{text}", value)


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
        systemd.require_unit(unit, context)
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
    limit = math.ceil(context.remaining())
    planned = [Restart(service) for service in services]
    try:
        with containers.connect(context.settings, context.remaining()) as api:
            for restart in planned:
                restarts.plan(api, restart, context.settings)
            check_fit(planned, limit)
            for restart in planned:
                restarts.begin(api, restart)
            restarts.settle(api, planned, context.deadline - EXPLAIN_SECONDS)
            for restart in planned:
                restarts.explain(api, restart, context.settings.secrets)
    except LimitReached:
        end_time_limit()  # it repeats, and what was seen so far must still be said
    return planned


def check_fit(planned: Sequence[Restart], limit: int) -> None:
    """Raise TaskFailed where the containers may need more seconds to stop than the task has."""
    room = limit - RESERVE_SECONDS
    if sum(restart.stop_seconds for restart in planned) <= room:
        return
    slow = sorted(planned, key=lambda restart: -restart.stop_seconds)
    needs = ", ".join(
        f"{restart.container.name} {restart.stop_seconds:g} s".replace("inf s", "for ever")
        for restart in slow
        if restart.stop_seconds
    )
    raise TaskFailed(
        f"nothing was touched: the stop timeouts ({needs}) do not fit this task's {limit} s; "
        f"make the containers anew with at most {room} s in all (--stop-timeout, in compose "
        'stop_grace_period), or restart them by hand with "docker restart"'
    )


def found_out(services: Sequence[str], context: Context, claimed_at: float) -> Outcome | None:
    """Find out which services were restarted since the claim and are up."""
    found = [Restart(service) for service in services]
    try:
        with containers.connect(context.settings, context.remaining()) as api:
            for restart in found:
                restarts.plan(api, restart, context.settings)
                restarts.look_back(restart, claimed_at)
    except TaskFailed:
        return None
    if all(restart.after == containers.UNSEEN for restart in found):
        return None
    value = [restart.value() for restart in found]
    text = "\n".join(["found after an interruption:", *(restart.line for restart in found)])
    failed = [restart.service for restart in found if restart.problem]
    if not failed:
        return Outcome("success", text, value=value)
    message = f"not restarted, or not up: {', '.join(failed)}"
    return Outcome("failed", text, message, value)


def restart_unit(unit: str, context: Context) -> None:
    """Restart a unit, leaving time to watch it and to explain a failure."""
    deadline = context.deadline - EXPLAIN_SECONDS - STAYS_UP_SECONDS
    try:
        command = run_command([systemd.SYSTEMCTL, "restart", "--", unit], deadline)
    except TimeOver as error:
        state = systemd.properties(unit, UNIT_PROPERTIES, context)
        now = f"{state['ActiveState']} ({state['SubState']})"
        message = f"{unit} is still {now} as the time is over; systemd goes on with its restart"
        raise TaskFailed(message, error.output, state) from error
    if command.code != 0:
        message = f"systemctl restart {unit} ended with exit code {command.code}"
        raise TaskFailed(message, command.output)


def unit_state(state: dict[str, str]) -> str:
    active, detail = state["ActiveState"], state["SubState"]
    return (
        f"{active} ({detail}) since {state['ActiveEnterTimestamp'] or 'never'}, "
        f"result {state['Result']}, restart count {state['NRestarts']}"
    )

"""Restarts of containers: whether they fit, what is seen before and after, who stays up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from catalyst_heartbeat.host import containers
from catalyst_heartbeat.host.containers import NO_CONTAINER, UNSEEN, Container, State
from catalyst_heartbeat.outcome import TaskFailed
from catalyst_heartbeat.settings import Settings

if TYPE_CHECKING:
    from docker import APIClient

STAYS_UP_SECONDS = 3.0
POLL_SECONDS = 0.25
LOG_LINES = 5


@dataclass
class Restart:
    """One service's restart: how far it came, and what is wrong until it is "up".

    "planned": untouched. "watched": restarted, may still fall over. "up": stayed up and healthy.
    "failed": will not come up any more, or was never there.
    """

    service: str
    stage: Literal["planned", "watched", "up", "failed"] = "planned"
    problem: str = "not finished within the time limit"
    container: Container = NO_CONTAINER
    before: State = UNSEEN
    after: State = UNSEEN
    killed: bool = False
    log: Sequence[str] = ()

    @property
    def stop_seconds(self) -> float:
        """Return how long the engine may wait for the container to stop."""
        if self.stage != "planned" or not self.before.running:
            return 0
        return self.before.stop_timeout if self.before.stop_timeout >= 0 else float("inf")

    @property
    def line(self) -> str:
        name = f" ({self.container.name})" if self.container.name else ""
        kill = f"had to be killed after its stop timeout of {self.before.stop_timeout} s; "
        return (
            f"{self.service}{name}: {kill * self.killed}{self.problem or 'restarted and stays up'}"
        )

    @property
    def seen(self) -> str:
        states = {"before": self.before, "after": self.after}
        lines = [f"  {name}: {state}" for name, state in states.items() if state != UNSEEN]
        return "\n".join([*lines, *(f"  log: {line}" for line in self.log)])

    @property
    def text(self) -> str:
        return f"{self.line}\n{self.seen}".rstrip()

    def value(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "container": self.container.name or None,
            "id": self.container.id or None,
            "started_before": self.before.started_at or None,
            "started_after": self.after.started_at or None,
            "restart_count": None if self.after == UNSEEN else self.after.restart_count,
            "health": self.after.health or None,
            "killed": self.killed,
            "error": self.problem or None,
        }

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let what goes wrong end this restart and no other."""
        try:
            yield
        except TaskFailed as error:
            self.fail(str(error))

    def fail(self, problem: str) -> None:
        self.stage, self.problem = "failed", problem


def plan(api: APIClient, restart: Restart, settings: Settings) -> None:
    """Find a service's container and look at it; nothing is touched."""
    with restart.alone():
        restart.container = containers.resolve(api, restart.service, settings)
        restart.before = containers.inspect(api, restart.container)


def begin(api: APIClient, restart: Restart) -> None:
    """Restart a planned service's container and look at it right after."""
    if restart.stage != "planned":
        return
    with restart.alone():
        asked_at = time.monotonic()
        containers.restart(api, restart.container, restart.before.stop_timeout)
        waited = time.monotonic() - asked_at
        restart.after = containers.inspect(api, restart.container)
        restart.stage, before = "watched", restart.before
        if before.running and waited >= before.stop_timeout:
            restart.killed = containers.was_killed(api, restart.container, before, restart.after)


def settle(api: APIClient, restarts: Sequence[Restart], deadline: float) -> None:
    """Watch restarted services until each has stayed up and is healthy, or has failed."""
    steady_at = time.monotonic() + STAYS_UP_SECONDS
    while watched := [restart for restart in restarts if restart.stage == "watched"]:
        steady = time.monotonic() >= steady_at
        for restart in watched:
            with restart.alone():
                observe(restart, containers.inspect(api, restart.container), steady=steady)
        if time.monotonic() + POLL_SECONDS >= deadline:
            return
        time.sleep(POLL_SECONDS)


def observe(restart: Restart, now: State, *, steady: bool) -> None:
    """Note what a watched container's state says of its restart."""
    last, restart.after = restart.after, now
    if not now.up:
        restart.fail(f"did not stay up: {now}")
    elif (now.started_at, now.restart_count) != (last.started_at, last.restart_count):
        restart.fail(f"restarted again by itself: {now}")
    elif not now.healthy:
        restart.problem = f'is up, but its health check says "{now.health}"'
    elif steady:
        restart.stage, restart.problem = "up", ""


def explain(api: APIClient, restart: Restart, secrets: tuple[str, ...]) -> None:
    """Add the last log lines of a service that was restarted and did not come up."""
    if restart.problem and restart.after != UNSEEN:
        with contextlib.suppress(TaskFailed):
            restart.log = containers.newest_log_lines(api, restart.container, LOG_LINES, secrets)


def look_back(restart: Restart, claimed_at: float) -> None:
    """Decide of a planned restart whether it happened after the claim, in seconds since 1970."""
    if restart.stage != "planned":
        return
    restart.before, restart.after = UNSEEN, restart.before
    state = restart.after
    if state.up and state.healthy and state.started >= claimed_at:
        restart.stage, restart.problem = "up", ""
    else:
        restart.fail(f"not restarted since the claim, or not up: {state}")

"""What a cycle has done so far, and whether it may go on: all that outlives its errors."""

from __future__ import annotations

import logging
import time

from catalyst_heartbeat.settings import Settings

log = logging.getLogger("heartbeat")


class Progress:
    """One cycle's record; `ran` has a line for each task that ran, by its message's id."""

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_tasks_per_run
        self.ends_at = time.monotonic() + settings.run_seconds
        self.stopping = False
        self.ran: dict[int, str] = {}
        self.not_run = 0
        self.met_another = False

    def may_go_on(self) -> bool:
        """Tell whether another message may be taken in this cycle."""
        full = len(self.ran) >= self.most
        return not (self.stopping or full or time.monotonic() >= self.ends_at)

    def summary(self) -> str:
        if not self.ran and not self.not_run:
            return "Nothing to do"
        return f"Executed {len(self.ran)} tasks, {self.not_run} others settled without running"

    def stop(self, number: int, frame: object) -> None:
        """Handle SIGTERM and SIGINT: finish the task at hand, then exit."""
        log.info("signal %d: no further task is claimed", number)
        self.stopping = True

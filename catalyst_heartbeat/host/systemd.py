"""systemd units: their state and their journal, by fixed commands."""

from __future__ import annotations

import os

from catalyst_heartbeat.host.command import checked_output
from catalyst_heartbeat.outcome import Context, TaskFailed

SYSTEMCTL = "/usr/bin/systemctl"
JOURNALCTL = "/usr/bin/journalctl"
# systemd's own documented test for "this machine was booted with systemd".
BOOTED_WITH_SYSTEMD = "/run/systemd/system"


def require() -> None:
    """Raise TaskFailed where the machine does not run systemd."""
    if not os.path.isdir(BOOTED_WITH_SYSTEMD):
        raise TaskFailed("systemd is not running on this machine, so there are no units")


def newest_journal(unit: str, lines: int, context: Context) -> str:
    """Return the newest journal lines of a unit."""
    return checked_output([JOURNALCTL, "-u", unit, "-n", str(lines), "--no-pager"], context)


def properties(unit: str, names: tuple[str, ...], context: Context) -> dict[str, str]:
    """Return properties of a unit as systemctl prints them."""
    command = [SYSTEMCTL, "show", f"--property={','.join(names)}", "--", unit]
    shown = checked_output(command, context)
    pairs = (line.partition("=") for line in shown.splitlines())
    return {name: value for name, _, value in pairs}

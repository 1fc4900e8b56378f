"""systemd units: their state and their journal, by fixed commands."""

from __future__ import annotations

import os

from catalyst_heartbeat.host.command import checked_output, run_command
from catalyst_heartbeat.host.containers import named
from catalyst_heartbeat.host.tail import LINES_ABOVE, TAIL_BYTES, newest_lines
from catalyst_heartbeat.outcome import Context, TaskFailed

SYSTEMCTL = "/usr/bin/systemctl"
JOURNALCTL = "/usr/bin/journalctl"
# systemd's own documented test for "this machine was booted with systemd".
BOOTED_WITH_SYSTEMD = "/run/systemd/system"
NO_ENTRIES = ("", "-- No entries --")


def require() -> None:
    """Raise TaskFailed where the machine does not run systemd."""
    if not os.path.isdir(BOOTED_WITH_SYSTEMD):
        raise TaskFailed("systemd is not running on this machine, so there are no units")


def require_unit(unit: str, context: Context) -> None:
    """Raise TaskFailed, with the units there are, where there is no such unit."""
    require()
    if not exists(unit, context):
        known = named(name for name in context.settings.system_units if exists(name, context))
        raise TaskFailed(f'no unit "{unit}" on this machine; of SYSTEM_UNITS there are: {known}')


def exists(unit: str, context: Context) -> bool:
    """Say whether systemd knows a unit; a template such as getty@ is none without its instance."""
    if "@." in f"{unit}.":
        return False
    return properties(unit, ("LoadState",), context)["LoadState"] != "not-found"


def newest_journal(unit: str, count: int, context: Context, since_minutes: int = 0) -> list[str]:
    """Return the newest journal lines of a unit, none where it has none.

    Raises TaskFailed where the journal is off or not this user's to read.
    """
    since = [f"--since=-{since_minutes}min"] if since_minutes else []
    own = properties(unit, ("LogNamespace",), context).get("LogNamespace")
    place = [f"--namespace={own}"] if own else []
    options = ["--quiet", "--no-pager", "-u", unit, "-n", str(count + LINES_ABOVE), *since, *place]
    command = run_command([JOURNALCTL, *options], context.deadline, kept=(0, TAIL_BYTES))
    if command.code or not command.stdout:
        check_journal(context)
    return newest_lines(command.stdout.encode(), False, count, context.settings.secrets)


def check_journal(context: Context) -> None:
    """Raise TaskFailed where nothing can be read of this boot, in which systemd itself wrote."""
    command = run_command([JOURNALCTL, "-b", "-n", "1", "--no-pager"], context.deadline)
    if "permission" in command.stderr or "not seeing messages" in command.stderr:
        hint = "add it to the group systemd-journal"
        raise TaskFailed(f"this user may not read the system's journal; {hint}", command.stderr)
    state = properties("systemd-journald", ("ActiveState",), context)["ActiveState"]
    if command.code or state != "active" or command.stdout.strip() in NO_ENTRIES:
        hint = "see Storage= in journald.conf and systemctl status systemd-journald"
        raise TaskFailed(f"the journal is off: it keeps nothing of this boot; {hint}")


def properties(unit: str, names: tuple[str, ...], context: Context) -> dict[str, str]:
    """Return properties of a unit as systemctl prints them."""
    command = [SYSTEMCTL, "show", f"--property={','.join(names)}", "--", unit]
    shown = checked_output(command, context)
    pairs = (line.partition("=") for line in shown.splitlines())
    return {name: value for name, _, value in pairs}

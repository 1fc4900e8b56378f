"""FREEZE_WINDOWS: when whatever changes something needs approval."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from typing import NamedTuple

from catalyst_heartbeat.settings import Window

MINUTES_A_DAY = 24 * 60
# Windows that follow each other without a gap may never end.
FORESEEN = timedelta(days=8)


class Freeze(NamedTuple):
    """The window that holds, as it was set, and when it and those that follow on it end."""

    window: str
    until: datetime


def frozen_until(windows: tuple[Window, ...], now: datetime) -> Freeze | None:
    """Tell which window holds at a moment and until when; None outside of all of them."""
    until = now
    names = []
    while until < now + FORESEEN:
        held = [(end, window.text) for window in windows for end in ends(window, until)]
        if not held:
            break
        until, name = max(held)
        names.append(name)
    return Freeze(names[0], until) if names else None


def ends(window: Window, moment: datetime) -> Iterator[datetime]:
    """Yield the end of the window that holds at a moment; it may have begun the day before."""
    today = moment.astimezone(window.zone).date()
    for day in (today - timedelta(days=1), today):
        overnight = MINUTES_A_DAY if window.end <= window.start else 0
        begin = min(instants(window, day, window.start))
        end = max(instants(window, day, window.end + overnight))
        if day.weekday() in window.days and begin <= moment < end:
            yield end


def instants(window: Window, day: date, minutes: int) -> tuple[datetime, datetime]:
    """Return when the clocks of the window's zone show a time of a day, in UTC.

    These are two where clocks are put back, and two around the gap where they are put forward.
    """
    days, minutes = divmod(minutes, MINUTES_A_DAY)
    shown = datetime.combine(
        day + timedelta(days=days), time(minutes // 60, minutes % 60), window.zone
    )
    return shown.astimezone(timezone.utc), shown.replace(fold=1).astimezone(timezone.utc)

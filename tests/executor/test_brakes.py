"""brakes.py: which freeze window holds at a given moment, and until when."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timedelta, timezone

import pytest

from catalyst_heartbeat.executor.brakes import Freeze, frozen_until
from catalyst_heartbeat.settings import SettingsError, load

MARKET = "mon-fri 09:30-16:00 America/New_York"


def holds(windows: str, moment: str) -> tuple[str, str] | None:
    """Return the window that holds at a moment in UTC, and its end."""
    parsed = load({"FREEZE_WINDOWS": windows}).freeze_windows
    freeze = frozen_until(parsed, datetime.fromisoformat(f"{moment}+00:00"))
    return freeze and (freeze.window, freeze.until.strftime("%a %H:%M"))


@pytest.mark.parametrize(
    ("windows", "moment", "until"),
    [
        # Market hours: in winter five hours behind UTC, in summer four.
        (MARKET, "2026-01-05T14:29", None),
        (MARKET, "2026-01-05T14:30", "Mon 21:00"),
        (MARKET, "2026-01-05T20:59:59", "Mon 21:00"),
        (MARKET, "2026-01-05T21:00", None),
        (MARKET, "2026-07-06T13:30", "Mon 20:00"),
        (MARKET, "2026-07-06T20:30", None),
        (MARKET, "2026-01-04T15:00", None),  # a Sunday
        # Over midnight: the days are those on which it begins.
        ("fri 22:00-06:00 UTC", "2026-01-09T23:00", "Sat 06:00"),
        ("fri 22:00-06:00 UTC", "2026-01-10T05:59", "Sat 06:00"),
        ("fri 22:00-06:00 UTC", "2026-01-10T22:30", None),
        ("fri 22:00-06:00 UTC", "2026-01-09T05:00", None),
        ("sun 22:00-06:00 Asia/Shanghai", "2026-01-11T20:00", "Sun 22:00"),
        # A whole day; days that go round the end of the week.
        ("sat 00:00-24:00 UTC", "2026-01-10T00:00", "Sun 00:00"),
        ("fri-mon 10:00-11:00 UTC", "2026-01-11T10:30", "Sun 11:00"),
        ("fri-mon 10:00-11:00 UTC", "2026-01-13T10:30", None),
        # Several: their union.
        ("mon 09:00-12:00 UTC,mon 11:00-14:00 UTC", "2026-01-05T09:30", "Mon 14:00"),
        ("mon 09:00-12:00 UTC, mon 12:00-14:00 UTC", "2026-01-05T09:30", "Mon 14:00"),
        ("mon 09:00-12:00 UTC,mon 12:01-14:00 UTC", "2026-01-05T09:30", "Mon 12:00"),
        ("mon 22:00-24:00 UTC,tue 00:00-01:00 UTC", "2026-01-05T23:00", "Tue 01:00"),
        # Clocks put forward at 02:00 (07:00 UTC), and back at 02:00 (06:00 UTC).
        ("sat-sun 22:00-06:00 America/New_York", "2026-03-08T06:00", "Sun 10:00"),
        ("sun 02:30-05:00 America/New_York", "2026-03-08T07:10", "Sun 09:00"),
        ("sun 00:00-02:30 America/New_York", "2026-03-08T06:50", "Sun 07:30"),
        ("sun 00:00-01:30 America/New_York", "2026-11-01T06:20", "Sun 06:30"),
        ("sun 01:30-03:00 America/New_York", "2026-11-01T05:40", "Sun 08:00"),
    ],
)
def test_a_window_holds_by_the_clocks_of_its_zone(
    windows: str, moment: str, until: str | None
) -> None:
    held = holds(windows, moment)

    assert (held and held[1]) == until


def test_windows_without_a_gap_end_at_some_time_to_come() -> None:
    always = load({"FREEZE_WINDOWS": "mon-sun 00:00-24:00 UTC"}).freeze_windows
    now = datetime(2026, 1, 5, tzinfo=timezone.utc)

    freeze = frozen_until(always, now)

    assert isinstance(freeze, Freeze)
    assert freeze.until > now + timedelta(days=7)


def test_the_window_that_holds_now_is_named_as_it_was_set() -> None:
    held = holds("tue 09:00-10:00 UTC, Mon 09:00-16:00 Etc/UTC", "2026-01-05T09:30")

    assert held == ("Mon 09:00-16:00 Etc/UTC", "Mon 16:00")
    assert holds("", "2026-01-05T09:30") is None


def test_a_host_without_zones_names_the_package_to_install() -> None:
    zoneinfo.reset_tzpath([])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(SettingsError) as caught:
            load({"FREEZE_WINDOWS": MARKET})
    finally:
        zoneinfo.reset_tzpath()

    assert str(caught.value).startswith("FREEZE_WINDOWS: ")
    assert "apt-get install tzdata" in str(caught.value)

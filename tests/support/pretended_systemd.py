"""A systemd of two shell scripts, for what no real one can be brought to say in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from catalyst_heartbeat.host import systemd

ACTIVE = """LoadState=loaded
ActiveState=active
SubState=running
Result=success
NRestarts=0
ActiveEnterTimestamp=Wed 2026-11-25 04:04:06 UTC
ActiveEnterTimestampMonotonic=1
LogNamespace=
"""
SYSTEMCTL = """case $1 in
show) cat "{folder}/$4" 2>/dev/null || echo LoadState=not-found;;
restart) {restart};;
esac"""
JOURNALCTL = """echo "$@" >> {folder}/asked
case "$*" in
*' -u '*) {own};;
*) {boot};;
esac"""
NOTHING_YET = "echo boot"

PretendSystemd = Callable[..., Path]


@pytest.fixture
def pretend_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendSystemd:
    """Return a function that installs a systemd: what `restart` and `journalctl` do, and units.

    `own` is what journalctl does for a unit, `boot` what it does for the whole boot.
    """

    def pretend(
        *, own: str = "true", boot: str = NOTHING_YET, restart: str = "true", **units: str
    ) -> Path:
        folder = tmp_path / "systemd"
        folder.mkdir()
        for unit, properties in {"systemd-journald": ACTIVE, **units}.items():
            (folder / unit).write_text(properties)
        scripts = {
            "SYSTEMCTL": SYSTEMCTL.format(folder=folder, restart=restart),
            "JOURNALCTL": JOURNALCTL.format(folder=folder, own=own, boot=boot),
        }
        monkeypatch.setattr(systemd, "BOOTED_WITH_SYSTEMD", str(folder))
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            monkeypatch.setattr(systemd, name, str(path))
        return folder

    return pretend

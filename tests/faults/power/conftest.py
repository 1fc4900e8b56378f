"""What the power cuts share: the machine's kernel and root, and a database outside of it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from faults.power.image import find_kernel, make_root
from faults.power.trial import SEED, Place

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the power cuts out unless just they are asked for: tests/run.sh --power."""
    if config.option.markexpr != "power":
        left_out = [item for item in items if item.get_closest_marker("power")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the trials of all processes came to."""
    counts: Counter[str] = Counter()
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, count in report.user_properties:
            if name.startswith("power cuts: "):
                counts[name] += int(str(count))
    if counts:
        terminalreporter.write_line(f"power cuts: POWER_SEED={SEED}")
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    kernel = find_kernel()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with EmbeddedPostgres(fsync=False, port=port) as server:
        yield Place(kernel, make_root(tmp_path_factory.mktemp("root"), kernel), server)

"""The fixtures: a database server for the run, a database and the settings for each test."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from support.postgres import OUR_SCHEMA, Database, clone, drop, new_database, own_server
from support.warden import enclose

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import connection

pytest_plugins = [
    "support.nursery",
    "support.docker_engine",
    "support.cycles",
    "support.dashboard",
    "support.pretended_systemd",
]

NUMBERS = itertools.count(1)
DEAR_FIXTURES = {"engine", "server_engine", "passing_engine", "crowded", "built"}
SLOW_ROOMS = {"acceptance", "faults"}

# A busy machine is not a failure.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
connection.ANSWER_SECONDS = 300


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        enclose()
    # A job in the background ignores it, and so would every child that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rooms where everything is slow; keep what shares a dear fixture on one worker."""
    for item in items:
        dear = DEAR_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if dear or item.path.parent.name in SLOW_ROOMS:
            item.add_marker(pytest.mark.slow)
        for fixture in dear:
            item.add_marker(pytest.mark.xdist_group(fixture))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop where xdist has not read the groups: two workers would share ports and paths."""
    if hasattr(session.config, "workerinput"):
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        missing = "no groups: needs --dist loadgroup, and a pytest that xdist knows"
        assert all("@" in item.nodeid for item in grouped), missing


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server that all tests share; a test that stops its server takes `own_postgres`."""
    with own_server() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    with own_server() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> Callable[[str], str]:
    """Return the name of the database to clone for a schema, made on first use."""
    made: dict[str, str] = {}

    def name_for(schema: str) -> str:
        if schema not in made:
            name = f"template_of_{Path(schema).stem}"
            new_database(postgres, name, schema)
            made[schema] = name
        return made[schema]

    return name_for


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> str:
    """The schema of the test's database: ours, or what @on_every_schema says."""
    return getattr(request, "param", OUR_SCHEMA)


@pytest.fixture
def database(
    postgres: EmbeddedPostgres, template: Callable[[str], str], schema: str
) -> Iterator[Database]:
    name = f"test_{next(NUMBERS)}"
    yield clone(postgres, template(schema), name)
    drop(postgres, name)


@pytest.fixture
def environment(database: Database, tmp_path: Path) -> dict[str, str]:
    """Every setting of one agent, all folders below tmp_path, and no Docker engine."""
    folders = {
        name: tmp_path / name for name in ("services", "scripts", "backups", "logs", "state")
    }
    for folder in folders.values():
        folder.mkdir()
    return {
        **{name: default for name, (default, _) in program_settings.VARIABLES.items()},
        "RESEARCH_DATABASE_URL": database.url,
        "ALLOWED_PATHS": f"{folders['services']}:{folders['scripts']}",
        "BACKUP_DIR": str(folders["backups"]),
        "CHANGELOG_PATH": str(tmp_path / "CHANGELOG-AUTO.md"),
        "LOG_DIR": str(folders["logs"]),
        "STATE_DIR": str(folders["state"]),
        "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock",
        "MAX_CHANGES_PER_HOUR": "1000",
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> program_settings.Settings:
    return program_settings.load(environment)

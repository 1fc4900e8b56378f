"""The Database tasks on a real server: what they show, and that no cut makes half a secret."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support import docker_engine
from support.docker_engine import settings_for
from support.postgres import Database, send

from catalyst_heartbeat.outcome import Context, Result, TaskFailed, no_database
from catalyst_heartbeat.queue import connection
from catalyst_heartbeat.tasks import database as tasks
from catalyst_heartbeat.tasks.base import NoParams
from catalyst_heartbeat.text import fenced

SECRET = "hunter2-of-the-database"
TOKEN = "AKIAQ1W2E3R4T5Y6U7I8"
NO_PARAMS = NoParams()


def context_of(agent: connection.Database) -> Context:
    made = docker_engine.context(settings_for("", DB_PASSWORD=SECRET))
    return replace(made, query=agent.query)


def shown(result: Result) -> str:
    return result.text + json.dumps(result.value)


def observe(database: Database, subject: str, content: str) -> None:
    database.execute(
        """INSERT INTO claude_observations (agent_id, observation_type, subject, content)
           VALUES ('public_claude', 'system', %s, %s)""",
        (subject, content),
    )


@pytest.mark.parametrize("secret", [SECRET, f"password={SECRET}", TOKEN])
@pytest.mark.parametrize("limit", [1000, 1000 + 4096])
def test_a_secret_across_the_cut_of_an_observation_is_gone(
    database: Database, agent: connection.Database, secret: str, limit: int
) -> None:
    for before in range(limit - len(secret) - 1, limit + 1, 5):
        observe(database, "cut", "x" * (before - 1) + " " + secret + " and more " * 500)

        text = shown(tasks.db_recent_observations(NO_PARAMS, context_of(agent)))

        assert not any(part in text for part in ("hunter2", "database", "AKIA"))


def test_a_secret_across_the_cut_of_a_state_and_of_a_subject_is_gone(
    database: Database, agent: connection.Database
) -> None:
    for before in range(70, 101, 5):
        send(database, "TASK: disk_space", subject="x" * before + SECRET + "y" * 100)
    database.execute(
        """INSERT INTO claude_state (agent_id, current_mode, last_error, status_message)
           VALUES ('dev_claude', 'awake', %s, %s)""",
        ("e" * 290 + SECRET, "m" * 280 + SECRET + "m" * 10_000),
    )

    states = shown(tasks.db_agent_status(NO_PARAMS, context_of(agent)))
    history = shown(tasks.db_task_history(tasks.TaskHistory(limit=20), context_of(agent)))

    assert "eeee" in states
    assert "xxxx" in history
    assert "hunter" not in states + history


def test_a_marker_of_a_key_in_one_row_hides_no_other(
    database: Database, agent: connection.Database
) -> None:
    observe(database, "older", "the older one")
    observe(database, "-----END PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----")

    result = tasks.db_recent_observations(NO_PARAMS, context_of(agent))

    assert [row["content"] for row in result.value][1] == "the older one"
    assert "the older one" in result.text


def test_a_secret_in_one_cell_hides_no_other(
    database: Database, agent: connection.Database
) -> None:
    observe(database, "Authorization: Digest", "the content")
    observe(database, 'password="', f"password={SECRET}")
    context = context_of(agent)

    result = tasks.db_recent_observations(NO_PARAMS, context)

    body = fenced(result.text, context.settings.secrets)
    assert "the content" in body
    assert "password=[redacted]" in body
    assert body.count("+00:00") == 2


def test_little_of_a_huge_text_is_fetched(database: Database, agent: connection.Database) -> None:
    observe(database, "huge", "é" * 10_000_000)
    fetched: list[list[tuple[Any, ...]]] = []

    def query(statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        fetched.append(agent.query(statement, params))
        return fetched[-1]

    result = tasks.db_recent_observations(NO_PARAMS, replace(context_of(agent), query=query))

    assert max(len(cell) for cell in fetched[0][0] if isinstance(cell, str)) < 8192
    assert len(result.value[0]["content"]) == 1000


def test_without_a_database_the_setting_is_named() -> None:
    context = replace(docker_engine.context(settings_for("")), query=no_database)

    with pytest.raises(TaskFailed, match="needs RESEARCH_DATABASE_URL"):
        tasks.db_agent_status(NO_PARAMS, context)

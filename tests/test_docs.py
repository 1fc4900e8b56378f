"""What is written down beside the code is so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, get_args

import psycopg2
import pytest
from support.postgres import PROGRAM_FOLDER, Database

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.catalogue import description
from catalyst_heartbeat.outcome import Verdict
from task_executor import WHITELIST

Heartbeat = Callable[..., CompletedProcess[str]]

README = (PROGRAM_FOLDER / "README.md").read_text()
GUARANTEES = (PROGRAM_FOLDER / "docs/guarantees.md").read_text()
DOCUMENTS = [PROGRAM_FOLDER / "README.md", *sorted((PROGRAM_FOLDER / "docs").glob("*.md"))]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_readme_table_is_the_whitelist() -> None:
    header = "| Category | Task | Parameters | What it does | Time limit | Changes |"
    table = README.partition(header)[2].partition("\n\n")[0].strip().splitlines()[1:]

    assert [cells(row) for row in table] == [
        [
            task.category,
            f"`{name}`",
            ", ".join(
                f"`{field}`" if info.is_required() else f"`[{field}]`"
                for field, info in task.params.model_fields.items()
            )
            or "–",
            description(task),
            f"{task.timeout} s",
            "yes" if task.changes else "",
        ]
        for name, task in WHITELIST.items()
    ]


def test_env_example_is_the_settings_with_their_defaults() -> None:
    text = (PROGRAM_FOLDER / ".env.example").read_text()
    written = dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.M))

    assert written == {name: default for name, (default, _) in program_settings.VARIABLES.items()}
    assert program_settings.load(written) == program_settings.load({})
    explained = re.findall(r"(?:^# .*\n)+[A-Z_]+=", text, re.M)
    assert len(explained) == len(written)


def test_the_readme_names_every_verdict() -> None:
    for verdict in get_args(Verdict):
        assert re.search(rf"^\| \S+ {verdict.upper()} \|", README, re.M), verdict


def test_the_statuses_in_schema_sql_are_those_of_the_code() -> None:
    comment = (
        (PROGRAM_FOLDER / "catalyst_heartbeat/sql/schema.sql")
        .read_text()
        .partition("CREATE TABLE")[0]
    )
    documented = set(re.findall(r"^--   ([a-z]+) {2,}", comment, re.M))
    statements = "".join(
        path.read_text() for path in PROGRAM_FOLDER.glob("catalyst_heartbeat/*/*.py")
    )
    compared = re.findall(r"\bstatus (?:=|<>) '([a-z]+)'", statements)
    listed = re.findall(r"\bstatus IN \(([^)]*)\)", statements)
    used = {*compared, *re.findall(r"'([a-z]+)'", " ".join(listed)), "expired"}

    assert used == documented


def test_the_readme_groups_every_setting() -> None:
    table = README.partition("| group | settings |")[2].partition("\n\n")[0]

    assert sorted(re.findall(r"`([A-Z_]+)`", table)) == sorted(program_settings.VARIABLES)


def test_the_options_that_documents_name_exist() -> None:
    code = (PROGRAM_FOLDER / "catalyst_heartbeat/commands/options.py").read_text()
    known = set(re.findall(r'"(--[a-z-]+)"', code)) | {"--quick", "--deny", "--approve"}
    text = "".join(re.findall(r"run-heartbeat-public\.sh[^`\n]*|`… [^`]*`", README))

    assert set(re.findall(r"--[a-z][a-z-]+", text)) - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_a_file_that_is_not_there(document: Path) -> None:
    text = document.read_text()
    others = {"heartbeat.py", "settings.py", "web_dashboard.py"}
    hidden = (".venv", ".git", ".mypy", ".ruff", ".hypothesis", ".pytest")
    tops = [top for top in PROGRAM_FOLDER.iterdir() if not top.name.startswith(hidden)]
    ours = [f"/{path}" for top in tops for path in (top, *top.rglob("*"))]
    for name in re.findall(r"`([\w./-]+\.(?:py|sql|sh|txt|toml|lock|example))`", text):
        known = name in others or re.match("[A-Z_]+/", name)  # beneath what a setting names
        assert known or any(path.endswith(f"/{name.removeprefix('./')}") for path in ours), name
    for name in re.findall(r"\]\(([\w./-]+\.md)\)", text):
        assert (document.parent / name).exists(), name


def test_every_test_that_a_document_names_exists() -> None:
    file, named = "", 0
    for path, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", GUARANTEES):
        file = path or file
        if test:
            named += 1
            (found,) = (PROGRAM_FOLDER / "tests").rglob(file)
            assert f"def {test}(" in found.read_text(), (file, test)
    assert named > 40


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 200


def test_big_bros_side_works_as_it_is_written(database: Database, heartbeat: Heartbeat) -> None:
    code = (PROGRAM_FOLDER / "docs/big_bro.md").read_text().partition("```python\n")[2]
    namespace: dict[str, Any] = {}
    exec(code.partition("```")[0], namespace)  # noqa: S102 - what the document says is what is tried
    tools = json.loads(heartbeat("--list-tasks", "--json").stdout)
    good = {"id": "toolu_1", "name": tools[6]["name"], "input": {}}
    bad = {"id": "toolu_2", "name": "service_health", "input": {"port": 1}}

    with closing(psycopg2.connect(database.url)) as conn:
        sent = [namespace["send"](conn, call, "a test") for call in (good, bad)]
        heartbeat()
        results = [
            namespace["result"](conn, call, task)
            for call, task in zip((good, bad), sent, strict=True)
        ]

    assert [result["is_error"] for result in results] == [False, True]
    assert [result["tool_use_id"] for result in results] == ["toolu_1", "toolu_2"]
    assert results[0]["content"].startswith("✅ SUCCESS\n\n## Task: list_tasks\n")
    assert "not one of" in results[1]["content"]

"""What is written down beside the code is so."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from support.postgres import PROGRAM_FOLDER

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.catalogue import description
from catalyst_heartbeat.outcome import Verdict
from task_executor import WHITELIST

README = (PROGRAM_FOLDER / "README.md").read_text()


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


@pytest.mark.skip(reason="the README still names the modules of the flat layout")
def test_no_document_names_a_file_that_is_not_there() -> None:
    for name in re.findall(r"`([\w./-]+\.(?:py|sql|sh|txt|toml|example))`", README):
        assert name == "heartbeat.py" or list(PROGRAM_FOLDER.rglob(name)), name


def test_every_test_that_the_readme_names_exists() -> None:
    file, named = "", 0
    for path, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", README):
        file = path or file
        if test:
            named += 1
            (path,) = (PROGRAM_FOLDER / "tests").rglob(file)
            assert f"def {test}(" in path.read_text(), (file, test)
    assert named > 30

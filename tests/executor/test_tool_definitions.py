"""--list-tasks --json: a tool list that a Claude agent takes, and whose schemas tell the truth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.catalogue import catalogue, catalogue_text, tool_definitions
from task_executor import WHITELIST

SETTINGS = program_settings.load({"ALLOWED_PATHS": "/srv/app+1/:/opt/x.y"})
TOOLS = {tool["name"]: tool for tool in tool_definitions(WHITELIST, SETTINGS)}
SCHEMAS = {name: tool["input_schema"] for name, tool in TOOLS.items()}
WITH_PARAMS = [name for name, schema in SCHEMAS.items() if schema["properties"]]
PATHS = [
    "/opt/x.y/a.py", "/opt/x.y/a b/c.md", "/opt/x.y/.a.sh", "/opt/x.y/..py", "/opt/x.y/.py",
    "/opt/x.y/../a.py", "/opt/x.y/./a.py", "/opt/x.y//a.py", "/opt/x.y/a.py/", "/opt/x.y/a.py\n",
    "/opt/xzy/a.py", "/opt/x.y", "/opt/x.y/a .py", "/opt/x.y/-a.py", "/opt/x.y/a/-b/c.py",
    "/srv/app+1/a.py", "/srv/appp1/a.py", "relative.py", "/opt/x.y/a.txt", "/opt/x.y/é.py",
    "/opt/x.y/a.PY",
    f"/opt/x.y/{'n' * 252}.py", f"/opt/x.y/{'n' * 253}.py", f"/opt/x.y/{'n' * 256}/a.py",
    f"/opt/x.y/{'n/' * 2042}abc.py", f"/opt/x.y/{'n/' * 2043}abc.py", "/opt/x.y/a\0.py",
]  # fmt: skip
ODD: list[Any] = [
    *PATHS, "", "5000", "05000", "trading", "Trading", "trading\n", "../etc", "a" * 101, "log.1",
    "-log", 0, -1, 5000, 2**70, True, None, 1.5, [], {},
]  # fmt: skip


def fields(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from SCHEMAS[name]["properties"].items()


def validator(name: str) -> Draft202012Validator:
    """Return the validator of a task's schema, whose "$" is the end as JSON Schema has it."""
    text = json.dumps(SCHEMAS[name])
    return Draft202012Validator(json.loads(re.sub(r'("pattern": "[^"]*)\$"', r'\1\\\\Z"', text)))


def model_admits(name: str, params: dict[str, Any]) -> bool:
    try:
        WHITELIST[name].params.model_validate(params, context=SETTINGS)
    except ValidationError:
        return False
    return True


def is_same_text(params: dict[str, Any]) -> bool:
    """Whether this is the one rule that JSON Schema cannot say: old_text differs from new_text."""
    return "old_text" in params and params["old_text"] == params.get("new_text")


def test_there_are_22_tasks_of_five_categories() -> None:
    assert len(WHITELIST) == len(TOOLS) == 22
    assert list(dict.fromkeys(task.category for task in WHITELIST.values())) == [
        "System Health", "Logs", "Database", "Service Control", "File Operations",
    ]  # fmt: skip
    assert all(name == task.run.__name__ for name, task in WHITELIST.items())


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_what_a_claude_agent_takes(name: str) -> None:
    tool = TOOLS[name]

    assert set(tool) == {"name", "description", "input_schema"}
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
    Draft202012Validator.check_schema(tool["input_schema"])
    assert tool["input_schema"]["type"] == "object"
    assert tool["input_schema"]["additionalProperties"] is False
    assert json.loads(json.dumps(tool)) == tool


@pytest.mark.parametrize("name", TOOLS)
def test_a_description_says_what_when_and_what_it_changes(name: str) -> None:
    description = TOOLS[name]["description"]

    sentences = re.findall(r"\S.*?\.(?= |$)", description)
    change = "Changes this server." if WHITELIST[name].changes else "Changes nothing."
    assert len(sentences) >= 3
    assert sentences[-1] == change
    assert description.count("hanges nothing") + description.count("hanges this server") == 1


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_a_field_is_described_and_bounded(name: str) -> None:
    for field, schema in fields(name):
        assert re.match(r"[A-Z].{15,}", schema["description"]), field
        kinds = schema.get("anyOf", [schema])
        for kind in kinds:
            if kind.get("type") == "integer":
                assert {"minimum", "maximum"} <= set(kind), field
            elif kind.get("type") != "null":
                assert {"enum", "maxLength", "pattern"} & set(kind), field


def test_enums_are_the_values_of_the_settings() -> None:
    narrow = program_settings.load({"TRADING_SERVICES": "web,db", "HEALTH_PORTS": "80"})
    schemas = {tool["name"]: tool["input_schema"] for tool in tool_definitions(WHITELIST, narrow)}

    assert schemas["restart_service"]["properties"]["service"]["enum"] == ["web", "db"]
    assert schemas["service_health"]["properties"]["port"]["enum"] == [80, "80"]


def test_the_catalogue_names_the_same_tasks_and_schemas() -> None:
    listed = {entry["name"]: entry for entry in catalogue(WHITELIST, SETTINGS)}

    assert {name: entry["input_schema"] for name, entry in listed.items()} == SCHEMAS
    assert all(f"  {name}(" in catalogue_text(WHITELIST) for name in TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_what_the_schema_admits_the_model_admits(name: str) -> None:
    schema = validator(name).schema
    strategies = {field: from_schema(kind) for field, kind in schema["properties"].items()}
    required = {field: strategies.pop(field) for field in schema.get("required", [])}

    @hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries(required, optional=strategies))
    def check(params: dict[str, Any]) -> None:
        assert model_admits(name, params) or is_same_text(params)

    check()


@pytest.mark.parametrize("name", TOOLS)
def test_what_the_model_admits_the_schema_admits(name: str) -> None:
    schema = validator(name)
    names = st.sampled_from([*(field for field, _ in fields(name)), "reason", "unknown"])
    values = st.one_of(st.sampled_from(ODD), st.text(), st.integers())

    @hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, values, max_size=4))
    def check(params: dict[str, Any]) -> None:
        assert model_admits(name, params) <= schema.is_valid(params)
        assert schema.is_valid(params) <= (model_admits(name, params) or is_same_text(params))

    check()


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_schema_and_model_agree_on_a_path(path: str) -> None:
    params = {"filepath": path}

    assert validator("list_backups").is_valid(params) == model_admits("list_backups", params)

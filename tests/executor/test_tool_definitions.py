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
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.executor.catalogue import catalogue, catalogue_text, tool_definitions
from task_executor import WHITELIST

SETTINGS = program_settings.load({"ALLOWED_PATHS": "/srv/app+1/:/opt/x.y"})
TOOLS = {tool["name"]: tool for tool in tool_definitions(WHITELIST, SETTINGS)}
SCHEMAS = {name: tool["input_schema"] for name, tool in TOOLS.items()}
WITH_PARAMS = [name for name, schema in SCHEMAS.items() if schema["properties"]]
ODD: list[Any] = [
    "/opt/x.y/a.py", "/opt/x.y/../a.py", "", "5000", "05000", "trading", "Trading", "trading\n",
    "../etc", "a" * 101, "log.1", "-log", 0, -1, 5000, 2**70, True, None, 1.5, [], {},
]  # fmt: skip
# Claude's strict tool use takes no other: platform.claude.com, "Structured outputs",
# "JSON Schema limitations"; no tool needs "anyOf", "pattern" or "default", which it takes in part.
STRICT_OBJECT = {"type", "properties", "required", "additionalProperties"}
STRICT_FIELD = {"type", "description", "enum"}
# What the documentation shows of each task: optional parameters given, and left out.
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("docker_ps", {}),
    ("service_health", {"port": 5005}),
    ("docker_logs", {"service": "trading"}),
    ("docker_logs", {"service": "news", "lines": 500, "contains": "a b", "since_minutes": 10_080}),
    ("catalyst_logs", {"logfile": "heartbeat-public", "lines": 1, "contains": "x" * 200}),
    ("system_logs", {"service": "docker", "lines": 50, "contains": "$(id)", "since_minutes": 1}),
    ("db_task_history", {"limit": 100}),
    ("write_file", {"filepath": "/opt/x.y/a b/c.md", "content": ""}),
    ("edit_file", {"filepath": "/opt/x.y/.a.sh", "old_text": "a", "new_text": ""}),
    ("rollback_file", {"filepath": "/srv/app+1/a.py"}),
    ("rollback_file", {"filepath": "/srv/app+1/a.py", "backup": "20260101T000000.000000Z-1"}),
    ("read_file", {"filepath": "/srv/app+1/a.py", "first_line": 1, "line_count": 500}),
]


def fields(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from SCHEMAS[name]["properties"].items()


def model_admits(name: str, params: dict[str, Any]) -> bool:
    try:
        WHITELIST[name].params.model_validate(params, context=SETTINGS)
    except ValidationError:
        return False
    return True


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


@pytest.mark.parametrize("name", TOOLS)
def test_a_schema_has_only_what_strict_tool_use_takes(name: str) -> None:
    schema = SCHEMAS[name]

    assert set(schema) == STRICT_OBJECT
    assert set(schema["required"]) <= set(schema["properties"])
    for field, shape in fields(name):
        assert set(shape) <= STRICT_FIELD, field
        assert shape["type"] in ("string", "integer")
        kind = int if shape["type"] == "integer" else str
        assert all(type(value) is kind for value in shape.get("enum", []))


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_a_field_is_described_with_the_limits_that_its_keywords_cannot_say(name: str) -> None:
    model = WHITELIST[name].params.model_json_schema()["properties"]
    for field, shape in fields(name):
        kinds = model[field].get("anyOf", [model[field]])
        limits = {key: value for kind in kinds for key, value in kind.items()}
        assert re.match(r"[A-Z].{15,}", shape["description"]), field
        for limit in ("minimum", "maximum", "maxLength"):
            if limit in limits:
                assert f"{limits[limit]:,}" in shape["description"], (field, limit)
        if limits.get("default"):
            assert f"Without it: {limits['default']}" in shape["description"]
        assert {"enum", "minimum", "maxLength", "pattern"} & set(limits), field


def test_a_path_is_described_with_the_folders_that_are_allowed() -> None:
    description = SCHEMAS["read_file"]["properties"]["filepath"]["description"]

    assert "/srv/app+1, /opt/x.y" in description


def test_enums_are_the_values_of_the_settings() -> None:
    narrow = program_settings.load({"TRADING_SERVICES": "web,db", "HEALTH_PORTS": "80"})
    schemas = {tool["name"]: tool["input_schema"] for tool in tool_definitions(WHITELIST, narrow)}

    assert schemas["restart_service"]["properties"]["service"]["enum"] == ["web", "db"]
    assert schemas["service_health"]["properties"]["port"]["enum"] == [80]


def test_the_catalogue_names_the_same_tasks_and_schemas() -> None:
    listed = {entry["name"]: entry for entry in catalogue(WHITELIST, SETTINGS)}

    assert {name: entry["input_schema"] for name, entry in listed.items()} == SCHEMAS
    assert all(f"  {name}(" in catalogue_text(WHITELIST) for name in TOOLS)


@pytest.mark.parametrize(("name", "params"), EXAMPLES)
def test_schema_and_model_admit_what_is_documented(name: str, params: dict[str, Any]) -> None:
    assert Draft202012Validator(SCHEMAS[name]).is_valid(params)
    assert model_admits(name, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_what_the_model_admits_the_schema_admits_but_for_digits_and_null(name: str) -> None:
    schema = Draft202012Validator(SCHEMAS[name])
    enums = [value for _, shape in fields(name) for value in shape.get("enum", [])]
    names = st.sampled_from([*(field for field, _ in fields(name)), "reason", "unknown"])
    values = st.one_of(st.sampled_from([*ODD, *enums]), st.text(), st.integers())

    @hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, values, max_size=4))
    def check(params: dict[str, Any]) -> None:
        if model_admits(name, params):
            params = {field: value for field, value in params.items() if value is not None}
            if str(params.get("port")).isdecimal():
                params["port"] = int(params["port"])
            assert schema.is_valid(params)

    check()

"""The whitelist as people, programs and models read it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from catalyst_heartbeat.outcome import Context, Result
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import NoParams, Task


def list_tasks(params: NoParams, context: Context) -> Result:
    """List the whitelisted tasks and their parameters.

    Use it to learn what this agent can do before asking for it. The result holds a JSON Schema
    of each task's parameters.
    """
    return Result(catalogue_text(context.whitelist), catalogue(context.whitelist, context.settings))


def description(task: Task) -> str:
    """Return what a task does, in one line: the first one of its docstring."""
    return (inspect.getdoc(task.run) or "").partition("\n")[0].rstrip(".")


def purpose(task: Task) -> str:
    """Return what a model needs to choose a task: what it does, when to use it, what it changes."""
    changes = "Changes this server." if task.changes else "Changes nothing."
    return " ".join(f"{inspect.getdoc(task.run)} {changes}".split())


def input_schema(task: Task, settings: Settings) -> dict[str, Any]:
    """Return the JSON Schema of a task's parameters, with the values that the settings allow.

    It has only the keywords that strict tool use takes: a limit is a sentence of the description.
    """
    schema = task.params.model_json_schema()
    fields = schema.get("properties", {})
    required = [name for name in fields if name in schema.get("required", ())]
    return {
        "type": "object",
        "properties": {name: field_schema(field, settings) for name, field in fields.items()},
        "required": required,
        "additionalProperties": False,
    }


def field_schema(field: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a parameter's schema; the null of an optional one is that it may be left out."""
    found = {**next(iter(field.get("anyOf", ())), {}), **field}
    text = [found["description"]]
    if found.get("pattern") == "allowed_paths":
        text.append(f"The allowed folders: {', '.join(settings.allowed_paths)}")
    if "minimum" in found:
        text.append(f"From {found['minimum']:,} to {found['maximum']:,}")
    if "maxLength" in found:
        text.append(f"At most {found['maxLength']:,} characters")
    if found.get("default"):
        text.append(f"Without it: {found['default']}")
    shape: dict[str, Any] = {"type": found.get("type"), "description": ". ".join(text)}
    if "enum" in found:
        shape["enum"] = list(getattr(settings, found["enum"]))
        shape["type"] = "integer" if type(shape["enum"][0]) is int else "string"
    return shape


def catalogue(whitelist: Mapping[str, Task], settings: Settings) -> list[dict[str, Any]]:
    """Return the whitelist as data, one object a task."""
    return [
        {
            "name": name,
            "category": task.category,
            "description": description(task),
            "changes": task.changes,
            "timeout_seconds": task.timeout,
            "input_schema": input_schema(task, settings),
        }
        for name, task in whitelist.items()
    ]


def catalogue_text(whitelist: Mapping[str, Task]) -> str:
    """Return the whitelist for people: by category, with the parameters' names."""
    lines: list[str] = []
    for name, task in whitelist.items():
        if task.category not in lines:
            lines += ["", task.category] if lines else [task.category]
        params = ", ".join(
            field if info.is_required() else f"[{field}]"
            for field, info in task.params.model_fields.items()
        )
        lines.append(f"  {name}({params}): {description(task)}")
    return "\n".join(lines)


def tool_definitions(whitelist: Mapping[str, Task], settings: Settings) -> list[dict[str, Any]]:
    """Return the whitelist as the tool list that a Claude agent takes."""
    return [
        {
            "name": name,
            "description": purpose(task),
            "input_schema": input_schema(task, settings),
        }
        for name, task in whitelist.items()
    ]

"""The rooms of the package: imports point one way, and an idle cycle loads little."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.postgres import PROGRAM_FOLDER

PACKAGE = "catalyst_heartbeat"
# From the ground up; a module may import from its own floor and from those below it.
FLOORS = (
    ("configured_secrets", "env_file", "settings", "named_secrets", "private_keys", "redaction",
     "text", "log", "monitor", "outcome", "progress", "report", "request"),
    ("host", "files"),
    ("tasks",),
    ("queue", "executor", "approvals"),
    ("cycle", "demo"),
    ("commands",),
)  # fmt: skip
# What an idle cycle does without: the options, the flow, the monitor, the cleaning of what went
# wrong, the zones of FREEZE_WINDOWS; and, of those with work, the Docker SDK.
LATE = {
    "heartbeat_public": 3,
    "catalyst_heartbeat.log": 1,
    "catalyst_heartbeat.host.containers": 3,
    "catalyst_heartbeat.settings": 1,
}


def imports(path: Path) -> dict[str, list[int]]:
    """Return what a module imports of the project, each with the columns where it stands."""
    found: dict[str, list[int]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (PROGRAM_FOLDER / f"{name.replace('.', '/')}.py").exists()
                found.setdefault(name if is_module else node.module, []).append(node.col_offset)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, []).append(node.col_offset)
    return found


MODULES = {
    ".".join(path.relative_to(PROGRAM_FOLDER).with_suffix("").parts): path
    for path in (PROGRAM_FOLDER / PACKAGE).rglob("*.py")
    if path.name != "__init__.py"
}
GRAPH = {
    name: {found for found in imports(path) if found in MODULES} for name, path in MODULES.items()
}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_stands_on_a_floor() -> None:
    assert all(floor(module) >= 0 for module in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_above_its_floor(module: str) -> None:
    assert [other for other in GRAPH[module] if floor(other) > floor(module)] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_package_never_imports_a_top_level_file(module: str) -> None:
    tops = {path.stem for path in PROGRAM_FOLDER.glob("*.py")}

    assert tops & {found.split(".")[0] for found in imports(MODULES[module])} == set()


def test_a_category_of_tasks_never_imports_another() -> None:
    categories = [name for name in MODULES if ".tasks." in name and not name.endswith(".base")]

    assert categories
    assert [name for name in categories if GRAPH[name] & set(categories)] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, (*way, module)
        if module not in done:
            for other in GRAPH[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_imports_stand_at_the_top_but_for_the_known_late_ones() -> None:
    files = {**MODULES, "heartbeat_public": PROGRAM_FOLDER / "heartbeat_public.py"}
    late = {}
    for name, path in files.items():
        functions = (
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
        )
        inside = [
            part
            for function in functions
            for part in ast.walk(function)
            if isinstance(part, ast.Import | ast.ImportFrom)
        ]
        if inside:
            late[name] = len(inside)

    assert late == LATE

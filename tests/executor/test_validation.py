"""Parameters: attacks on every field of every task, and what a rejection says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.file_setup import Workspace, make_workspace
from support.requests import job_of

from catalyst_heartbeat.executor.run import execute
from catalyst_heartbeat.outcome import Context, Outcome, TaskRejected
from catalyst_heartbeat.request import parse
from catalyst_heartbeat.settings import Settings
from task_executor import WHITELIST

PATH = "/allowed/file.md"
GOOD: dict[str, dict[str, Any]] = {
    "service_health": {"port": 5005},
    "docker_logs": {
        "service": "orchestration", "lines": 5, "contains": "a", "since_minutes": 5
    },
    "catalyst_logs": {"logfile": "heartbeat-public", "lines": 5, "contains": "a"},
    "system_logs": {"service": "docker", "lines": 5, "contains": "a", "since_minutes": 5},
    "db_task_history": {"limit": 5},
    "restart_service": {"service": "trading"},
    "write_file": {"filepath": PATH, "content": "text"},
    "edit_file": {"filepath": PATH, "old_text": "a", "new_text": "b"},
    "rollback_file": {"filepath": PATH, "backup": "20251231T121500.000000Z-7"},
    "read_file": {"filepath": PATH, "first_line": 1, "line_count": 10},
    "list_backups": {"filepath": PATH},
}  # fmt: skip
# What is written into a file or looked up in a list, and never handed to a tool.
FREE_TEXT = {"content", "old_text", "new_text", "backup", "contains"}
FIELDS = [(task, field) for task, params in GOOD.items() for field in params]
CHECKED = [(task, field) for task, field in FIELDS if field not in FREE_TEXT]
NUMERIC = [(task, field) for task, field in FIELDS if type(GOOD[task][field]) is int]

OPTIONS = ["-", "--", "-rf", "--help", "--since=1970-01-01", "@file", "@/etc/passwd", "-uroot"]
SHELL = [
    "; touch marker", "&& touch marker", "| touch marker", "$(touch marker)", "`touch marker`",
    "\ntouch marker\n", "trading; touch marker", "trading\ntouch marker", "trading && id", "*",
    "?", "[a-z]*", "{0}", "{settings.secrets}", "%s", "%(secret)s", "{{7*7}}", "${IFS}", "~",
    "$HOME", "<(id)", "> marker", "#", "\\", "'", '"', "!!", "trading ", " trading", "trading\n",
    "trading\t", "trading,scanner", "../trading", "trading/../scanner", "/trading", "tradіng",
    "trading\u200b", "ｔrading", "", " ", "\r", "a" * 5000,
]  # fmt: skip
# Plain enough for a log file's name, and yet the name of no service.
NO_SERVICES = ["tra", "Trading", "TRADING", "trading1", "catalyst-trading", "__class__", "0"]
NUMBERS: list[Any] = [
    0, -1, -5005, 10**19, 5.0, 5.5, True, False, None, [], [5005], {}, {"port": 5005}, "",
    "-5005", "+5005", "05005", "5005 ", " 5005", "5005\n", "5_005", "5005.0", "5e3", "0x138d",
    "5000@host", "5000/../x", "5000#", "5000?x", "localhost:5000", "127.0.0.1:5000", "5005;id",
    "5005\u200b", "٥٠٠٠", "５００５", "²",
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture(scope="module")
def settings() -> Settings:
    from catalyst_heartbeat.settings import load

    return load({"ALLOWED_PATHS": "/allowed"})


def check(settings: Settings, task: str, params: dict[str, Any]) -> Any:
    """Send a request through the parser and the whitelist, as a message goes."""
    return job_of(parse(f"TASK: {task}\nPARAMS: {json.dumps(params)}"), settings).params


def rejection(settings: Settings, task: str, params: dict[str, Any]) -> str:
    with pytest.raises(TaskRejected) as caught:
        check(settings, task, params)
    return str(caught.value)


@pytest.mark.parametrize("secret", ["ghp_aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5", "Sw0rdfish-In-Env"])
def test_no_rejection_quotes_a_part_of_a_secret_in_a_parameter(
    settings: Settings, secret: str
) -> None:
    for place in range(100):
        text = "p" * place + "-" + secret
        for params in ({"service": text}, {"service": [text]}, {text: 1, "service": "trading"}):
            with pytest.raises(TaskRejected) as caught:
                check(settings, "docker_logs", params)

            assert secret[:6] not in caught.value.told(("Sw0rdfish-In-Env",))


def test_every_parameter_of_every_task_is_attacked_here(settings: Settings) -> None:
    fields = {
        (name, field) for name, task in WHITELIST.items() for field in task.params.model_fields
    }

    assert fields == set(FIELDS)
    for task, params in GOOD.items():
        assert check(settings, task, params).model_dump(exclude_unset=True) == params


@pytest.mark.parametrize("value", [*OPTIONS, *SHELL])
def test_option_or_shell_text_is_rejected_where_a_tool_would_see_it(
    settings: Settings, value: str
) -> None:
    for task, field in CHECKED:
        found = rejection(settings, task, {**GOOD[task], field: value})

        assert found.startswith(f"{task}: {field}: ")
        assert json.dumps(value)[:100] in found


@pytest.mark.parametrize("service", NO_SERVICES)
def test_a_service_is_named_whole_or_not_at_all(settings: Settings, service: str) -> None:
    for task in ("docker_logs", "system_logs", "restart_service"):
        assert "service: not one of: " in rejection(settings, task, {"service": service})


@pytest.mark.parametrize("value", NUMBERS)
def test_odd_number_is_rejected(settings: Settings, value: Any) -> None:
    for task, field in NUMERIC:
        assert f"{task}: {field}: " in rejection(settings, task, {**GOOD[task], field: value})


@pytest.mark.parametrize("value", [True, 5.5, [], ["trading"], {}, {"a": "b"}, None])
def test_value_of_another_type_is_rejected(settings: Settings, value: Any) -> None:
    for task, field in FIELDS:
        if (field, value) == ("backup", None):
            continue
        found = rejection(settings, task, {**GOOD[task], field: value})

        assert f"{task}: {field}: " in found
        assert f"; found {json.dumps(value)}" in found


@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_name_is_one_of_the_settings_or_nothing(settings: Settings, value: str) -> None:
    known = (*settings.log_services, *settings.trading_services, *settings.system_units)
    assume(value not in known)
    for task in ("docker_logs", "restart_service", "system_logs", "service_health"):
        field = next(iter(GOOD[task]))
        assert f"{task}: {field}: not one of: " in rejection(settings, task, {field: value})


@pytest.mark.parametrize("value", [value for value in [*OPTIONS, *SHELL] if value])
def test_free_text_is_taken_literally(workspace: Workspace, value: str) -> None:
    file = workspace.root / "file.md"

    for task, params, wanted in [
        ("write_file", {"content": f"{value}§"}, f"{value}§"),
        ("edit_file", {"old_text": "§", "new_text": f"§{value}"}, f"{value}§{value}"),
        ("edit_file", {"old_text": f"§{value}", "new_text": "."}, f"{value}."),
    ]:
        outcome = run(workspace, task, {"filepath": str(file), **params})
        assert (outcome.verdict, outcome.error) == ("success", "")
        assert file.read_bytes() == wanted.encode()
    outcome = run(workspace, "rollback_file", {"filepath": str(file), "backup": value[:300]})
    assert f'there is no backup "{value[:300]}"' in outcome.error
    assert not list(workspace.folder.rglob("marker"))


def run(workspace: Workspace, task: str, params: dict[str, Any]) -> Outcome:
    job = job_of(parse(f"TASK: {task}\nPARAMS: {json.dumps(params)}"), workspace.settings)
    context: Context = workspace.context(deadline=time.monotonic() + 30)
    return execute(job, context)


# What one may take for a name or a number that is allowed.
BEYOND: dict[tuple[str, str], list[Any]] = {
    ("service_health", "port"): [4999, 5010, 65_536],
    ("docker_logs", "service"): ["0123456789ab", "../images/x", "docker", ["trading"]],
    ("docker_logs", "lines"): [501, "50"],
    ("catalyst_logs", "logfile"): [".", "..", ".log", "a\u2028", "%2e%2e", "é", "a" * 101],
    ("system_logs", "service"): ["ssh", "docker.service", "trading"],
    ("system_logs", "since_minutes"): [10_081, "5"],
    ("restart_service", "service"): ["orchestration", "docker"],
    ("edit_file", "old_text"): [""],
    ("rollback_file", "backup"): ["", 5, "a" * 301],
    ("read_file", "line_count"): [501],
}  # fmt: skip


@pytest.mark.parametrize(("task", "field"), BEYOND)
def test_what_is_almost_allowed_is_rejected(settings: Settings, task: str, field: str) -> None:
    for value in BEYOND[task, field]:
        params = {**GOOD[task], field: value}
        assert f"{task}: {field}: " in rejection(settings, task, params)


SERVICES = "trading, scanner, workflow, risk-manager, pattern, technical, news, reporting"
PORTS = ", ".join(map(str, range(5000, 5010)))


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        (
            "restart_service", {"service": "web"},
            f'restart_service: service: not one of: {SERVICES}; found "web"',
        ),
        ("service_health", {"port": 80}, f"service_health: port: not one of: {PORTS}; found 80"),
        ("disk_space", {"path": "/"}, 'disk_space: unknown parameter "path"; known: none'),
        (
            "read_file", {"filepath": PATH, "lines": 5},
            'read_file: unknown parameter "lines"; known: filepath, first_line, line_count',
        ),
        ("restart_service", {}, 'restart_service: missing parameter "service"'),
        (
            "edit_file", {"filepath": PATH},
            'edit_file: missing parameter "old_text"; missing parameter "new_text"',
        ),
        (
            "edit_file", {"filepath": PATH, "old_text": "a", "new_text": "a"},
            "edit_file: new_text must differ from old_text",
        ),
        (
            "db_task_history", {"limit": 101},
            "db_task_history: limit: Input should be less than or equal to 100; found 101",
        ),
        (
            "db_task_history", {"limit": True},
            "db_task_history: limit: Input should be a valid integer; found true",
        ),
        (
            "write_file", {"filepath": "/etc/x.md", "content": ""},
            'write_file: filepath: the path must lie beneath ... /allowed; found "/etc/x.md"',
        ),
        (
            "write_file", {"filepath": PATH, "content": "x" * 1048577},
            "write_file: content: String should have at most 1048576 characters; found "
            f'"{"x" * 99}…',
        ),
    ],
)  # fmt: skip
def test_rejection_says_what_was_found_and_what_would_be_right(
    settings: Settings, task: str, params: dict[str, Any], message: str
) -> None:
    begin, _, end = message.partition(" ... ")

    found = rejection(settings, task, params)

    assert found == message or (end and found.startswith(begin) and found.endswith(end))


def test_rejection_of_a_thousand_parameters_stays_short(settings: Settings) -> None:
    found = rejection(settings, "disk_space", {f"{number:080}": "x" for number in range(1000)})

    assert found.count("unknown parameter") == 10
    assert len(found) < 2000

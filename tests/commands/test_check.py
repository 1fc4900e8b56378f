"""--check: content only where a cycle can work, and clear about what it cannot."""

from __future__ import annotations

import json
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.docker_engine import Engine, RunContainer, settings_for
from support.postgres import Database, message, send
from support.pretended_systemd import ACTIVE, PretendSystemd

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.commands import check
from task_executor import WHITELIST

Heartbeat = Callable[..., CompletedProcess[str]]

REFUSALS = {
    "read_only": "ALTER ROLE {login} SET default_transaction_read_only = on",
    "state": "REVOKE UPDATE ON claude_state FROM {login}",
    "claim": "REVOKE UPDATE ON claude_messages FROM {login}",
    "report": "REVOKE INSERT ON claude_messages FROM {login}",
    "observation": "REVOKE INSERT ON claude_observations FROM {login}",
    "sequence": "REVOKE ALL ON SEQUENCE claude_messages_id_seq FROM {login}",
    "column": "ALTER TABLE claude_messages DROP COLUMN requires_response",
    "exhausted": "ALTER SEQUENCE claude_messages_id_seq MAXVALUE 10; "
    "SELECT setval('claude_messages_id_seq', 10)",
    "reports refused": "ALTER TABLE claude_messages ADD CHECK (msg_type <> 'response')",
    "cards refused": "ALTER TABLE claude_messages ADD CHECK (msg_type <> 'escalation')",
}


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
def test_check_fails_where_a_cycle_would(
    refusal: str, database: Database, heartbeat: Heartbeat
) -> None:
    login = f"limited_in_{database.execute('SELECT current_database()')[0][0]}"
    database.execute(
        f"CREATE ROLE {login} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {login};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {login}"
    )
    url = database.url.replace("//postgres@", f"//{login}@")
    sent = [send(database, body) for body in ("TASK: disk_space", "TASK: unknown")]
    before = heartbeat("--check", RESEARCH_DATABASE_URL=url)

    database.execute(REFUSALS[refusal].format(login=login))
    check = heartbeat("--check", RESEARCH_DATABASE_URL=url)
    unchanged = [message(database, id)["status"] for id in sent]
    cycle = heartbeat(RESEARCH_DATABASE_URL=url)
    database.execute(f"DROP OWNED BY {login}; DROP ROLE {login}")

    assert before.returncode == 0, before.stdout
    # A request for approval that is refused is reported to its sender: that cycle did its job.
    codes = {"read_only": (0, 0), "cards refused": (1, 0)}
    assert (check.returncode, cycle.returncode) == codes.get(refusal, (1, 1))
    assert unchanged == ["pending", "pending"]
    assert "Traceback" not in check.stderr


def test_check_as_json_says_the_same_under_stable_names(heartbeat: Heartbeat) -> None:
    lines = heartbeat("--check")
    found = json.loads(heartbeat("--check", "--json").stdout)

    assert {tuple(row) for row in found} == {("level", "subject", "text")}
    assert {row["level"] for row in found} <= {"ok", "warn", "FAIL"}
    shown = [re.split(r" +", line, maxsplit=2)[:2] for line in lines.stdout.splitlines()]
    assert [[row["level"], row["subject"]] for row in found] == shown


def test_check_shows_what_is_set_but_no_secret_of_it(heartbeat: Heartbeat) -> None:
    shown = heartbeat(
        "--check",
        MAX_TASKS_PER_RUN="7",
        NOTIFY_URL="https://me:hunter22@ntfy.example/secret-topic",
        FREEZE_WINDOWS="mon-sun 00:00-24:00 UTC",
        TASK_REQUIRING_APPROVAL="edit_file",
        task_senders="somebody",
        HOMER="nobody",
    ).stdout

    assert "ok   settings   MAX_TASKS_PER_RUN=7\n" in shown
    assert "ok   settings   NOTIFY_URL=https://ntfy.example/...\n" in shown
    assert not {"RUN_SECONDS", "HOMER", "secret-topic", "hunter22"} & set(re.split(r"\W", shown))
    assert "warn settings   TASK_REQUIRING_APPROVAL is not a setting; is TASKS_REQUIRING" in shown
    assert "warn settings   task_senders is not a setting; is TASK_SENDERS meant?" in shown
    assert re.search(
        r"^warn brakes +what changes something needs approval: FREEZE_WINDOWS: \"mon-sun 00:00",
        shown,
        re.M,
    )


def test_the_remedy_for_an_open_env_file_is_shown_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").touch()
    monkeypatch.setattr(program_settings, "PROGRAM_FOLDER", str(tmp_path))
    settings = settings_for("")

    remedy = f"others may read {tmp_path}/.env: chmod 600 {tmp_path}/.env"
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        (tmp_path / ".env").chmod(mode)
        check.print_findings(check.check_settings(settings, WHITELIST), (), as_json=False)
        assert (remedy in capsys.readouterr().out) == warned


def test_check_names_what_an_older_version_left_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_settings, "PROGRAM_FOLDER", tmp_path)
    assert list(check.check_program()) == []

    (tmp_path / "messages.py").touch()

    (found,) = check.check_program()
    assert (found.level, found.subject) == ("warn", "program")
    assert found.text.startswith(f"messages.py in {tmp_path}: ")


def test_a_folder_in_which_nothing_can_be_written_is_found_by_trying(tmp_path: Path) -> None:
    assert check.write_trouble(str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # as on a full disk
    try:
        assert check.write_trouble(str(tmp_path)) == "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize(
    ("subject", "lay", "said"),
    [
        ("ALLOWED", "mv services s; ln -s s services", "a symbolic link in the path"),
        ("LOG_DIR", "mv logs l; ln -s l logs", "a symbolic link in the path"),
        ("BACKUP_DIR", "mv backups b; ln -s b backups", "a symbolic link in the path"),
        ("BACKUP_DIR", "mkdir -m 755 backups/.lock", "others can open "),
        ("BACKUP_DIR", "rmdir backups; touch backups", "is not a folder"),
        ("CHANGELOG", "ln -s nowhere CHANGELOG-AUTO.md", "a symbolic link in the path"),
        ("CHANGELOG", "mkdir CHANGELOG-AUTO.md", "is not a regular file"),
        ("STATE_DIR", "mv state s; ln -s s state", ""),
    ],
)
def test_check_opens_folders_as_the_tasks_do(
    subject: str, lay: str, said: str, environment: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(lay, shell=True, cwd=tmp_path, check=True)  # noqa: S602 - written above
    settings = program_settings.load(environment)

    findings = [each for each in check.check_folders(settings) if each.subject == subject]

    warned = [each.text for each in findings if each.level != "ok"]
    assert [said in text for text in warned] == [True] * bool(said)


@pytest.mark.parametrize(("left", "code"), [(1000, 0), (0, 1)])
def test_few_ids_are_told_with_the_statement_that_makes_more(
    left: int, code: int, database: Database, heartbeat: Heartbeat
) -> None:
    database.execute("SELECT setval('claude_messages_id_seq', %s)", (2**31 - 1 - left,))
    told = heartbeat("--check")
    ids = re.search(f"^warn ids +{left} ids are left in claude_messages: (.+)$", told.stdout, re.M)

    assert ids
    assert told.returncode == code
    database.execute(ids[1])

    mended = heartbeat("--check")
    assert mended.returncode == 0
    assert " ids " not in mended.stdout


def test_units_are_asked_for_as_the_tasks_do(pretend_systemd: PretendSystemd) -> None:
    pretend_systemd(**{"postgresql": ACTIVE})
    settings = program_settings.load(
        {"SYSTEM_UNITS": "postgresql,gone", "DASHBOARD_UNIT": "also-gone"}
    )

    assert [(found.level, found.text) for found in check.check_units(settings)] == [
        ("ok", "postgresql: loaded"),
        ("warn", "gone: not-found"),
        ("warn", "also-gone: not-found"),
    ]


def test_a_stop_timeout_that_fits_one_restart_and_not_all_is_told(
    engine: Engine, run_container: RunContainer
) -> None:
    for name, seconds in {"one": 20, "two": 30, "long": 90}.items():
        run_container(f"catalyst-{name}", "exec sleep 1000", f"--stop-timeout={seconds}")
    settings = settings_for(engine, TRADING_SERVICES="one,two,long,absent")

    containers, *slow = check.check_docker(settings, WHITELIST)

    assert (containers.level, containers.text[-17:]) == ("warn", ", none for absent")
    assert {found.level for found in slow} == {"warn"}
    told = [found.text.partition(" do not fit")[0] for found in slow]
    assert told == [
        "restart_service: nothing was touched: the stop timeouts (catalyst-long 90 s)",
        "restart_all_services: nothing was touched: the stop timeouts "
        "(catalyst-long 90 s, catalyst-two 30 s, catalyst-one 20 s)",
    ]

"""The program on a real server: cron fires it, systemd and Docker are there, PostgreSQL beside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.cycles import end_leases
from support.docker_engine import Engine, own_engine
from support.machine import (
    ANSWER,
    DASHBOARD,
    FOLDER,
    LOG,
    ROOT,
    SERVICES,
    Machine,
    Service,
    download_wheels,
    import_machine,
    send_by_psql,
    start_service,
    wait_for_reports,
)
from support.postgres import Database, new_database, require

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PASSWORD = "hunter2-of-the-server-test"
UNIT = "/etc/systemd/system/consciousness-dashboard.service"
HEARTBEAT = f"{FOLDER}/heartbeat.py"
NEW_FILE = f"{ROOT}/scripts/hello.sh"
LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)Z (INFO|WARNING|ERROR) \S.*")

ALL_TASKS: list[tuple[str, dict[str, Any]]] = [
    ("docker_ps", {}),
    ("disk_space", {}),
    ("memory_usage", {}),
    ("process_list", {}),
    ("service_health", {"port": "5005"}),
    ("all_services_health", {}),
    ("list_tasks", {}),
    ("docker_logs", {"service": "pattern"}),
    ("catalyst_logs", {"logfile": "heartbeat"}),
    ("system_logs", {"service": "consciousness-dashboard"}),
    ("db_agent_status", {}),
    ("db_pending_messages", {}),
    ("db_recent_observations", {}),
    ("db_task_history", {"limit": 5}),
    ("restart_service", {"service": "trading"}),
    ("restart_dashboard", {}),
    ("restart_all_services", {}),
    ("write_file", {"filepath": NEW_FILE, "content": "echo hello\n"}),
    ("edit_file", {"filepath": HEARTBEAT, "old_text": "timeout=30", "new_text": "timeout=60"}),
    ("read_file", {"filepath": HEARTBEAT}),
    ("list_backups", {"filepath": HEARTBEAT}),
    ("rollback_file", {"filepath": HEARTBEAT}),
]


@pytest.fixture(scope="module")
def server_engine() -> Iterator[Engine]:
    """An engine of its own: the services' names are those of the deployment."""
    require(os.path.ismount("/sys/fs/cgroup"), "needs control groups for systemd in a container")
    with own_engine() as engine:
        import_machine(engine)
        yield engine
        left = engine.docker("ps", "--all", "--quiet").split()
        engine.docker("rm", "--force", *left)


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Database:
    """The database that all machines share, on the schema of the program."""
    made = new_database(postgres, "server")
    return Database(made.url.replace("postgres@", f"postgres:{PASSWORD}@"))


@pytest.fixture(scope="module")
def wheels(server_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    download_wheels(server_engine, folder)
    return folder


@pytest.fixture(scope="module")
def machine(server_engine: Engine, shared: Database, wheels: Path) -> Machine:
    return Machine(server_engine, "public", shared.url, wheels)


@pytest.fixture
def services(machine: Machine) -> None:
    """All nine services, up and healthy."""
    for service in SERVICES:
        start_service(machine, service)


@pytest.fixture
def dashboard(machine: Machine) -> Iterator[None]:
    """The dashboard's unit may be changed; it is up again at the end."""
    yield
    machine.write(UNIT, DASHBOARD)
    machine.run("systemctl daemon-reload")
    machine.run("systemctl kill --signal=KILL consciousness-dashboard || true")
    machine.run("systemctl reset-failed; systemctl restart consciousness-dashboard")


def service(name: str) -> Service:
    return next(service for service in SERVICES if name in service.container)


def send(database: Database, agent: str, task: str, params: dict[str, Any]) -> int:
    body = f"TASK: {task}\nPARAMS: {json.dumps(params)}\nREASON: server test"
    return send_by_psql(database.url, agent, body)


@contextmanager
def cron_log(machine: Machine, *, of: list[int]) -> Iterator[None]:
    """Check what the log says in the end: one line a transition, UTC, no secret, no traceback."""
    before = machine.read(LOG) if machine.run(f"ls {LOG} || true") else ""
    yield
    lines = machine.read(LOG).removeprefix(before).splitlines()
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    for line in lines:
        match = LOG_LINE.fullmatch(line)
        assert match, line
        assert now - datetime.fromisoformat(match[1]) < timedelta(minutes=15)
        assert PASSWORD not in line
    for id in of:
        mine = [line for line in lines if re.search(rf"#{id}\b.*: ", line)]
        transitions = [line for line in mine if "another heartbeat is at work" not in line]
        assert len(transitions) == 2, transitions
        assert "claimed, attempt 1" in transitions[0]


def outcomes(reports: dict[int, dict[str, Any]], ids: list[int]) -> list[str]:
    return [reports[id]["data"]["outcome"] for id in ids]


def test_cron_runs_all_22_tasks_and_each_succeeds(
    machine: Machine, shared: Database, services: None
) -> None:
    machine.write(HEARTBEAT, "timeout=30\n")
    machine.run(f"rm -f {NEW_FILE}")
    ids = [send(shared, "public_claude", task, params) for task, params in ALL_TASKS]

    with cron_log(machine, of=ids):
        machine.start_cron()
        reports = wait_for_reports(shared, ids)
        machine.stop_cron()

    failed = [
        report["body"] for report in reports.values() if report["data"]["outcome"] != "success"
    ]
    assert not failed, "\n\n".join(failed)
    result = {report["data"]["task"]: report["data"]["result"] for report in reports.values()}
    text = {report["data"]["task"]: report["body"] for report in reports.values()}
    assert len(result) == 22
    names = {row["name"] for row in result["docker_ps"]}
    assert names >= {service.container for service in SERVICES}
    assert "9 of 10 healthy; 5007: nobody listens" in text["all_services_health"]
    assert "up on 5002" in text["docker_logs"]
    assert "the dashboard is up" in text["system_logs"]
    assert "big_bro is awake" in text["catalyst_logs"]
    assert result["restart_service"]["container"] == "catalyst-trading"
    assert result["restart_all_services"][0]["service"] == "trading"
    assert machine.read(HEARTBEAT) == "timeout=30\n"
    assert machine.read(NEW_FILE) == "echo hello\n"
    assert PASSWORD not in json.dumps([text, result])


def test_what_is_not_so_is_no_success(machine: Machine, shared: Database, services: None) -> None:
    engine = machine.engine
    break_services(machine)
    machine.run("ln -sf /etc/shadow /var/log/catalyst/linked.log")
    expected: list[tuple[str, dict[str, Any], str, str]] = [
        ("all_services_health", {}, "success", "4 of 10 healthy; 5001: HTTP 302; 5002: HTTP 503"),
        ("service_health", {"port": 5003}, "failed", 'HTTP 200, status "unhealthy"'),
        ("service_health", {"port": 5002}, "failed", "HTTP 503"),
        ("service_health", {"port": 5001}, "failed", "HTTP 302"),
        ("service_health", {"port": 5008}, "failed", "no whole answer in time on port 5008"),
        ("service_health", {"port": 5007}, "failed", "nobody listens on port 5007"),
        ("restart_service", {"service": "reporting"}, "failed", "did not stay up: exited"),
        ("restart_service", {"service": "risk-manager"}, "failed", "no container for service"),
        ("restart_service", {"service": "trading"}, "failed", "2 containers match"),
        ("docker_logs", {"service": "trading"}, "failed", "2 containers match"),
        ("restart_all_services", {}, "failed", "3 of 8 services failed: trading, risk-manager"),
        ("catalyst_logs", {"logfile": "linked"}, "failed", "refused: "),
        ("catalyst_logs", {"logfile": "nothing"}, "failed", "there are: heartbeat"),
    ]
    ids = [send(shared, "public_claude", task, params) for task, params, _, _ in expected]

    with cron_log(machine, of=ids):
        machine.cycle()
        reports = wait_for_reports(shared, ids)

    for id, (task, _, verdict, text) in zip(ids, expected, strict=True):
        body = reports[id]["body"]
        assert (reports[id]["data"]["outcome"], text in body) == (verdict, True), f"{task}: {body}"
    engine.docker("rm", "--force", "another")
    machine.run("rm /var/log/catalyst/linked.log")


def break_services(machine: Machine) -> None:
    """Make each service bad in its own way."""
    engine = machine.engine
    moved = "printf 'HTTP/1.1 302 Found\\r\\nLocation: http://127.0.0.1:5005/health\\r\\n"
    moved += "Content-Length: 0\\r\\n\\r\\n'"
    busy = 'printf \'HTTP/1.1 503 Busy\\r\\nContent-Length: 15\\r\\n\\r\\n{"status":"ok"}\''
    drip = "printf 'HTTP/1.1 200 OK\\r\\n\\r\\n'; while sleep 1; do printf x; done"
    for name, port, commands in (
        ("scanner", 5001, moved),
        ("pattern", 5002, busy),
        ("news", 5008, drip),
    ):
        script = ANSWER.format(commands=commands, port=port)
        start_service(machine, service(name), script)
    start_service(machine, replace(service("technical"), page='{"status": "unhealthy"}'))
    dies = (
        "httpd -p 5009 -h /www; test -e /again && sleep 1 && exit 3; touch /again; exec sleep 1000"
    )
    healthy = 'mkdir /www; echo \'{"status": "ok"}\' > /www/health; '
    start_service(machine, service("reporting"), healthy + dies)
    stubborn = "httpd -p 5006 -h /www; trap '' TERM; while :; do sleep 1; done"
    start_service(machine, service("workflow"), healthy + stubborn, "--stop-signal=TERM")
    engine.docker("rm", "--force", service("risk-manager").container)
    start_service(machine, Service("another", 5010, label="trading"))


@pytest.mark.parametrize(
    ("start", "error"),
    [
        ("echo trouble >&2; sleep 1; exit 3", "did not stay up: failed (failed) since "),
        ("sleep 1; exec sleep infinity", ""),
        ("exit 3'\nExecStartPre=/bin/sh -c 'echo trouble; exit 1", "ended with exit code 1"),
        ("exit 3'\nRestart=always\nExecStartPre=/bin/sh -c 'echo trouble", "did not stay up: "),
        ("echo trouble; sleep 1000'\nType=notify\nEnvironment='A=1", "still activating (start)"),
    ],
)
def test_the_dashboard_is_restarted_only_if_its_unit_stays_up(
    machine: Machine, shared: Database, dashboard: None, start: str, error: str
) -> None:
    machine.write(UNIT, DASHBOARD.replace("exec sleep infinity", start))
    machine.run("systemctl daemon-reload")
    id = send(shared, "public_claude", "restart_dashboard", {})

    with cron_log(machine, of=[id]):
        machine.cycle()
        report = wait_for_reports(shared, [id])[id]

    assert report["data"]["outcome"] == ("failed" if error else "success")
    assert error in report["body"]
    assert ("trouble" in report["body"]) == bool(error)


@pytest.mark.parametrize(
    ("unit", "then", "verdict"),
    [
        (DASHBOARD, "true", "success"),
        (DASHBOARD, "systemctl stop consciousness-dashboard", "failed"),
        (DASHBOARD.replace("exec sleep", 'trap "" TERM; sleep'), "true", "unknown"),
    ],
)
def test_a_restart_of_the_dashboard_that_was_interrupted_is_found_out(
    machine: Machine, shared: Database, dashboard: None, unit: str, then: str, verdict: str
) -> None:
    machine.write(UNIT, unit)
    machine.run("systemctl daemon-reload; systemctl restart consciousness-dashboard; sleep 0.5")
    id = send(shared, "public_claude", "restart_dashboard", {})

    machine.run(f"{FOLDER}/run-heartbeat-public.sh 2>> {LOG} & sleep 2; kill -9 $!; wait || true")
    machine.run(then)
    end_leases(shared)
    machine.cycle()
    report = wait_for_reports(shared, [id])[id]

    assert report["data"]["outcome"] == verdict, report["body"]
    found = "found after an interruption: consciousness-dashboard is " in report["body"]
    assert found == (verdict != "unknown")


def test_a_unit_that_is_not_there_and_a_journal_that_is_off_are_failures(
    machine: Machine, shared: Database
) -> None:
    missing = send(shared, "public_claude", "system_logs", {"service": "docker"})
    machine.cycle()
    machine.run("systemctl stop systemd-journald.socket systemd-journald-dev-log.socket")
    machine.run("systemctl stop systemd-journald; rm -rf /var/log/journal/* /run/log/journal/*")
    silent = send(shared, "public_claude", "system_logs", {"service": "consciousness-dashboard"})
    machine.cycle()
    machine.run("systemctl start systemd-journald.socket systemd-journald-dev-log.socket")
    # The dashboard has written into the journal for the other tests, too.
    machine.run("systemctl start systemd-journald; systemctl restart consciousness-dashboard")
    reports = wait_for_reports(shared, [missing, silent])

    assert [report["data"]["outcome"] for report in reports.values()] == ["failed", "failed"]
    assert "of SYSTEM_UNITS there are: consciousness-dashboard" in reports[missing]["body"]
    assert "the journal is off" in reports[silent]["body"]


def test_without_the_engine_its_tasks_fail_and_the_others_work(
    machine: Machine, shared: Database
) -> None:
    expected = [
        ("docker_ps", {}, "failed"),
        ("docker_logs", {"service": "trading"}, "failed"),
        ("restart_service", {"service": "trading"}, "failed"),
        ("restart_all_services", {}, "failed"),
        ("disk_space", {}, "success"),
        ("restart_dashboard", {}, "success"),
    ]
    ids = [send(shared, "public_claude", task, params) for task, params, _ in expected]
    machine.run("touch /run/kept; mount --bind /run/docker.sock /run/kept; umount /run/docker.sock")

    with cron_log(machine, of=ids):
        machine.cycle()
        reports = wait_for_reports(shared, ids)
    machine.run("mount --bind /run/kept /run/docker.sock; umount /run/kept")

    assert outcomes(reports, ids) == [verdict for _, _, verdict in expected]
    for id in ids[:4]:
        assert "Docker is not reachable at unix:///var/run/docker.sock" in reports[id]["body"]


def test_the_same_line_in_two_crontabs_runs_each_task_once(
    machine: Machine, shared: Database, services: None
) -> None:
    machine.write(HEARTBEAT, "count = 0\n")
    texts = [f"count = {number}\n" for number in range(4)]
    ids = [
        send(
            shared,
            "public_claude",
            "edit_file",
            {"filepath": HEARTBEAT, "old_text": old, "new_text": new},
        )
        for old, new in pairwise(texts)
    ]
    ids.append(send(shared, "public_claude", "restart_service", {"service": "news"}))

    with cron_log(machine, of=ids):
        machine.start_cron(twice=True)
        reports = wait_for_reports(shared, ids)
        machine.stop_cron()

    assert outcomes(reports, ids) == ["success"] * 4
    assert machine.read(HEARTBEAT) == "count = 3\n"


def test_a_second_machine_with_another_agent_works_on_the_same_database_undisturbed(
    server_engine: Engine, machine: Machine, shared: Database, wheels: Path, services: None
) -> None:
    second = Machine(
        server_engine, "intl", shared.url, wheels, AGENT_ID="intl_claude",
        TRADING_SERVICES="hkex", LOG_SERVICES="hkex", CONTAINER_PREFIX="intl-", HEALTH_PORTS="6000",
    )  # fmt: skip
    start_service(second, Service("intl-hkex", 6000))
    new = "/root/catalyst-intl/src/new.py"
    theirs: list[tuple[str, dict[str, Any]]] = [
        ("restart_service", {"service": "hkex"}),
        ("service_health", {"port": 6000}),
        ("write_file", {"filepath": new, "content": "x = 1\n"}),
        ("restart_dashboard", {}),
    ]
    ours: list[tuple[str, dict[str, Any]]] = [
        ("restart_service", {"service": "trading"}),
        ("service_health", {"port": 5005}),
    ]
    ids = [send(shared, "intl_claude", *task) for task in theirs]
    our_ids = [send(shared, "public_claude", *task) for task in ours]

    second.cycle()
    reports = wait_for_reports(shared, ids)
    pending = shared.execute(
        "SELECT DISTINCT status FROM claude_messages WHERE id = ANY(%s)", (our_ids,)
    )
    machine.cycle()
    our_reports = wait_for_reports(shared, our_ids)

    assert outcomes(reports, ids) == ["success"] * 4
    assert {report["from_agent"] for report in reports.values()} == {"intl_claude"}
    assert pending == [("pending",)]
    assert outcomes(our_reports, our_ids) == ["success"] * 2
    assert {report["from_agent"] for report in our_reports.values()} == {"public_claude"}
    assert second.read(new) == "x = 1\n"

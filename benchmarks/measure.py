"""The rows of the table: each alternates with its comparison in one run and takes medians."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psycopg2

from benchmarks.fleet import measure_fleet
from benchmarks.machine import CHEAP_TASK, FOLDER, PROGRAM, TASKS, Contender, Machine
from benchmarks.table import compare, row
from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres, open_folder

BIN = Path(sys.executable).parent
OTHER_TASKS = {"db_agent_status": ">= 1.6", "list_tasks": "", "disk_space": ""}
YARDSTICKS = {
    "procrastinate": "procrastinate one-shot",
    "bare": "bare loop with two commits a task",
    "pgqueuer": "pgqueuer drain",
}
HISTORY = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, data, status,
                             created_at, read_at, processed_at)
SELECT 'big_bro', 'public_claude', 'task', 'Old task ' || number, 'TASK: docker_ps',
       jsonb_build_object('claim', jsonb_build_object('token', md5(number::text), 'attempt', 1)),
       'processed', past, past, past
  FROM generate_series(1, %(count)s) AS number,
       LATERAL (SELECT now() - interval '1 minute' * (number + 60) AS past) AS time
"""
BURST_IS_OVER = "DELETE FROM claude_messages WHERE created_at > now() - interval '1 hour'"
OLD_REPORTS = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, data, reply_to_id,
                             status, created_at, processed_at)
SELECT 'public_claude', 'big_bro', 'response', 'Task Report: ' || subject, repeat('output ', 30),
       '{"final": true, "outcome": "success"}', id, 'processed', created_at, created_at
  FROM claude_messages WHERE msg_type = 'task'
"""


def nothing() -> None:
    """Prepare nothing."""


def measure(*, quick: bool) -> None:
    """Measure and print every row."""
    with tempfile.TemporaryDirectory(dir=open_folder()) as folder, EmbeddedPostgres() as server:
        machine = Machine(server, Path(folder), quick)
        print(description(machine), flush=True)
        row("what", "heartbeat", "comparison", "ratio", "target")
        row(*["---"] * 5)
        measure_idle(machine)
        measure_tasks(machine)
        measure_history(machine)
        measure_queue(machine)
        measure_fleet(machine)


def description(machine: Machine) -> str:
    with closing(psycopg2.connect(machine.server.url())) as conn:
        server = conn.info.parameter_status("server_version")
    packages = ("psycopg2-binary", "pydantic", "procrastinate", "psycopg", "pgqueuer")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"Python {platform.python_version()}, PostgreSQL {server} with fsync, {versions}\n"
        f"{os.cpu_count()} CPUs ({platform.machine()}), Linux {platform.release()}, load {load}; "
        f"medians of {machine.rounds} alternated rounds\n"
    )


def measure_idle(machine: Machine) -> None:
    machine.deploy("idle")
    jobs = procrastinate(machine, "idle_procrastinate", 0)
    found = machine.contend(
        {
            "ours": Contender(nothing, machine.heartbeat("idle"), {}),
            "bare": Contender(nothing, [f"{machine.folder}/idle/bare.sh"], {}),
            "procrastinate": jobs,
        }
    )
    ours, bare = found["ours"], found["bare"]
    milliseconds = {name: spent.seconds * 1000 for name, spent in found.items()}
    for other, what, target in (
        ("bare", "bare script in a two-line wrapper", "<= 1.0"),
        ("procrastinate", "procrastinate one-shot", "<= 0.35"),
    ):
        compare(f"idle, {what}", milliseconds["ours"], milliseconds[other], "ms", target)
    compare("idle peak memory, bare script", ours.peak / 1024, bare.peak / 1024, "MiB", "<= 1.0")


def procrastinate(machine: Machine, name: str, jobs: int) -> Contender:
    """Return a one-shot worker of procrastinate, filled with so many jobs before each round."""
    environment = {"BENCHMARK_URL": machine.database(name), "PYTHONPATH": str(FOLDER)}
    command = [f"{BIN}/procrastinate", "--app=procrastinate_app.app"]
    apply = [sys.executable, *command, "schema", "--apply"]
    subprocess.run(apply, env=environment, check=True, capture_output=True)
    worker = [sys.executable, *command, "worker", "--one-shot", "--concurrency=1"]
    return Contender(filler("procrastinate_app.py", jobs, environment), worker, environment)


def pgqueuer(machine: Machine, name: str, jobs: int) -> Contender:
    """Return a worker of pgqueuer that drains its queue, filled before each round."""
    url = machine.database(name)
    environment = {"BENCHMARK_URL": url, "PGDSN": url}
    install = [sys.executable, f"{BIN}/pgq", "install"]
    subprocess.run(install, env=environment, check=True, capture_output=True)
    worker = [sys.executable, str(FOLDER / "pgqueuer_app.py")]
    return Contender(filler("pgqueuer_app.py", jobs, environment), worker, environment)


def filler(script: str, jobs: int, environment: dict[str, str]) -> Callable[[], object]:
    if not jobs:
        return nothing
    command = [sys.executable, str(FOLDER / script), str(jobs)]
    return partial(subprocess.run, command, env=environment, check=True, capture_output=True)


def measure_tasks(machine: Machine) -> None:
    """Measure whole processes that do many jobs, start and end included."""
    url, jobs = machine.deploy("tasks"), machine.jobs

    def filled(body: str) -> Callable[[], None]:
        return lambda: machine.fill(url, jobs, body)

    heartbeat = machine.heartbeat("tasks")
    contenders = {
        "catalyst_logs": Contender(filled(CHEAP_TASK), heartbeat, {}),
        "bare": Contender(filled(CHEAP_TASK), machine.bare_loop("tasks"), {}),
        "procrastinate": procrastinate(machine, "tasks_procrastinate", jobs),
        "pgqueuer": pgqueuer(machine, "tasks_pgqueuer", jobs),
    }
    for task in OTHER_TASKS:
        contenders[task] = Contender(filled(f"TASK: {task}"), heartbeat, {})
    found = machine.contend(contenders, rounds=min(machine.rounds, 7))
    speed = {name: jobs / spent.seconds for name, spent in found.items()}
    for task, other, target in (
        ("catalyst_logs", "procrastinate", ">= 1.8"),
        ("catalyst_logs", "bare", ">= 0.6"),
        ("catalyst_logs", "pgqueuer", ""),
        *((task, "procrastinate", target) for task, target in OTHER_TASKS.items()),
    ):
        compare(f"{jobs} {task}, {YARDSTICKS[other]}", speed[task], speed[other], "/s", target)


def measure_history(machine: Machine) -> None:
    """Measure how much a table of processed rows costs."""
    urls = {name: machine.deploy(name) for name in ("small", "large")}
    for name, count in (("small", 1000), ("large", machine.history)):
        machine.execute(urls[name], HISTORY, count=count // 2)
        machine.execute(urls[name], OLD_REPORTS)
        machine.execute(urls[name], "VACUUM ANALYZE claude_messages", "CHECKPOINT")
    idle = machine.contend({name: Contender(nothing, machine.heartbeat(name), {}) for name in urls})
    what = f"{machine.history:,} processed rows for 1,000"
    large, small = idle["large"].seconds * 1000, idle["small"].seconds * 1000
    compare(f"{what}: idle", large, small, "ms", "<= 1.1")
    prepare = {
        name: lambda count, url=url: machine.execute(url, TASKS, count=count, body=CHEAP_TASK)
        for name, url in urls.items()
    }
    task = per_task(machine, prepare)
    compare(f"{what}: a task", task["large"], task["small"], "ms", "<= 1.1")
    measure_deletion(machine, urls["large"])


def measure_deletion(machine: Machine, url: str) -> None:
    """Measure how long delete_old.sql takes for a hundredth of the history."""
    tasks = machine.history // 100
    script = (PROGRAM / "catalyst_heartbeat/sql/delete_old.sql").read_text()
    age = f"{machine.history // 2 - tasks + 60} minutes"
    started = time.perf_counter()
    machine.execute(url, script.replace("90 days", age))
    spent = time.perf_counter() - started
    what = f"deleting {tasks:,} old tasks and their reports of {machine.history:,} rows"
    row(what, f"{spent:.2f} s", "", "", "seconds")


def measure_queue(machine: Machine) -> None:
    """Measure how much a long queue costs each task, known to the planner or not."""
    urls = {name: machine.deploy(name) for name in ("short", "long")}
    lengths = {"short": 100, "long": 1000 if machine.jobs < 1000 else 10_000}
    known = {
        name: lambda count, url=url, length=lengths[name]: machine.fill(url, length)
        for name, url in urls.items()
    }
    for url in urls.values():
        machine.execute(url, "ALTER TABLE claude_messages SET (autovacuum_enabled = off)")
    task = per_task(machine, known)
    what = f"{lengths['long']:,} pending for 100"
    compare(f"{what}: a task", task["long"], task["short"], "ms", "<= 1.3")
    for url in urls.values():
        machine.execute(url, "TRUNCATE claude_messages")
        machine.execute(url, HISTORY, count=machine.history // 5)
        machine.execute(url, "VACUUM ANALYZE claude_messages")

    def burst(url: str, length: int) -> None:
        machine.execute(url, BURST_IS_OVER, "VACUUM claude_messages")
        machine.execute(url, TASKS, count=length, body=CHEAP_TASK)

    unknown = {
        name: lambda count, url=url, length=lengths[name]: burst(url, length)
        for name, url in urls.items()
    }
    task = per_task(machine, unknown)
    what = f"{what}, since the last ANALYZE"
    compare(f"{what}: a task", task["long"], task["short"], "ms", "<= 1.3")


def per_task(
    machine: Machine, prepare: Mapping[str, Callable[..., None]], count: int = 100
) -> dict[str, float]:
    """Return what one more task costs, in ms: between cycles that take one and `count` tasks."""
    contenders = {}
    for name in prepare:
        for most in (1, count):
            command = machine.heartbeat(name, MAX_TASKS_PER_RUN=str(most))
            contenders[f"{name} {most}"] = Contender(partial(prepare[name], most), command, {})
    found = machine.contend(contenders)
    return {
        name: (found[f"{name} {count}"].seconds - found[f"{name} 1"].seconds) / (count - 1) * 1000
        for name in prepare
    }

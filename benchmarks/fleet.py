"""Many agents whose cycles begin in the same second, on a server with few connections."""

from __future__ import annotations

import subprocess
import time
from contextlib import closing

import psycopg2

from benchmarks.machine import CHEAP_TASK, Machine
from benchmarks.table import row

CONNECTIONS = 12
# 3 of them are for superusers.
SERVER = f"ALTER SYSTEM SET max_connections = {CONNECTIONS + 3}"
LOGIN = """
CREATE ROLE fleet LOGIN;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO fleet;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO fleet
"""
TASKS_EACH = 3
TASKS = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, priority, status)
SELECT 'big_bro', 'agent_' || agent, 'task', 'Benchmark', %(body)s, 'normal', 'pending'
  FROM generate_series(1, %(agents)s) AS agent, generate_series(1, %(each)s)
"""
DONE = """
SELECT count(*) FROM claude_messages
 WHERE msg_type = 'response' AND data ->> 'outcome' = 'success'
"""


def measure_fleet(machine: Machine) -> None:
    """Measure a whole fleet at once, and its agents one after the other."""
    agents = 20 if machine.history < 1_000_000 else 100
    machine.deploy("fleet", user="fleet")
    machine.execute(machine.server.url("fleet"), LOGIN, SERVER)
    machine.server.restart()
    seconds = {"at once": [0.0], "in turn": [0.0]}
    for _ in range(2):
        seconds["in turn"].append(run_fleet(machine, agents, at_once=1))
        seconds["at once"].append(run_fleet(machine, agents, at_once=agents))
    machine.execute(machine.server.url(), "ALTER SYSTEM RESET max_connections")
    machine.server.restart()
    at_once, in_turn = (min(seconds[name][1:]) for name in ("at once", "in turn"))
    what = f"{agents} agents at once on {CONNECTIONS} connections, one after the other"
    row(what, f"{at_once:.1f} s", f"{in_turn:.1f} s", f"{at_once / in_turn:.2f}", "<= 1.2")


def run_fleet(machine: Machine, agents: int, *, at_once: int) -> float:
    """Run one cycle of each agent, so many at once; return the seconds until all are done."""
    owner = machine.server.url("fleet")
    machine.execute(owner, "TRUNCATE claude_messages")
    machine.execute(owner, TASKS, agents=agents, each=TASKS_EACH, body=CHEAP_TASK)
    commands = [
        machine.heartbeat("fleet", AGENT_ID=f"agent_{number}") for number in range(1, agents + 1)
    ]
    started = time.perf_counter()
    for first in range(0, agents, at_once):
        begun = [
            subprocess.Popen(command, stderr=subprocess.DEVNULL)
            for command in commands[first : first + at_once]
        ]
        if any([process.wait() for process in begun]):
            raise SystemExit("an agent of the fleet could not do its work")
    spent = time.perf_counter() - started
    with closing(psycopg2.connect(owner)) as conn, conn.cursor() as cursor:
        cursor.execute(DONE)
        if cursor.fetchone() != (agents * TASKS_EACH,):
            raise SystemExit("the fleet left tasks undone")
    return spent

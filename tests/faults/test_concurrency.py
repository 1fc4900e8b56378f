"""Any number of heartbeats at once: each task once, one at a time, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cycles import HEARTBEATS, TASKS, Cycles, end, numbered_edits, open_tasks, outcome
from support.postgres import Database, message, send


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_five_heartbeats_at_once_run_thirty_tasks_once_each_and_in_order(
    isolation: str, database: Database, cycles: Cycles, tmp_path: Path
) -> None:
    database.execute(
        f"""DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L',
                                       current_database(), '{isolation}'); END $$"""
    )
    path = tmp_path / "services" / "order.md"
    sent = [send(database, body) for body in numbered_edits(path, TASKS)]

    running = [cycles.start() for _ in range(HEARTBEATS)]
    finished = [end(process) for process in running]

    assert [heartbeat.returncode for heartbeat in finished] == [0] * HEARTBEATS
    assert open_tasks(database) == []
    assert path.read_text().split() == [*map(str, range(TASKS)), "END"]
    assert [outcome(database, id) for id in sent] == ["success"] * TASKS
    claims = [message(database, id)["data"]["claim"] for id in sent]
    assert [claim["attempt"] for claim in claims] == [1] * TASKS
    logs = "\n".join(heartbeat.stderr for heartbeat in finished)
    assert len(re.findall(r"claimed, attempt 1$", logs, re.M)) == TASKS
    assert len({claim["token"] for claim in claims}) == TASKS


def test_a_heartbeat_that_meets_another_says_so_and_ends_with_0(
    database: Database, cycles: Cycles
) -> None:
    first = send(database, "TASK: disk_space")
    second = send(database, "TASK: disk_space")

    with cycles.held("before the run") as process:
        met = cycles.run()
        between = message(database, second)["status"]
    finished = end(process)

    assert met.returncode == finished.returncode == 0
    assert f"another heartbeat is at work on #{first}: process '{process.pid}'" in met.stderr
    assert between == "pending"
    assert [outcome(database, id) for id in (first, second)] == ["success", "success"]


def test_two_agents_do_not_wait_for_each_other(database: Database, cycles: Cycles) -> None:
    mine = send(database, "TASK: disk_space")
    its = send(database, "TASK: disk_space", to_agent="intl_claude")

    with cycles.held("before the run") as process:
        other = cycles.run(AGENT_ID="intl_claude")
        assert outcome(database, its) == "success"
    end(process)

    assert other.returncode == 0
    assert outcome(database, mine) == "success"

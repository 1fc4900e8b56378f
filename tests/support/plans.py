"""How the database carries a claim out: its plan, and what it reads for it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
from support.postgres import Database
from support.transitions import TERMS

from catalyst_heartbeat.queue import claims, connection, state

RESET = "UPDATE claude_messages SET status = 'pending' WHERE status = 'processing'"


class Recorder(connection.Database):
    """A connection that keeps the parameters that it was given last."""

    def fetch(self, statement: str, params: dict[str, Any] | None = None) -> list[Any]:
        self.params = params
        return super().fetch(statement, params)


def plan_of_a_claim(database: Database) -> dict[str, Any]:
    """Claim the next task for a moment; return the plan."""
    with closing(Recorder(database.url, "public_claude")) as agent:
        state.wake(agent, "craig_mobile")
        assert claims.claim_next(agent, TERMS)
        params = agent.params
    database.execute(RESET)
    with closing(psycopg2.connect(database.url)) as conn, conn.cursor() as cursor:
        planner, _, claim = claims.CLAIM_PENDING.partition(";")
        cursor.execute(claims.MAY_CLAIM + planner, params)
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {claim}", params)
        ((explained,),) = cursor.fetchall()
        conn.rollback()
    plan: dict[str, Any] = explained[0]["Plan"]
    return plan


def buffers(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


def find(node: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a plan that has this name."""
    if node.get("Subplan Name") == name:
        return node
    found = [found for part in node.get("Plans", []) if (found := find(part, name))]
    return found[0] if found else {}

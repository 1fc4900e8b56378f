"""--init-db: the tables and indexes of schema.sql."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg2

from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.settings import Settings

SCHEMA = Path(__file__).resolve().parent.parent / "sql" / "schema.sql"


def run(settings: Settings) -> int:
    database = Database(settings.research_database_url, settings.agent_id, patient=False)
    try:
        database.run_script(SCHEMA.read_text())
    except (DatabaseLost, psycopg2.Error) as error:
        print(f"schema.sql did not run: {first_line(error)}", file=sys.stderr)
        return 1
    print("the tables and indexes of schema.sql are in place")
    return 0

"""--init-db: the tables and indexes of schema.sql."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import psycopg2

from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import clean_line

DENIED = psycopg2.errors.InsufficientPrivilege
SCHEMA = Path(__file__).resolve().parent.parent / "sql" / "schema.sql"


def run(settings: Settings) -> int:
    url, agent = settings.research_database_url, settings.agent_id
    with closing(Database(url, agent, patient=False)) as database:
        try:
            database.run_script(SCHEMA.read_text())
        except (DatabaseLost, psycopg2.Error) as error:
            whose = "; it needs the login of the tables' owner" * isinstance(error, DENIED)
            why = clean_line(first_line(error), settings.secrets) + whose
            print(f"schema.sql did not run: {why}", file=sys.stderr)
            return 1
    print("the tables and indexes of schema.sql are in place")
    return 0

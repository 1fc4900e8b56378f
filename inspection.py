"""Looking without running a cycle: --check, --status, --dry-run, and --init-db beside them."""

from __future__ import annotations

import argparse

from connection import Database
from settings import PROGRAM_FOLDER, Settings


def run(options: argparse.Namespace, settings: Settings) -> int:
    database = Database(settings.research_database_url, settings.agent_id)
    if options.init_db:
        database.run_script((PROGRAM_FOLDER / "schema.sql").read_text())
        print("the tables and indexes of schema.sql are in place")
        return 0
    return 1

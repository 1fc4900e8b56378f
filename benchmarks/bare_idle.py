"""What an idle cycle is held against: the imports, the settings, a connection, five statements."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import psycopg2
from dotenv import dotenv_values

log = logging.getLogger("bare")


def main() -> int:
    argparse.ArgumentParser().parse_args()
    logging.basicConfig(level=logging.INFO)
    settings = dotenv_values(Path(__file__).resolve().parent / ".env")
    conn = psycopg2.connect(settings["RESEARCH_DATABASE_URL"])
    conn.autocommit = True
    with conn.cursor() as cursor:
        for _ in range(5):
            cursor.execute("SELECT now()")
            cursor.fetchone()
    conn.close()
    log.info("nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())

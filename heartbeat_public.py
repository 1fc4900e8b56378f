"""The command line of the heartbeat."""

from __future__ import annotations

import argparse
import json
import os
import sys

if __name__ == "__main__":
    # What lies beside this file is other programs' too: nothing but the package comes from here.
    FOLDER = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != FOLDER]
    sys.path.insert(0, FOLDER)
    import catalyst_heartbeat  # noqa: F401 - empty, and from now on found by itself
    import task_executor

    del sys.path[0]

import task_executor
from catalyst_heartbeat.commands import init_db, inspection
from catalyst_heartbeat.cycle import run_cycle
from catalyst_heartbeat.demo import loop
from catalyst_heartbeat.executor import catalogue
from catalyst_heartbeat.log import configure_logging
from catalyst_heartbeat.monitor import ping
from catalyst_heartbeat.settings import Settings, SettingsError, load


def main(argv: list[str]) -> int:
    """Run the command line and return its exit code."""
    options = read_options(argv) if argv else None
    if options and options.demo:
        return loop.main()
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # libpq would let them override what RESEARCH_DATABASE_URL leaves open
    os.umask(0o077)
    try:
        settings = load()
        configure_logging(settings.secrets)
        if not (settings.research_database_url or (options and options.list_tasks)):
            raise SettingsError(
                "RESEARCH_DATABASE_URL: not set; expected postgresql://user@host/name"
            )
        return run(options, settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def read_options(argv: list[str]) -> argparse.Namespace:

    parser = argparse.ArgumentParser(
        prog="run-heartbeat-public.sh", description="Run one cycle, or look without running one."
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="say what the next cycle would do")
    only.add_argument("--check", action="store_true", help="check settings, database, Docker, ...")
    only.add_argument("--status", action="store_true", help="show the last cycle and the queue")
    only.add_argument("--list-tasks", action="store_true", help="show the whitelist")
    only.add_argument("--demo", action="store_true", help="show the loop on a database of its own")
    only.add_argument("--init-db", action="store_true", help="create missing tables and indexes")
    parser.add_argument(
        "--json", action="store_true", help="with --list-tasks, --check: for programs"
    )
    options = parser.parse_args(argv)
    if options.json and not (options.list_tasks or options.check):
        parser.error("--json goes with --list-tasks or --check")
    return options


def run(options: argparse.Namespace | None, settings: Settings) -> int:
    """Do what the options say: one cycle without any."""
    if options and options.list_tasks:
        if options.json:
            print(
                json.dumps(catalogue.tool_definitions(task_executor.WHITELIST, settings), indent=2)
            )
        else:
            print(catalogue.catalogue_text(task_executor.WHITELIST))
        return 0
    if options and options.init_db:
        return init_db.run(settings)
    if options and (options.check or options.status or options.dry_run):
        return inspection.run(options, settings, task_executor.WHITELIST)
    code = 1
    try:
        code = run_cycle(settings, task_executor.WHITELIST)
    finally:
        if settings.heartbeat_ping_url:
            ping(settings.heartbeat_ping_url, "/fail" if code else "")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

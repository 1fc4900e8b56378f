"""The options of the command line, one module each."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping

import psycopg2

from catalyst_heartbeat.commands import approvals, dry_run, init_db, status
from catalyst_heartbeat.commands.check import check, print_findings
from catalyst_heartbeat.demo import loop
from catalyst_heartbeat.executor import catalogue
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.log import configure_logging, show_any_character
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.settings import Settings, SettingsError, check_names, load
from catalyst_heartbeat.tasks.base import Task
from catalyst_heartbeat.text import clean_line


def run(argv: list[str], whitelist: Mapping[str, Task]) -> int:
    """Do what the command line asks for; raise SettingsError for a bad setting."""
    options = read(argv)
    show_any_character()
    if options.demo:
        return loop.main()
    settings = load()
    configure_logging(settings.secrets)
    if not (settings.research_database_url or options.list_tasks):
        raise SettingsError("RESEARCH_DATABASE_URL: not set; expected postgresql://user@host/name")
    try:
        code = run_option(options, settings, whitelist)
        sys.stdout.flush()
    except OSError as error:  # or whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"cannot say all: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    return code


def read(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run-heartbeat-public.sh",
        description="Run one cycle, or look without running one.",
        allow_abbrev=False,
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="say what the next cycle would do")
    only.add_argument("--check", action="store_true", help="check settings, database, Docker, ...")
    only.add_argument("--status", action="store_true", help="show the last cycle and the queue")
    only.add_argument("--list-tasks", action="store_true", help="show the whitelist")
    only.add_argument("--demo", action="store_true", help="show the loop on a database of its own")
    only.add_argument("--init-db", action="store_true", help="create missing tables and indexes")
    only.add_argument("--approvals", action="store_true", help="list what waits for a person")
    only.add_argument(
        "--approve", type=request_number, metavar="N", help="show request N, ask, approve it"
    )
    only.add_argument(
        "--deny", nargs="+", metavar=("N", "REASON"), help="show request N, ask, deny it"
    )
    parser.add_argument("--yes", action="store_true", help="with --approve, --deny: do not ask")
    parser.add_argument(
        "--json", action="store_true", help="with --list-tasks, --status, --check: for programs"
    )
    options = parser.parse_args(argv)
    if options.json and not (options.list_tasks or options.status or options.check):
        parser.error("--json goes with --list-tasks, --status or --check")
    if options.yes and options.approve is None and not options.deny:
        parser.error("--yes goes with --approve or --deny")
    if options.deny:
        try:
            options.deny[0] = request_number(options.deny[0])
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --deny: {error}")
    return options


def request_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,50}", text):
        raise argparse.ArgumentTypeError(f'"{text[:20]}" is not the number of a request')
    return int(text)


def run_option(
    options: argparse.Namespace, settings: Settings, whitelist: Mapping[str, Task]
) -> int:
    if options.list_tasks:
        if options.json:
            print(json.dumps(catalogue.tool_definitions(whitelist, settings), indent=2))
        else:
            print(catalogue.catalogue_text(whitelist))
        return 0
    if options.init_db:
        return init_db.run(settings)
    url, name = settings.research_database_url, settings.agent_id
    database = Database(url, name, patient=False, read_only=True)
    agent = Agent(settings, database, whitelist)
    try:
        if options.check:
            return print_findings(check(agent), settings.secrets, as_json=options.json)
        if options.approve is not None:
            return approvals.decide(agent, options.approve, "approved", "", ask=not options.yes)
        if options.deny:
            number, *words = options.deny
            reason = " ".join(words)
            return approvals.decide(agent, number, "denied", reason, ask=not options.yes)
        check_names(settings, whitelist)
        if options.status and options.json:
            print(json.dumps(status.for_programs(status.facts(agent), settings.secrets), indent=2))
            return 0
        shown = dry_run if options.dry_run else approvals if options.approvals else status
        for line in shown.lines(agent):
            print(line, flush=True)
    except DatabaseLost as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg2.Error as error:
        why = clean_line(first_line(error), settings.secrets)
        print(f"the database refused; --check says more: {why}", file=sys.stderr)
        return 1
    finally:
        database.close()
    return 0

"""One cycle of an agent's heartbeat: cron starts it at :15, it does what is asked, and it exits.

Wake, look, do what there is, rest. Most cycles find nothing to do, so what only a task, an option
or a monitor needs is imported where it is called.
"""

# Not even __future__ before the import path is cut: it is a module as any other.
import os
import sys

FOLDER = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__":
    # Other programs' files lie in this folder too: nothing of it but the package is imported.
    sys.path[:] = [FOLDER, *(entry for entry in sys.path if os.path.realpath(entry) != FOLDER)]
    import catalyst_heartbeat  # noqa: F401 - it is empty, and its modules are found through it

    del sys.path[0]

import contextlib
import logging
import signal
from runpy import run_path
from types import ModuleType
from typing import Any, Literal

import psycopg2

from catalyst_heartbeat.log import clean_trouble, configure_logging, open_missing_streams
from catalyst_heartbeat.progress import Progress
from catalyst_heartbeat.queue import state
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.settings import Settings, SettingsError, check_names, load

log = logging.getLogger("heartbeat")


def main(argv: list[str]) -> int:
    """Run the command line and return its exit code."""
    os.umask(0o077)
    open_missing_streams()
    try:
        if argv:
            from catalyst_heartbeat.commands import options

            return options.run(argv, late()[1])
        settings = load()
        configure_logging(settings.secrets)
        if not settings.research_database_url:
            raise SettingsError(
                "RESEARCH_DATABASE_URL: not set; expected postgresql://user@host/name"
            )
        return run_cycle(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2


def late() -> tuple[ModuleType, dict[str, Any]]:
    """Import what an idle cycle can do without: the flow and the whitelist."""
    from catalyst_heartbeat import cycle

    # By its place, since this folder is not on the import path.
    return cycle, run_path(f"{FOLDER}/task_executor.py")["WHITELIST"]


def run_cycle(settings: Settings) -> int:
    """Run one cycle and return its exit code: 0 when it did its job, 1 when it could not."""
    progress, trouble = Progress(settings), ""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, progress.stop)
    database = Database(settings.research_database_url, settings.agent_id)
    try:
        beat(database, settings, progress)
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 - it is told, and nothing escapes to cron
        trouble = told(error)
    finally:
        database.close()
        ping(settings, "/fail" if trouble or sys.exc_info()[0] else "")
    if trouble:
        log.error(trouble)
    return 1 if trouble else 0


def beat(database: Database, settings: Settings, progress: Progress) -> None:
    """Wake up, look, do what there is to do, and go to sleep again."""
    if settings.tasks_requiring_approval:  # a name that is not there would protect nothing
        check_names(settings, late()[1])
    mode, work = state.wake(database, settings.approver)
    if mode in ("paused", "retired"):
        log.info("%s is %s: nothing done", settings.agent_id, mode)
        return
    try:
        if work or state.has_unsent(settings):
            ping(settings, "/start")
            cycle, whitelist = late()
            cycle.do_tasks(cycle.Agent(settings, database, whitelist), progress)
        if not (progress.ran or progress.not_run or progress.met_another):
            log.info("nothing to do")
    except DatabaseLost:
        raise
    except Exception as error:
        # A database that takes no report may not take this either; the first trouble counts.
        with contextlib.suppress(DatabaseLost, psycopg2.Error):
            acted, trouble = bool(progress.ran), clean_trouble(told(error), settings.secrets)
            trouble = trouble.replace("<", "&lt;")  # the dashboard takes it for HTML
            state.rest(database, progress.summary(), acted=acted, error=trouble)
        raise
    if progress.ran or not progress.met_another:
        state.rest(database, progress.summary(), acted=bool(progress.ran), error=None)


def ping(settings: Settings, event: Literal["", "/start", "/fail"]) -> None:
    if not settings.heartbeat_ping_url:
        return
    from catalyst_heartbeat import monitor  # half of what an idle cycle loads, and seldom set

    monitor.ping(settings.heartbeat_ping_url, event)


def told(error: Exception) -> str:
    """Say in one line why a cycle could not do its job."""
    if isinstance(error, psycopg2.errors.UndefinedTable):
        return f"schema incomplete: {first_line(error)}; run-heartbeat-public.sh --init-db makes it"
    if isinstance(error, psycopg2.errors.UndefinedColumn):
        return f"schema incomplete: {first_line(error)}; schema.sql has its definition"
    if isinstance(error, psycopg2.Error):
        return f"the database refused: {first_line(error)}"
    return first_line(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""--approvals, --approve N and --deny N: what waits for the person, and his decision.

It writes what the dashboard writes: the status, and then, as a statement of its own, a receipt.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.approvals.decisions import Waiting
from catalyst_heartbeat.commands.check import age
from catalyst_heartbeat.executor.job import Agent
from catalyst_heartbeat.queue.connection import Database, DatabaseLost, first_line
from catalyst_heartbeat.text import clean_line, make_visible

CARD = "SELECT subject, COALESCE(body, ''), status FROM claude_messages WHERE id = %(id)s"

DECIDE = """
-- pending -> approved or denied: the very request that was shown, also where the approver's login
-- leads to another database.
UPDATE claude_messages SET status = %(status)s, read_at = NOW()
 WHERE id = %(id)s AND status = 'pending' AND expires_at > now()
   AND msg_type = 'escalation' AND from_agent = %(agent)s AND to_agent = %(approver)s
   AND subject = %(card_subject)s AND COALESCE(body, '') = %(card_body)s
RETURNING id
"""

NO_LOGIN = "APPROVER_DATABASE_URL is not set"

RECEIPT = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, status)
VALUES (%(approver)s, %(agent)s, 'response', %(subject)s, %(body)s, 'pending')
"""


def lines(agent: Agent) -> Iterator[str]:
    """List the requests that can be decided, and those that only look like one."""
    approver = agent.settings.approver
    open_ones = [task for task in decisions.waiting(agent.database, approver) if is_open(task)]
    yield f"{len(open_ones)} requests wait for {approver}"
    for task in open_ones:
        subject = clean_line(task.card_subject or "", agent.settings.secrets)
        yield f"#{task.card_id} {subject}, {age(task.left)} left: --approve {task.card_id}"
    for card_id, sender, _ in decisions.look_alikes(agent.database, approver):
        yield f"#{card_id} is not ours but from {sender}: do not decide it"


def is_open(task: Waiting) -> bool:
    return task.card_status == "pending" and bool(task.in_time)


def find(agent: Agent, number: int) -> Waiting | None:
    """Return what waits under a number, which is that of the request or of its task."""
    waiting = decisions.waiting(agent.database, agent.settings.approver)
    return next((task for task in waiting if number in (task.card_id, task.id)), None)


def decide(agent: Agent, number: int, status: str, reason: str, *, ask: bool) -> int:
    """Show the whole card, ask, and write the decision; return the exit code."""
    settings, task = agent.settings, find(agent, number)
    if task is None or not is_open(task):
        return refused(agent, number)
    ((subject, body, _),) = agent.database.fetch(CARD, {"id": task.card_id})
    # Redacted as it was made: once more, over the whole, could hide what was shown.
    print(make_visible(f"{subject}\n\n{html.unescape(body)}\n"), flush=True)
    if ask and not confirmed(status):
        print("nothing was decided", file=sys.stderr)
        return 1
    params = {
        "id": task.card_id,
        "status": status,
        "approver": settings.approver,
        "agent": settings.agent_id,
        "card_subject": subject,
        "card_body": body,
        "subject": f"{status.capitalize()}: {subject}",
        # A terminal may write in another encoding than the database.
        "body": reason.encode(errors="replace").decode() or status.upper(),
    }
    url = settings.approver_database_url or settings.research_database_url
    with closing(Database(url, settings.approver, patient=False)) as database:
        try:
            if not database.fetch(DECIDE, params):
                return refused(agent, number)
        except psycopg2.Error as error:
            login = "" if settings.approver_database_url else f"; {NO_LOGIN}"
            why = clean_line(first_line(error), settings.secrets) + login
            print(f"the database refused the decision: {why}", file=sys.stderr)
            return 1
        try:
            database.fetch(RECEIPT, params)
        except (psycopg2.Error, DatabaseLost) as error:  # only the status decides
            why = clean_line(first_line(error), settings.secrets)
            print(f"its receipt was not stored: {why}", file=sys.stderr)
    print(f"#{task.card_id} {status}; the next cycle acts on it")
    return 0


def confirmed(status: str) -> bool:
    """Ask on the terminal; without one nobody can have read the card."""
    if not sys.stdin.isatty():
        print("no terminal to ask on; --yes decides without asking", file=sys.stderr)
        return False
    try:
        print(f"Shall this be {status}? [y/N] ", end="", flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def refused(agent: Agent, number: int) -> int:
    """Say in one line why there is nothing to decide."""
    task, rows = find(agent, number), agent.database.fetch(CARD, {"id": number})
    if task and is_open(task):
        why = "waits, but this login, or this database, has no such request: "
        why += "see APPROVER_DATABASE_URL" if agent.settings.approver_database_url else NO_LOGIN
    elif task:
        why = f"is {task.card_status}" if task.in_time else "came too late: it is expired"
    elif rows and rows[0][2] in ("processed", "approved", "denied", "expired"):
        why = f"is decided or over already: its status is {rows[0][2]}"
    elif rows:
        why = f"is no request of {agent.settings.agent_id} that waits"
    else:
        why = "does not exist"
    print(f"#{number} {why}; --approvals lists what waits", file=sys.stderr)
    return 1

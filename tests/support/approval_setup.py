"""Builders that the tests of approvals share: cycles in this process, and an approver's desk."""

from __future__ import annotations

import html
import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from support.cycles import finals
from support.postgres import Database, decide, escalations, message, send

import heartbeat_public
from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.settings import Settings

# An escalation that somebody else inserted, approved from the start.
PLANTED = {
    "from_agent": "public_claude", "to_agent": "craig_mobile", "msg_type": "escalation",
    "status": "approved", "expires_at": "2100-01-01",
}  # fmt: skip


@dataclass(frozen=True)
class KeptConnection(Database):
    """A database whose statements share one connection: many short ones are quicker so."""

    conn: Any

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        with self.conn.cursor() as cursor:
            yield cursor


@dataclass(frozen=True)
class Desk:
    """One agent whose write_file needs approval, and the files that it wrote."""

    database: Database
    environment: dict[str, str]

    def settings(self, **variables: str) -> Settings:
        defaults = {"TASKS_REQUIRING_APPROVAL": "write_file"}
        return program_settings.load({**self.environment, **defaults, **variables})

    def cycle(self, **variables: str) -> None:
        """Run a cycle in this process."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            assert heartbeat_public.run_cycle(self.settings(**variables)) == 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def path(self, name: str) -> Path:
        return Path(self.environment["ALLOWED_PATHS"].partition(":")[0], name)

    def send(self, name: str = "a.md", content: str = "shown\n", **columns: Any) -> int:
        """Send a request to write a file, which needs approval."""
        return send(self.database, write_file(self.path(name), content), **columns)

    def ask(self, *arguments: str, **columns: Any) -> tuple[int, dict[str, Any]]:
        """Send such a request and run the cycle that escalates it; return both rows."""
        task = self.send(*arguments, **columns)
        self.cycle()
        (card,) = escalations(self.database, task)
        assert (message(self.database, task)["status"], card["status"]) == ("escalated", "pending")
        return task, card

    def approve(self, card: dict[str, Any]) -> int:
        return decide(self.database, card, "approved")

    def deny(self, card: dict[str, Any], words: str = "") -> int:
        return decide(self.database, card, "denied", words)

    def expire(self, card: dict[str, Any]) -> None:
        self.set(card, "expires_at = now() - interval '1 second'")

    def set(self, row: dict[str, Any] | int, assignment: str, value: Any = None) -> None:
        """Change a row as somebody with a free hand in the database would."""
        id = row if isinstance(row, int) else row["id"]
        self.database.execute(
            f"UPDATE claude_messages SET {assignment} WHERE id = %(id)s", {"id": id, "value": value}
        )

    def runs(self, task: int) -> int:
        """Return how often a task changed a file, by the backups that a change leaves behind."""
        backups = Path(self.environment["BACKUP_DIR"])
        return len(list(backups.rglob(f"*-{task}.json")))

    def verdict(self, task: int) -> str:
        """Return what the one final report says, "" while there is none."""
        answers = finals(self.database, task)
        assert len(answers) <= 1
        return str(answers[0]["data"]["outcome"]) if answers else ""

    def error(self, task: int) -> str:
        """Return the text under "### Error" of the final report."""
        (answer,) = finals(self.database, task)
        return html.unescape(answer["body"].partition("### Error\n```\n")[2].partition("\n```")[0])


def opened_desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    with closing(psycopg2.connect(database.url)) as conn:
        conn.autocommit = True
        yield Desk(KeptConnection(database.url, conn), environment)


def write_file(path: Path, content: str, reason: str = "a test") -> str:
    params = json.dumps({"filepath": str(path), "content": content})
    return f"TASK: write_file\nPARAMS: {params}\nREASON: {reason}"

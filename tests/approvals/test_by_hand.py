"""--approvals, --approve and --deny: what a person sees, and that it decides as the dashboard."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess
from typing import Any

import pytest
from support.approval_setup import Desk, opened_desk
from support.postgres import (
    PROGRAM_FOLDER,
    Database,
    decide,
    drop,
    escalations,
    message,
    messages,
    new_database,
    send,
)

from catalyst_heartbeat.approvals import decisions
from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import connection
from catalyst_heartbeat.queue.connection import Database as Connection

pytestmark = pytest.mark.slow

Heartbeat = Callable[..., CompletedProcess[str]]
Row = dict[str, Any]
HEARTBEAT = PROGRAM_FOLDER / "heartbeat_public.py"


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


@pytest.fixture
def shell(heartbeat: Heartbeat) -> Heartbeat:
    def run(*arguments: str, **variables: str) -> CompletedProcess[str]:
        return heartbeat(*arguments, **{"TASKS_REQUIRING_APPROVAL": "write_file", **variables})

    return run


def receipts(desk: Desk) -> list[Row]:
    """Return the approver's receipts without what differs between two that say the same."""
    own = ("id", "message_uuid", "created_at", "subject", "processed_at", "read_at", "status")
    found = messages(desk.database, from_agent="craig_mobile", msg_type="response")
    return [{name: value for name, value in row.items() if name not in own} for row in found]


@pytest.mark.parametrize(
    "subject",
    [
        "Permission #{}: write_file",
        "Permission  #{}: write_file",
        "Permission\u00a0#{}: write_file",
        "\u0420ermission #{}: write_file",
        "permission {}",
        "\u2060Permission #\u200b{}:",
        "#{}",
        "7x Permission #{}: write_file",
        "Permission #0\u200b{}\ufe0f\u0338: write_file",
    ],
)
def test_what_waits_is_listed_and_what_only_looks_like_it_is_named(
    desk: Desk, shell: Heartbeat, subject: str
) -> None:
    task, card = desk.ask()
    alike, fullwidth, _ = (
        send(
            desk.database, "Run?", from_agent="big_bro", to_agent="craig_mobile",
            msg_type="escalation", subject=title,
        )
        for title in (
            subject.format(task),
            subject.format("".join(chr(0xFF10 + int(digit)) for digit in str(task))),
            subject.format(f"{task}1"),
        )
    )  # fmt: skip

    listed, status = shell("--approvals").stdout, shell("--status").stdout

    assert f"#{card['id']} Permission #{task}: write_file, 23 h 59 min left" in listed
    for each in (alike, fullwidth):
        assert f"#{each} is not ours but from big_bro" in listed
        assert f"not ours: #{each} " in status
    assert listed.count("is not ours") == status.count("not ours") == 2


def test_invisible_characters_within_a_number_hide_it_not(desk: Desk, agent: Connection) -> None:
    desk.database.execute("SELECT setval('claude_messages_id_seq', 57)")
    task, _ = desk.ask()
    alike = [
        send(
            desk.database, "Run?", from_agent="big_bro", to_agent="craig_mobile",
            msg_type="escalation", subject=f"1x Permission #{number}: write_file",
        )
        for number in ("5\u200b8", "5\u0338\u20608", "\u0665\u0668", "5\ufe0f\u20e38\u20e3")
    ]  # fmt: skip

    assert task == 58
    assert [card for card, _, _ in decisions.look_alikes(agent, "craig_mobile")] == alike


def test_a_flood_of_requests_hides_none_of_the_newest(
    desk: Desk, agent: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with each task, and each normalized for that, they would take many seconds."""
    tasks = [desk.ask(f"{number}.md")[0] for number in range(10)]
    flood = """
        INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, status)
        SELECT 'mallory', 'craig_mobile', 'escalation', repeat('\ufb01', 480), 'pending'
          FROM generate_series(1, 20000)"""
    desk.database.execute(flood)
    alike = send(
        desk.database, "Run?", from_agent="mallory", to_agent="craig_mobile",
        msg_type="escalation", subject=f"Permission #{tasks[-1]}: write_file",
    )  # fmt: skip
    monkeypatch.setattr(connection, "STATEMENT_LIMIT", "1s")

    found = decisions.look_alikes(agent, "craig_mobile")

    assert [card for card, _, _ in found] == [alike]


@pytest.mark.parametrize("by", ["card", "task"])
@pytest.mark.parametrize("status", ["approved", "denied"])
def test_a_decision_by_hand_writes_what_the_dashboard_writes(
    desk: Desk, shell: Heartbeat, by: str, status: str
) -> None:
    task, card = desk.ask()
    other, tapped = desk.ask("b.md")
    number = str(card["id"] if by == "card" else task)
    words = [] if status == "approved" else ["not", "today"]
    option = "--approve" if status == "approved" else "--deny"

    result = shell(option, number, *words, "--yes")
    decide(desk.database, tapped, status, " ".join(words))

    assert result.returncode == 0, result.stderr
    assert "\nRun write_file +1 -0 lines in " in result.stdout
    assert "+shown\n" in result.stdout
    rows = [message(desk.database, row["id"]) for row in (card, tapped)]
    assert [row["status"] for row in rows] == [status] * 2
    assert all(row["read_at"] for row in rows)
    by_hand, by_dashboard = receipts(desk)
    assert by_hand == by_dashboard
    desk.cycle()
    verdict = "success" if status == "approved" else "denied"
    assert (desk.verdict(task), desk.verdict(other)) == (verdict, verdict)


@contextmanager
def asked(desk: Desk, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the program on a terminal of its own, read until it asks; yield where one types."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-I", HEARTBEAT, *arguments],
        env=desk.environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        shown = "".join(iter(lambda: process.stdout.read(1), "]"))  # type: ignore[union-attr]
        assert shown.endswith("Shall this be approved? [y/N")
        yield process, ours
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("\n", 1), ("no\n", 1), ("\x04", 1)]
)
def test_a_terminal_is_asked(desk: Desk, answer: str, code: int) -> None:
    _, card = desk.ask()

    with asked(desk, "--approve", str(card["id"])) as (process, terminal):
        os.write(terminal, answer.encode())
        process.communicate()

    assert process.returncode == code
    expected = "pending" if code else "approved"
    assert message(desk.database, card["id"])["status"] == expected


def test_a_question_that_is_interrupted_decides_nothing(desk: Desk) -> None:
    _, card = desk.ask()

    with asked(desk, "--approve", str(card["id"])) as (process, _):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()

    assert (process.returncode, said) == (1, "nothing was decided\n")
    assert message(desk.database, card["id"])["status"] == "pending"


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        ("status = 'denied'", "is denied"),
        ("expires_at = now()", "came too late"),
        ("status = 'processed'", "is processed"),
    ],
)
def test_what_was_decided_during_the_question_stays_so(
    desk: Desk, meanwhile: str, said: str
) -> None:
    _, card = desk.ask()

    with asked(desk, "--approve", str(card["id"])) as (process, terminal):
        desk.set(card, meanwhile)
        os.write(terminal, b"y\n")
        _, told = process.communicate()

    assert process.returncode == 1
    assert told.startswith(f"#{card['id']} {said}")
    assert message(desk.database, card["id"])["status"] != "approved"
    assert receipts(desk) == []


def test_a_card_that_was_changed_moves_no_cursor(desk: Desk, shell: Heartbeat) -> None:
    _, card = desk.ask()
    desk.set(card, "body = E'Run it?\\x1b[2J\\u202e &#27;[1A', subject = E'\\x1b[2J'")

    shown = shell("--approve", str(card["id"])).stdout + shell("--approvals").stdout

    assert "Run it?\\x1b[2J\\u202e [1A" in shown
    assert "\x1b" not in shown


def test_a_card_without_a_body_is_shown_and_can_be_denied(desk: Desk, shell: Heartbeat) -> None:
    _, card = desk.ask()
    desk.set(card, "body = NULL")

    assert shell("--deny", str(card["id"]), "--yes").returncode == 0
    assert message(desk.database, card["id"])["status"] == "denied"


def test_a_decision_whose_receipt_is_refused_is_said_to_be_made(
    desk: Desk, shell: Heartbeat
) -> None:
    task, card = desk.ask()
    desk.database.execute(
        "ALTER TABLE claude_messages ADD CHECK (from_agent <> 'craig_mobile') NOT VALID"
    )

    result = shell("--deny", str(card["id"]), "never", "--yes")
    desk.cycle()

    assert result.returncode == 0
    assert "denied; the next cycle acts on it" in result.stdout
    assert result.stderr.startswith("its receipt was not stored: ")
    assert desk.verdict(task) == "denied"


def test_a_reason_in_another_encoding_is_stored(desk: Desk, shell: Heartbeat) -> None:
    _, card = desk.ask()

    result = shell("--deny", str(card["id"]), "gr\udcfcn", "--yes")

    assert (result.returncode, result.stderr) == (0, "")
    assert receipts(desk)[0]["body"] == "gr?n"


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999999"])
@pytest.mark.parametrize("option", ["--approve", "--deny"])
def test_a_number_that_no_request_has_is_one_line(
    option: str, number: str, shell: Heartbeat
) -> None:
    result = shell(option, number, "--yes")

    assert (result.returncode, result.stdout) == (2 if number == "-1" else 1, "")
    assert f"{number} " in result.stderr or f'"{number}"' in result.stderr


def test_without_a_terminal_nothing_is_decided_unless_it_is_told_to(
    desk: Desk, shell: Heartbeat
) -> None:
    _, card = desk.ask()

    result = shell("--approve", str(card["id"]))

    assert result.returncode == 1
    assert "no terminal to ask on; --yes decides without asking\n" in result.stderr
    assert message(desk.database, card["id"])["status"] == "pending"


def used(desk: Desk) -> int:
    _, card = desk.ask()
    desk.approve(card)
    desk.cycle()
    return int(card["id"])


def tapped(desk: Desk) -> int:
    _, card = desk.ask()
    desk.approve(card)
    return int(card["id"])


def late(desk: Desk) -> int:
    _, card = desk.ask()
    desk.set(card, "expires_at = now()")
    return int(card["id"])


def foreign(desk: Desk) -> int:
    columns = {"from_agent": "intl_claude", "to_agent": "craig_mobile", "msg_type": "escalation"}
    return send(desk.database, "Run?", subject="Permission #1: x", **columns)


def ordinary(desk: Desk) -> int:
    return send(desk.database, "TASK: list_tasks", status="processed")


REFUSED = {
    used: "is decided or over already: its status is processed",
    tapped: "is approved",
    late: "came too late: it is expired",
    foreign: "is no request of public_claude that waits",
    ordinary: "is decided or over already",
    lambda desk: 999: "does not exist",
}


@pytest.mark.parametrize(("made", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_cannot_be_decided_is_one_line(
    made: Callable[[Desk], int], why: str, desk: Desk, shell: Heartbeat
) -> None:
    number = made(desk)
    before = desk.database.rows("SELECT * FROM claude_messages ORDER BY id")

    result = shell("--approve", str(number), "--yes")

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"#{number} {why}")
    assert result.stderr.count("\n") == 1
    assert desk.database.rows("SELECT * FROM claude_messages ORDER BY id") == before


def test_the_approvers_own_login_decides_where_one_is_set(desk: Desk, shell: Heartbeat) -> None:
    roles = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text()
    desk.database.execute(roles)
    _, card = desk.ask()
    login = {
        agent: desk.database.url.replace("//postgres@", f"//{agent}@")
        for agent in ("public_claude", "craig_mobile")
    }
    number = str(card["id"])

    own = shell("--approve", number, "--yes", RESEARCH_DATABASE_URL=login["public_claude"])
    his = shell(
        "--approve", number, "--yes",
        RESEARCH_DATABASE_URL=login["public_claude"], APPROVER_DATABASE_URL=login["craig_mobile"],
    )  # fmt: skip

    assert (own.returncode, his.returncode) == (1, 0), own.stdout + his.stderr
    assert own.stderr.startswith("the database refused the decision: ")
    assert own.stderr.endswith("; APPROVER_DATABASE_URL is not set\n")
    assert own.stderr.count("\n") == 1
    assert escalations(desk.database, card["reply_to_id"])[0]["status"] == "approved"
    assert len(receipts(desk)) == 1
    assert shell(RESEARCH_DATABASE_URL=login["public_claude"]).returncode == 0
    assert desk.verdict(card["reply_to_id"]) == "success"


def test_what_is_decided_is_what_was_shown_and_not_another_databases(
    desk: Desk, shell: Heartbeat, postgres: EmbeddedPostgres
) -> None:
    _, card = desk.ask()
    other = new_database(postgres, "another_bus")
    other.execute(
        "INSERT INTO claude_messages (id, from_agent, to_agent, msg_type, subject, body, status,"
        " expires_at) VALUES (%(id)s, %(from_agent)s, %(to_agent)s, 'escalation', %(subject)s,"
        " 'Run write_file of another file?', 'pending', now() + interval '1 hour')",
        card,
    )

    result = shell("--approve", str(card["id"]), "--yes", APPROVER_DATABASE_URL=other.url)
    statuses = [message(each, card["id"])["status"] for each in (desk.database, other)]
    drop(postgres, "another_bus")

    assert result.returncode == 1
    assert result.stderr.startswith(f"#{card['id']} waits, but this login, or this database, ")
    assert statuses == ["pending", "pending"]


def test_the_card_is_shown_as_it_was_made(desk: Desk, shell: Heartbeat) -> None:
    """Redacted once more, the word `curl` would hide what follows `--user NAME:` elsewhere."""
    line = "deploy --user admin:$(touch${IFS}/x)"
    params = {"filepath": str(desk.path("a.md")), "content": f"{line}\n"}
    body = f"TASK: write_file\nPARAMS: {json.dumps(params)}\nREASON: like the curl line before"
    task = send(desk.database, body)
    desk.cycle()
    (card,) = escalations(desk.database, task)

    shown = shell("--approve", str(card["id"])).stdout

    assert line in card["body"]
    assert f"+{line}\n" in shown


def test_an_approvers_database_that_is_not_there_is_one_line_without_its_password(
    desk: Desk, shell: Heartbeat
) -> None:
    _, card = desk.ask()
    url = "postgresql://craig_mobile:hunter-2-word@127.0.0.1:1/x"

    result = shell("--approve", str(card["id"]), "--yes", APPROVER_DATABASE_URL=url)

    assert result.returncode == 1
    assert result.stderr.startswith("database not reachable: ")
    assert result.stderr.count("\n") == 1
    assert "hunter" not in result.stdout + result.stderr
    assert message(desk.database, card["id"])["status"] == "pending"

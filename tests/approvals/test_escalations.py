"""Who is asked, what is asked, and what is not: escalations through whole cycles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.approval_setup import PLANTED, Desk, opened_desk, write_file
from support.postgres import Database, escalations, message, messages, on_every_schema, send

from catalyst_heartbeat.settings import PROGRAM_FOLDER


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


@on_every_schema
def test_an_escalation_has_the_columns_of_the_contract(desk: Desk) -> None:
    task = desk.send(subject="Fix <it>", thread_id=7, priority="low")

    desk.cycle(APPROVAL_EXPIRY_HOURS="5")

    (card,) = escalations(desk.database, task)
    params = {"filepath": str(desk.path("a.md")), "content": "shown\n"}
    assert {name: card[name] for name in ("from_agent", "to_agent", "status", "priority")} == {
        "from_agent": "public_claude", "to_agent": "craig_mobile", "status": "pending",
        "priority": "high",
    }  # fmt: skip
    assert card["subject"] == f"Permission #{task}: write_file"
    assert (card["thread_id"], card["requires_response"]) == (7, True)
    assert round((card["expires_at"] - card["created_at"]).total_seconds()) == 5 * 3600
    assert card["data"] == {
        "task": "write_file", "params": params, "reason": "a test", "requested_by": "big_bro",
        "message_id": task, "digest": card["data"]["digest"],
    }  # fmt: skip
    waiting = message(desk.database, task)
    assert waiting["status"] == "escalated"
    assert waiting["data"]["escalation"] == {
        "id": card["id"], "digest": card["data"]["digest"],
        "why": "TASKS_REQUIRING_APPROVAL names this task",
    }  # fmt: skip
    (notice,) = messages(desk.database, msg_type="response", reply_to_id=task)
    assert notice["body"].startswith("⏳ ESCALATED\n\n## Task: write_file\n")
    assert notice["data"]["final"] is False
    assert (notice["priority"], notice["thread_id"]) == ("low", 7)


def test_of_many_identical_requests_one_is_shown(desk: Desk) -> None:
    first, *others = [desk.send() for _ in range(60)]

    desk.cycle()

    assert len(messages(desk.database, msg_type="escalation")) == 1
    for task in others:
        assert desk.verdict(task) == "rejected"
        assert desk.error(task) == (
            f"the same request waits for approval already, as message #{first}"
        )
    desk.deny(escalations(desk.database, first)[0])
    after = desk.send()
    desk.cycle()
    assert message(desk.database, after)["status"] == "escalated"


@pytest.mark.parametrize(("limit", "variables"), [(2, {"MAX_OPEN_ESCALATIONS": "2"}), (20, {})])
def test_a_phone_is_not_flooded(desk: Desk, limit: int, variables: dict[str, str]) -> None:
    tasks = [desk.send(f"{number}.md") for number in range(limit + 2)]
    planted = send(desk.database, "Run?", subject="x", **PLANTED)

    desk.cycle(**variables)

    shown = messages(desk.database, msg_type="escalation", status="pending")
    assert [card["reply_to_id"] for card in shown] == tasks[:limit]
    for task in tasks[limit:]:
        assert desk.error(task).startswith(f"{limit} requests already wait for approval")
    desk.set(shown[0], "status = 'denied'")
    another = desk.send("another.md")
    desk.cycle(**variables)
    assert message(desk.database, another)["status"] == "escalated"
    assert message(desk.database, planted)["status"] == "approved"


def test_a_request_taken_back_counts_until_it_has_left_the_phone(desk: Desk) -> None:
    desk.database.execute(
        "CREATE FUNCTION take_back() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " UPDATE claude_messages SET status = 'cancelled'"
        " WHERE id = NEW.reply_to_id AND status = 'escalated'; RETURN NULL; END$$;"
        "CREATE TRIGGER take_back AFTER INSERT ON claude_messages FOR EACH ROW"
        " WHEN (NEW.msg_type = 'response') EXECUTE FUNCTION take_back()"
    )
    tasks = [desk.send(f"{number}.md") for number in range(5)]

    desk.cycle(MAX_OPEN_ESCALATIONS="2")

    assert len(messages(desk.database, msg_type="escalation")) == 2
    assert desk.error(tasks[2]).startswith("2 requests already wait for approval")


def test_unknown_tasks_take_no_place_from_what_could_run(desk: Desk) -> None:
    unknown = [send(desk.database, f"TASK: unknown_{number}") for number in range(5)]
    known = [desk.send(f"{number}.md") for number in range(3)]

    desk.cycle(MAX_OPEN_ESCALATIONS="3")

    escalated = [task for task in [*unknown, *known] if not desk.verdict(task)]
    assert escalated == [*unknown[:3], *known]
    assert desk.error(unknown[3]).startswith("3 requests for unknown tasks already wait")


def test_an_approved_task_that_the_whitelist_has_not_is_reported_failed(desk: Desk) -> None:
    body = 'TASK: deploy_all\nPARAMS: {"filepath": "a\\nb", "n": [1e22, -0.0, 5.0, 1e-7]}'
    task = send(desk.database, body)
    desk.cycle()
    (card,) = escalations(desk.database, task)
    assert card["body"].startswith("Unknown task, cannot run: deploy_all ")

    desk.approve(card)
    desk.cycle()

    assert desk.verdict(task) == "failed"
    assert desk.error(task) == "approved, but this agent has no task named deploy_all"


@pytest.mark.parametrize("task", ["disk_space", "restart_all_services", "db_pending_messages"])
def test_a_task_named_in_the_settings_waits_for_approval(desk: Desk, task: str) -> None:
    sent = send(desk.database, f"TASK: {task}")

    desk.cycle(TASKS_REQUIRING_APPROVAL=f"read_file,{task}")

    (card,) = escalations(desk.database, sent)
    assert "Why it needs you: TASKS_REQUIRING_APPROVAL names this task.\n" in card["body"]


OWN_FILES = [
    "task_executor.py", "catalyst_heartbeat/tasks/base.py", "README.md", "run-heartbeat-public.sh",
    "tests/conftest.py", "json.py", "sitecustomize.py", "catalyst_heartbeat/tasks/new.py", "new.sh",
]  # fmt: skip


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_change_of_the_programs_own_files_waits_for_approval(desk: Desk, name: str) -> None:
    path = Path(PROGRAM_FOLDER) / name
    before = path.read_text() if path.exists() else None

    task = send(desk.database, write_file(path, f"{before or ''}# other\n"))
    desk.cycle(ALLOWED_PATHS=str(PROGRAM_FOLDER), TASKS_REQUIRING_APPROVAL="")

    (card,) = escalations(desk.database, task)
    assert f"Why it needs you: {path} " in card["body"]
    desk.deny(card)
    desk.cycle(ALLOWED_PATHS=str(PROGRAM_FOLDER), TASKS_REQUIRING_APPROVAL="")
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize("setting", ["BACKUP_DIR", "STATE_DIR", "CHANGELOG_PATH"])
def test_a_change_of_what_the_program_keeps_waits_for_approval(desk: Desk, setting: str) -> None:
    place = Path(desk.environment[setting])
    path = place if place.suffix else place / "a.md"
    task = send(desk.database, write_file(path, "other\n"))

    desk.cycle(ALLOWED_PATHS=str(place.parent), TASKS_REQUIRING_APPROVAL="")

    assert message(desk.database, task)["status"] == "escalated"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('TASK: write_file\nPARAMS: {"filepath": "/etc/x.md", "content": ""}', "write_file: file"),
        ('TASK: write_file\nPARAMS: {"path": 1}', 'write_file: missing parameter "filepath"'),
        ("no task", 'line 1 begins with "no task"'),
    ],
)
def test_bad_parameters_are_rejected_and_bother_nobody(desk: Desk, body: str, error: str) -> None:
    task = send(desk.database, body)

    desk.cycle()

    assert (desk.verdict(task), escalations(desk.database, task)) == ("rejected", [])
    assert desk.error(task).startswith(error)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("x\n" * 200, "too large to be shown whole to craig_mobile, so it cannot be approved"),
        ("x" * 9000, "too large to be shown whole to craig_mobile, so it cannot be approved"),
        ("\u0430" * 2800, "too large to be shown whole to craig_mobile, so it cannot be approved"),
    ],
)
def test_what_cannot_be_shown_whole_cannot_be_approved(
    desk: Desk, content: str, error: str
) -> None:
    task = desk.send(content=content)

    desk.cycle()

    assert desk.verdict(task) == "rejected"
    assert desk.error(task).startswith(error)
    # Control: a card that is cut shows the beginning and leaves the rest to trust.
    assert len(content) > 150


def test_a_change_that_would_fail_bothers_nobody(desk: Desk) -> None:
    task = send(desk.database, write_file(desk.path("a.sh"), "if\n"))

    desk.cycle()

    assert (desk.verdict(task), escalations(desk.database, task)) == ("rejected", [])
    assert desk.error(task).startswith("it would fail: ")


def test_the_receipts_are_marked_and_nothing_else_is(desk: Desk) -> None:
    task, card = desk.ask()
    approved = {"from_agent": "craig_mobile", "msg_type": "response"}
    subject = f"Approved: {card['subject']}"
    others = [
        send(desk.database, "APPROVED", **{**approved, "subject": subject, **changes})
        for changes in (
            {"from_agent": "big_bro"}, {"from_agent": "Craig_Mobile"}, {"to_agent": "intl_claude"},
            {"to_agent": "all"}, {"msg_type": "message"}, {"subject": f"{subject} "},
            {"subject": f"Re: {subject}"}, {"subject": "Approved: Permission #999: write_file"},
            {"subject": card["subject"]}, {"subject": subject.lower()}, {"subject": "APPROVED"},
        )
    ]  # fmt: skip
    before = {id: message(desk.database, id) for id in others}

    receipts = [desk.approve(card), desk.approve(card), desk.deny(card, "no"), desk.approve(card)]
    desk.cycle()

    assert desk.verdict(task) == "denied"
    for receipt in receipts:
        marked = message(desk.database, receipt)
        assert marked["status"] == "processed"
        assert marked["processed_at"] is not None
    assert {id: message(desk.database, id) for id in others} == before


def test_a_late_receipt_is_marked_when_it_comes(desk: Desk) -> None:
    task, card = desk.ask()
    desk.set(card, "status = 'approved'")
    desk.cycle()

    receipt = desk.approve(card)
    desk.cycle()

    assert message(desk.database, receipt)["status"] == "processed"
    assert desk.runs(task) == 1


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'not today'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON claude_messages FOR EACH ROW WHEN ({which})
    EXECUTE FUNCTION refuse();
"""


def test_a_denial_that_the_database_refuses_holds_up_nobody(desk: Desk) -> None:
    task, card = desk.ask()
    other, approved = desk.ask("b.md")
    desk.deny(card)
    desk.approve(approved)
    which = f"NEW.id = {task} AND NEW.status = 'processed'"
    desk.database.execute(REFUSE.format(which=which))

    desk.cycle()

    assert message(desk.database, task)["status"] == "escalated"
    assert (desk.runs(other), desk.verdict(other)) == (1, "success")


def test_a_request_whose_number_is_no_integer_is_denied_and_withdrawn(desk: Desk) -> None:
    """The ids that were made BIGINT once the integers were used up."""
    desk.database.execute(
        "ALTER TABLE claude_messages ALTER id TYPE bigint, ALTER reply_to_id TYPE bigint,"
        " ALTER thread_id TYPE bigint; ALTER SEQUENCE claude_messages_id_seq AS bigint"
        " RESTART 3000000000"
    )
    denied, card = desk.ask("denied.md")
    gone, lost = desk.ask("gone.md")

    desk.deny(card)
    desk.database.execute("DELETE FROM claude_messages WHERE id = %s", (lost["id"],))
    desk.cycle()

    assert (desk.verdict(denied), desk.verdict(gone)) == ("denied", "expired")
    assert message(desk.database, card["id"])["status"] == "processed"

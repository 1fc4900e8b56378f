"""Who may send what: senders compared exactly, order, and mail that is not this program's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.approval_setup import Desk, opened_desk
from support.postgres import Database, escalations, message, messages, reports, send

OTHERS = [
    "Big_Bro", "BIG_BRO", "big_bro ", " big_bro", "big_bro\t", "big_bro\n", "big_bro\u00a0",
    "big_bro\u200b", "\ufeffbig_bro", "big_bro\u202e", "bіg_bro", "big_brо", "ｂig_bro", "big＿bro",
    "big-bro", "big.bro", "bigbro", "big_bro2", "big_br", "big_bro,craig", "big%bro", "%", "_", "",
    "NULL", "null", "None", "nil", "undefined", "0", "all", "*", "big_bro' OR '1'='1",
    "big_bro; DROP TABLE claude_messages", "<b>big_bro</b>", "public_claude", "craig_mobile",
    "craig_desktop", "intl_claude", "dev_claude",
]  # fmt: skip


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


def test_no_task_of_another_sender_runs_or_reaches_the_approver(desk: Desk) -> None:
    tasks = {
        desk.send(f"{number}.md", from_agent=sender, priority="urgent"): sender
        for number, sender in enumerate(OTHERS)
    }
    unknown = send(desk.database, "TASK: reboot", from_agent="Big_Bro")
    good = desk.send("good.md", priority="low")

    desk.cycle(TASKS_REQUIRING_APPROVAL="")

    assert desk.verdict(good) == "success"
    assert sorted(path.name for path in desk.path("").iterdir()) == ["good.md"]
    assert messages(desk.database, msg_type="escalation") == []
    for task, sender in {**tasks, unknown: "Big_Bro"}.items():
        (answer,) = reports(desk.database, task)
        assert (answer["to_agent"], answer["data"]["outcome"]) == (sender, "rejected")
        assert "may not send tasks; those who may: big_bro\n" in answer["body"]


def test_an_escalated_request_of_a_sender_who_lost_the_right_does_not_run(desk: Desk) -> None:
    task, card = desk.ask()

    desk.approve(card)
    desk.cycle(TASK_SENDERS="craig_desktop")

    assert (desk.runs(task), desk.verdict(task)) == (0, "rejected")


def test_each_of_several_senders_gets_the_answers_to_his_own_tasks(desk: Desk) -> None:
    tasks = {name: desk.send(f"{name}.md", from_agent=name) for name in ("big_bro", "intl_claude")}

    desk.cycle(TASKS_REQUIRING_APPROVAL="", TASK_SENDERS="big_bro,intl_claude")

    for name, task in tasks.items():
        assert [answer["to_agent"] for answer in reports(desk.database, task)] == [name]


NOT_OURS: list[dict[str, Any]] = [
    {"msg_type": "message"}, {"msg_type": "response"}, {"msg_type": "signal"}, {"msg_type": "Task"},
    {"msg_type": "TASK"}, {"msg_type": "task "}, {"msg_type": "tasks"}, {"msg_type": "escalation"},
    {"to_agent": "all"}, {"to_agent": "intl_claude"}, {"to_agent": "Public_Claude"},
    {"to_agent": "public_claude "}, {"to_agent": "public_claude\u200b"}, {"to_agent": "big_bro"},
    {"status": "read"}, {"status": "PENDING"}, {"status": "processed"}, {"status": "expired"},
    {"status": "draft"}, {"status": None},
    {"msg_type": "response", "from_agent": "craig_mobile", "subject": "APPROVED"},
    # What another program of the same agent asks the same person.
    {"msg_type": "escalation", "from_agent": "public_claude", "to_agent": "craig_mobile",
     "subject": "Permission to close EUR"},
    {"msg_type": "escalation", "from_agent": "public_claude", "to_agent": "craig_mobile",
     "subject": "Permission #7: budget", "status": "approved"},
    {"msg_type": "response", "from_agent": "craig_mobile",
     "subject": "Approved: Permission #7: budget"},
]  # fmt: skip


def test_other_peoples_mail_stays_untouched(desk: Desk) -> None:
    kept = [desk.send(**{"status": "pending", **columns}) for columns in NOT_OURS]
    before = [message(desk.database, id) for id in kept]
    good = desk.send("good.md")

    desk.cycle(TASKS_REQUIRING_APPROVAL="")
    desk.cycle(TASKS_REQUIRING_APPROVAL="")

    assert desk.verdict(good) == "success"
    assert [message(desk.database, id) for id in kept] == before
    assert [path.name for path in desk.path("").iterdir()] == ["good.md"]


BUTTONS = [
    ("Request: Daily Report", "Please send me the daily report with all positions."),
    ("URGENT: Stop Trading", "Stop all trading immediately and close every position."),
    ("Request: Restart", "TASK restart_all_services please"),
]


@pytest.mark.parametrize("senders", ["big_bro", "big_bro,craig_mobile"])
def test_the_dashboards_buttons_in_plain_english_are_rejected(desk: Desk, senders: str) -> None:
    tasks = [
        send(desk.database, body, subject=subject, from_agent="craig_mobile", priority="urgent")
        for subject, body in BUTTONS
    ]
    good = desk.send()

    desk.cycle(TASK_SENDERS=senders, TASKS_REQUIRING_APPROVAL="")

    assert desk.verdict(good) == "success"
    for task in tasks:
        assert (desk.verdict(task), escalations(desk.database, task)) == ("rejected", [])
        (answer,) = reports(desk.database, task)
        assert answer["to_agent"] == "craig_mobile"
        right = "the format is TASK: <name>" if "craig" in senders else "may not send tasks"
        assert right in desk.error(task)

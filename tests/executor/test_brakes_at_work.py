"""Brakes in whole cycles: a loop ends on the phone, and everything before it is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.approval_setup import Desk, opened_desk
from support.postgres import Database, escalations, message, reports, send
from support.pretended_systemd import ACTIVE, PretendSystemd

pytestmark = pytest.mark.slow

Heartbeat = Callable[..., CompletedProcess[str]]
ALWAYS = "mon-sun 00:00-24:00 UTC"


@pytest.fixture
def desk(database: Database, environment: dict[str, str]) -> Iterator[Desk]:
    yield from opened_desk(database, environment)


def edit(path: Path, old: str, new: str) -> str:
    params = {"filepath": str(path), "old_text": old, "new_text": new}
    return f"TASK: edit_file\nPARAMS: {json.dumps(params)}"


def test_a_loop_of_edits_and_rollbacks_ends_on_the_phone(desk: Desk) -> None:
    path = desk.path("a.md")
    path.write_text("old\n")
    undo = f'TASK: rollback_file\nPARAMS: {{"filepath": "{path}"}}'
    loop = [edit(path, "old", "new"), undo] * 3
    tasks = [send(desk.database, body) for body in loop]

    desk.cycle(MAX_CHANGES_PER_HOUR="4")

    assert [desk.verdict(task) for task in tasks[:4]] == ["success"] * 4
    (card,) = escalations(desk.database, tasks[4])
    assert (
        "Why it needs you: 4 changes ran within the last hour: MAX_CHANGES_PER_HOUR holds until "
        in card["body"]
    )
    assert path.read_text() == "old\n"
    assert not desk.verdict(tasks[4])


def test_a_loop_of_restarts_ends_on_the_phone(desk: Desk, pretend_systemd: PretendSystemd) -> None:
    """Also one that fails each time; a further request for the same is a duplicate."""
    folder = pretend_systemd(
        restart="echo again >> $0.log; exit 1", **{"consciousness-dashboard": ACTIVE}
    )
    tasks = [send(desk.database, "TASK: restart_dashboard") for _ in range(5)]

    for _ in range(2):
        desk.cycle(MAX_CHANGES_PER_HOUR="3")

    assert (folder / "SYSTEMCTL.log").read_text() == "again\n" * 3
    assert [desk.verdict(task) for task in tasks] == [*["failed"] * 3, "", "rejected"]
    (card,) = escalations(desk.database, tasks[3])
    assert (
        "Why it needs you: 3 changes ran within the last hour: MAX_CHANGES_PER_HOUR holds until "
        in card["body"]
    )
    desk.approve(card)
    desk.cycle(MAX_CHANGES_PER_HOUR="3")
    assert (folder / "SYSTEMCTL.log").read_text() == "again\n" * 4
    assert desk.verdict(tasks[3]) == "failed"


def test_what_no_report_is_holds_no_brake(desk: Desk) -> None:
    """A time to come, and data that only its compression makes small."""
    path = desk.path("a.md")
    path.write_text("old\n")
    said = "jsonb_build_object('final', true, 'task', 'edit_file', 'outcome', 'success', 'x', {})"
    for created, data in (
        ("now() + interval '1 day'", said.format("1")),
        ("now()", said.format("repeat('x', 5000000)")),
    ):
        planted = send(
            desk.database, "x", from_agent="public_claude", to_agent="big_bro", msg_type="response"
        )
        desk.set(planted, f"created_at = {created}, data = {data}")
    task = send(desk.database, edit(path, "old", "new"))

    desk.cycle(MAX_CHANGES_PER_HOUR="1")

    assert desk.verdict(task) == "success"


def test_changes_are_counted_over_all_hosts_by_the_agents_own_reports(desk: Desk) -> None:
    path = desk.path("a.md")
    path.write_text("old\n")
    for agent, outcome in (
        ("public_claude", "success"), ("public_claude", "unknown"), ("public_claude", "rejected"),
        ("intl_claude", "success"), ("public_claude", "denied"),
    ):  # fmt: skip
        said = {"task": "edit_file", "final": True, "outcome": outcome}
        send(
            desk.database, "elsewhere", from_agent=agent, to_agent="big_bro", msg_type="response",
            data=said,
        )  # fmt: skip
    runs = send(desk.database, edit(path, "old", "new"))
    asks = send(desk.database, edit(path, "new", "newer"))

    desk.cycle(MAX_CHANGES_PER_HOUR="3")

    assert desk.verdict(runs) == "success"
    assert "3 changes ran" in escalations(desk.database, asks)[0]["body"]


def test_a_dry_run_counts_the_changes_that_it_foresees(desk: Desk, heartbeat: Heartbeat) -> None:
    paths = [desk.path(name) for name in ("a.md", "b.md", "c.md")]
    for path in paths:
        path.write_text("old\n")
    tasks = [send(desk.database, edit(path, "old", "new")) for path in paths]

    foreseen = heartbeat("--dry-run", MAX_CHANGES_PER_HOUR="2").stdout
    desk.cycle(MAX_CHANGES_PER_HOUR="2")

    assert foreseen.count("\n  run edit_file ") == 2
    assert foreseen.count("\n  escalate to craig_mobile: edit_file ") == 1
    assert "  because 2 changes ran within the last hour\n" in foreseen
    assert [bool(escalations(desk.database, task)) for task in tasks] == [False, False, True]


def test_the_limit_holds_until_enough_changes_are_an_hour_old(
    desk: Desk, heartbeat: Heartbeat
) -> None:
    paths = [desk.path(name) for name in ("a.md", "b.md", "c.md", "d.md")]
    for path in paths:
        path.write_text("old\n")
    done = [send(desk.database, edit(path, "old", "new")) for path in paths[:3]]
    desk.cycle()
    for minutes, task in zip((50, 40, 30), done, strict=True):
        ago = f"created_at = created_at - interval '{minutes} minutes'"
        desk.set(reports(desk.database, task)[0], ago)
    ((until,),) = desk.database.execute(
        "SELECT to_char((created_at + interval '1 hour') AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')"
        " FROM claude_messages WHERE reply_to_id = %s",
        (done[1],),
    )

    said = [
        heartbeat(option, MAX_CHANGES_PER_HOUR="2").stdout
        for option in ("--dry-run", "--status", "--check")
    ]

    brake = f"3 changes ran within the last hour: MAX_CHANGES_PER_HOUR holds until {until} UTC"
    assert [brake in text for text in said] == [True] * 3
    desk.set(reports(desk.database, done[1])[0], "created_at = now() - interval '1 hour'")
    desk.set(reports(desk.database, done[0])[0], "created_at = now() - interval '1 hour'")
    task = send(desk.database, edit(paths[3], "old", "new"))
    desk.cycle(MAX_CHANGES_PER_HOUR="2")
    assert desk.verdict(task) == "success"


def test_an_approved_change_counts_and_always_runs(desk: Desk) -> None:
    first, second = desk.path("a.md"), desk.path("b.md")
    for path in (first, second):
        path.write_text("old\n")
    done = send(desk.database, edit(first, "old", "new"))
    braked = send(desk.database, edit(second, "old", "new"))
    desk.cycle(MAX_CHANGES_PER_HOUR="1")
    (card,) = escalations(desk.database, braked)

    desk.approve(card)
    desk.cycle(MAX_CHANGES_PER_HOUR="1")
    further = send(desk.database, edit(first, "new", "newer"))
    desk.cycle(MAX_CHANGES_PER_HOUR="2")

    assert [desk.verdict(task) for task in (done, braked)] == ["success"] * 2
    assert second.read_text() == "new\n"
    assert "2 changes ran within the last hour" in escalations(desk.database, further)[0]["body"]


def test_changes_of_an_hour_ago_and_what_changed_nothing_do_not_count(desk: Desk) -> None:
    path = desk.path("a.md")
    path.write_text("old\n")
    send(desk.database, edit(path, "old", "new"))
    send(desk.database, "TASK: list_tasks")
    send(desk.database, 'TASK: edit_file\nPARAMS: {"filepath": "/etc/x"}')  # rejected
    desk.cycle(MAX_CHANGES_PER_HOUR="1")
    ago = "UPDATE claude_messages SET created_at = created_at - interval '61 minutes'"
    desk.database.execute(f"{ago} WHERE msg_type = 'response'")

    task = send(desk.database, edit(path, "new", "newer"))
    desk.cycle(MAX_CHANGES_PER_HOUR="1")

    assert desk.verdict(task) == "success"


def test_in_a_freeze_whatever_changes_something_is_asked_for(
    desk: Desk, heartbeat: Heartbeat
) -> None:
    path = desk.path("a.md")
    path.write_text("old\n")
    change, look = (
        send(desk.database, edit(path, "old", "new")),
        send(desk.database, "TASK: list_tasks"),
    )

    says = [
        heartbeat(option, FREEZE_WINDOWS=ALWAYS) for option in ("--dry-run", "--status", "--check")
    ]
    desk.cycle(FREEZE_WINDOWS=ALWAYS)

    for result in says:
        assert f'FREEZE_WINDOWS: "{ALWAYS}" holds until ' in result.stdout
    (card,) = escalations(desk.database, change)
    assert f'Why it needs you: FREEZE_WINDOWS: "{ALWAYS}" holds until ' in card["body"]
    assert (path.read_text(), desk.verdict(look)) == ("old\n", "success")
    desk.approve(card)
    desk.cycle(FREEZE_WINDOWS=ALWAYS)
    assert (path.read_text(), desk.verdict(change)) == ("new\n", "success")


@pytest.mark.parametrize(("begins", "holds"), [(-1, True), (1, False), (22, False)])
def test_a_freeze_holds_by_the_databases_clock(
    begins: int, holds: bool, desk: Desk, heartbeat: Heartbeat
) -> None:
    """For two hours from so many hours after now, or from yesterday on."""
    ((begin, end),) = desk.database.execute(
        "SELECT to_char(hour, 'HH24:MI'), to_char(hour + interval '2 hours', 'HH24:MI')"
        " FROM (SELECT now() AT TIME ZONE 'Asia/Tokyo' + make_interval(hours => %s)) AS t (hour)",
        (begins,),
    )
    window = f"mon-sun {begin}-{end} Asia/Tokyo"
    path = desk.path("a.md")
    path.write_text("old\n")
    task = send(desk.database, edit(path, "old", "new"))

    says = [heartbeat(option, FREEZE_WINDOWS=window) for option in ("--dry-run", "--status")]
    desk.cycle(FREEZE_WINDOWS=window)

    assert [window in result.stdout for result in says] == [holds] * 2
    assert bool(escalations(desk.database, task)) == holds
    assert (desk.verdict(task) == "success") != holds


def test_all_that_holds_is_said_on_one_card(desk: Desk) -> None:
    task = send(desk.database, "TASK: restart_dashboard")

    desk.cycle(
        FREEZE_WINDOWS=ALWAYS,
        MAX_CHANGES_PER_HOUR="0",
        TASKS_REQUIRING_APPROVAL="restart_dashboard",
    )

    (card,) = escalations(desk.database, task)
    (why,) = [line for line in card["body"].splitlines() if line.startswith("Why it needs you: ")]
    assert "TASKS_REQUIRING_APPROVAL names this task; FREEZE_WINDOWS: " in why
    assert why.endswith("; 0 changes ran within the last hour.")


def test_a_change_that_was_approved_does_not_run_for_who_may_only_read_by_now(desk: Desk) -> None:
    task, card = desk.ask()
    desk.approve(card)

    desk.cycle(READ_ONLY_SENDERS="big_bro")

    assert (desk.runs(task), desk.verdict(task)) == (0, "rejected")
    assert reports(desk.database, task)[-1]["to_agent"] == "big_bro"


@pytest.mark.parametrize("also", ["big_bro", "big_bro,reader"])
def test_a_read_only_sender_may_send_what_changes_nothing(desk: Desk, also: str) -> None:
    look = send(desk.database, "TASK: list_tasks", from_agent="reader")
    change = send(desk.database, "TASK: restart_dashboard", from_agent="reader")
    unknown = send(desk.database, "TASK: rm_rf", from_agent="reader")

    desk.cycle(READ_ONLY_SENDERS="reader", TASK_SENDERS=also)

    assert desk.verdict(look) == "success"
    for task in (change, unknown):
        assert desk.verdict(task) == "rejected"
        rule = "is one of READ_ONLY_SENDERS, which may only send what changes nothing"
        assert desk.error(task) == f'"reader" {rule}'
        assert message(desk.database, task)["status"] == "processed"

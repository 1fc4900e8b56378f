"""The approver's dashboard, which shows rows as HTML, in a real browser after real cycles."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

from support.cycles import Cycles, finals
from support.dashboard import Browser, Dashboard
from support.docker_engine import wait_for
from support.postgres import Database, escalations, message, messages, send

# Each of them would run, or load what it likes, where a page takes it for HTML.
MARKUP = [
    "<img src=/owned onerror=fetch('/owned')>", "<script>fetch('/owned')</script>",
    "</div><svg onload=fetch('/owned')>", "<iframe src=/owned>", "<!--", "<?php",
    "<style>@import '/owned'</style>", "<form action=/decide><button>Approve",
]  # fmt: skip
PAGES = ("/", "/messages", "/requests")


def test_no_text_of_the_program_is_markup_on_the_dashboard(
    cycles: Cycles,
    database: Database,
    environment: dict[str, str],
    dashboard: Dashboard,
    browser: Browser,
) -> None:
    folder, logs = Path(environment["ALLOWED_PATHS"].partition(":")[0]), environment["LOG_DIR"]
    for number, markup in enumerate(MARKUP):
        Path(logs, f"log{number}.log").write_text(f"{markup}\n" * 9)
        read, written = folder / f"read{number}.md", folder / f"written{number}.md"
        read.write_text(f"{markup}\n" * 9)
        written.write_text(f"{markup}{markup}\n")
        content = {"filepath": str(written), "content": f"{markup}\n" * 9}
        for body in (
            f'TASK: catalyst_logs\nPARAMS: {{"logfile": "log{number}"}}',
            f'TASK: read_file\nPARAMS: {{"filepath": "{read}"}}',
            f"TASK: write_file\nPARAMS: {json.dumps(content)}\nREASON: {markup}",
            f"TASK: reboot{number}\nPARAMS: {json.dumps({markup: markup})}\nREASON: {markup}",
            f"TASK: disk_space\nPARAMS: {json.dumps({markup: markup})}",
            f"TASK: {markup}",
            markup,
        ):
            send(database, body, subject="x")
            send(database, body, subject=f"{'S' * (60 + number)}{markup}")
        send(database, "TASK: disk_space", from_agent=markup[:50], subject=markup)

    finished = cycles.run(TASKS_REQUIRING_APPROVAL="write_file", MAX_OPEN_ESCALATIONS="100")

    assert finished.returncode == 0, finished.stderr
    for page in PAGES:
        browser.open(dashboard.url + page)
        assert browser.run("document.querySelectorAll('.text').length") > len(MARKUP)
        assert browser.run("document.querySelectorAll('.text *, script, iframe, svg').length") == 0
        assert "<img src=/owned" in browser.run("document.body.innerText")
    assert [path for path in dashboard.asked if path != "/favicon.ico"] == []
    ours = [row for row in messages(database) if row["from_agent"] == "public_claude"]
    kinds = {(row["msg_type"], (row["data"] or {}).get("outcome")) for row in ours}
    assert {kind for _, kind in kinds} >= {"success", "rejected", "escalated"}
    for row in ours:
        for shown in (row["subject"], row["body"][:200]):
            assert not re.search("<[A-Za-z/!?]", shown)


def test_the_browser_runs_what_somebody_else_writes(
    database: Database, dashboard: Dashboard, browser: Browser
) -> None:
    """The pages and the browser are such that the test before this one could fail."""
    send(database, MARKUP[0], msg_type="message", subject=MARKUP[1])

    browser.open(f"{dashboard.url}/messages")

    assert "/owned" in dashboard.asked
    assert browser.run("document.querySelectorAll('.text *').length") > 0


def is_decided(database: Database, card_id: int) -> bool:
    return str(message(database, card_id)["status"]) != "pending"


def test_what_is_clicked_on_the_dashboard_is_what_the_next_cycle_does(
    cycles: Cycles,
    database: Database,
    environment: dict[str, str],
    dashboard: Dashboard,
    browser: Browser,
) -> None:
    folder = Path(environment["ALLOWED_PATHS"].partition(":")[0])
    tasks = {}
    for status in ("approved", "denied"):
        content = {"filepath": str(folder / f"{status}.md"), "content": "written\n"}
        tasks[status] = send(database, f"TASK: write_file\nPARAMS: {json.dumps(content)}")
    assert cycles.run(TASKS_REQUIRING_APPROVAL="write_file").returncode == 0

    for status, task in tasks.items():
        (card,) = escalations(database, task)
        browser.open(dashboard.url)
        browser.click(f"{status}-{card['id']}")
        # The driver may answer before the page has sent anything.
        wait_for(partial(is_decided, database, card["id"]))
    assert cycles.run(TASKS_REQUIRING_APPROVAL="write_file").returncode == 0

    outcomes = {}
    for status, task in tasks.items():
        (report,) = finals(database, task)
        outcomes[status] = report["data"]["outcome"]
    assert outcomes == {"approved": "success", "denied": "denied"}
    assert (folder / "approved.md").read_text() == "written\n"
    assert not (folder / "denied.md").exists()
    browser.open(dashboard.url)
    assert browser.run("document.querySelectorAll('.text').length") == 0

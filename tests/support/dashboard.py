"""The approval dashboard as its users have it, and a browser that looks at it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.postgres import Database, decide, message, messages, require

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
START_SECONDS = 60


class Dashboard(ThreadingHTTPServer):
    """Shows rows as the real one does, unescaped, and decides as its buttons do."""

    daemon_threads = True

    def __init__(self, database: Database) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.database = database
        # What scripts and images in the rows asked for.
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def home(self) -> str:
        """The waiting requests, each with the start of its body and two buttons."""
        waiting = messages(self.database, msg_type="escalation", status="pending")
        return "".join(
            f"<div class=text>{row['subject']}</div><div class=text>{row['body'][:150]}...</div>"
            + button(row["id"], "approved")
            + button(row["id"], "denied")
            for row in waiting
        )

    def previews(self) -> str:
        return "".join(
            f"<div class=text>{row['subject']}</div><div class=text>{row['body'][:200]}</div>"
            for row in messages(self.database)
            if row["msg_type"] != "task"
        )

    def requests(self) -> str:
        return "".join(
            f"<h2 class=text>{row['subject']}</h2>"
            f"<div class=text style='white-space: pre-wrap'>{row['body']}</div>"
            for row in messages(self.database, msg_type="escalation")
        )


def button(id: int, status: str) -> str:
    return (
        f"<form method=post action='/decide?id={id}&status={status}'>"
        f"<button id={status}-{id}>{status}</button></form>"
    )


class Page(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        pages = {
            "/": self.server.home,
            "/messages": self.server.previews,
            "/requests": self.server.requests,
        }
        if self.path not in pages:
            self.server.asked.append(self.path)
            self.send_error(404)
            return
        self.answer(f"<!doctype html><meta charset=utf-8>{pages[self.path]()}")

    def do_POST(self) -> None:
        wanted = {name: value[0] for name, value in parse_qs(urlsplit(self.path).query).items()}
        row = message(self.server.database, int(wanted["id"]))
        decide(self.server.database, row, wanted["status"])
        self.answer("decided")

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the test's output is not this server's log."""


class Browser:
    """A headless Chromium, driven by its own driver (W3C WebDriver)."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        self.place = f"{driver}/session"
        session = self.ask("", {"capabilities": capabilities})["sessionId"]
        self.place += f"/{session}"

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        request = urllib.request.Request(  # noqa: S310 - the driver's own address
            self.place + path,
            json.dumps(body or {}).encode() if method == "POST" else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return json.loads(answer.read())["value"]

    def open(self, url: str) -> None:
        """Open a page and wait until all that it names has been asked for."""
        self.ask("/url", {"url": url})

    def run(self, script: str) -> Any:
        return self.ask("/execute/sync", {"script": f"return {script}", "args": []})

    def click(self, id: str) -> None:
        found = self.ask("/element", {"using": "css selector", "value": f"[id='{id}']"})
        self.ask(f"/element/{found[ELEMENT]}/click")

    def close(self) -> None:
        self.ask("", method="DELETE")


@pytest.fixture
def dashboard(database: Database) -> Iterator[Dashboard]:
    with Dashboard(database) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    require(driver and shutil.which("chromium"), "needs chromium and chromium-driver")
    process = subprocess.Popen(
        [str(driver), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            port = started_port(process)
            with closing(Browser(f"http://127.0.0.1:{port}", tmp_path / "chromium")) as opened:
                yield opened
        finally:
            process.terminate()


def started_port(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "started successfully on port" in line:
            return line.rstrip().rstrip(".").rpartition(" ")[2]
    pytest.fail("the driver of Chromium did not start")

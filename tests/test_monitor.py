"""HEARTBEAT_PING_URL and NOTIFY_URL: who listens hears it, and cannot change what a cycle does."""

from __future__ import annotations

import base64
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from subprocess import CompletedProcess

import pytest
from support.postgres import PROGRAM_FOLDER, Database, message, send

from catalyst_heartbeat.monitor import notify, ping

Heartbeat = Callable[..., CompletedProcess[str]]

TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def request(conn: socket.socket) -> str:
    """Read a request whole: its first line's method and path, its headers and what it brings."""
    with conn.makefile("rb") as stream:
        lines = list(iter(lambda: stream.readline().decode().strip(), ""))
        sizes = [line.partition(": ")[2] for line in lines if line.startswith("Content-Length")]
        body = stream.read(int(sizes[0])).decode() if sizes else ""
    first = lines[0].partition(" HTTP")[0]
    told = [line for line in lines if re.match("Title|Authorization", line)]
    return "\n".join([first, *told, *([body] if sizes else [])])


@contextmanager
def monitor(answer: bytes = TAKEN, *, drips: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Listen as a monitor that answers so, or drips for ever; yield its URL and the requests."""
    asked: list[str] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                conn, _ = server.accept()
            except OSError:
                return
            with conn:
                asked.append(request(conn))
                try:
                    while drips:
                        conn.sendall(b"H")
                        time.sleep(0.2)
                    conn.sendall(answer)
                except OSError:
                    pass

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("setting", "success", "failure"),
    [
        ("/ping/abc", "GET /ping/abc", "GET /ping/abc/fail"),
        ("/ping/abc/", "GET /ping/abc", "GET /ping/abc/fail"),
        ("/key/name?create=1", "GET /key/name?create=1", "GET /key/name/fail?create=1"),
    ],
)
def test_the_monitor_hears_how_a_cycle_ended(
    setting: str, success: str, failure: str, database: Database, heartbeat: Heartbeat
) -> None:
    with monitor() as (url, asked):
        well = heartbeat(HEARTBEAT_PING_URL=url + setting)
        database.execute("DROP TABLE claude_state")
        badly = heartbeat(HEARTBEAT_PING_URL=url + setting)

    assert (well.returncode, badly.returncode) == (0, 1), badly.stderr
    assert asked == [success, failure]


def test_a_failed_task_is_not_a_failed_cycle(database: Database, heartbeat: Heartbeat) -> None:
    send(database, "TASK: docker_ps")

    with monitor() as (url, asked):
        heartbeat(HEARTBEAT_PING_URL=f"{url}/x")

    assert asked == ["GET /x/start", "GET /x"]


def test_only_a_cycle_is_told(heartbeat: Heartbeat) -> None:
    with monitor() as (url, asked):
        for option in ("--check", "--status", "--dry-run", "--list-tasks"):
            heartbeat(option, HEARTBEAT_PING_URL=url)

    assert asked == []


def test_a_monitor_that_answers_badly_changes_nothing(heartbeat: Heartbeat) -> None:
    with monitor(b"nonsense\r\n\r\n") as (url, asked):
        result = heartbeat(HEARTBEAT_PING_URL=f"{url}/secret-key")

    assert result.returncode == 0
    assert "the monitor did not take the ping" in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret-key" not in result.stderr
    assert len(asked) == 1


def test_a_monitor_that_is_down_changes_nothing(heartbeat: Heartbeat) -> None:
    result = heartbeat(HEARTBEAT_PING_URL="http://127.0.0.1:1/x")

    assert result.returncode == 0
    assert "the monitor did not take the ping" in result.stderr


@pytest.mark.slow
def test_a_monitor_that_drips_is_left_after_five_seconds(heartbeat: Heartbeat) -> None:
    with monitor(drips=True) as (url, _):
        result = heartbeat(HEARTBEAT_PING_URL=url)

    assert result.returncode == 0
    assert "within 5 s" in result.stderr


def test_a_cycle_s_beginning_has_a_url_of_its_own() -> None:
    with monitor() as (url, asked):
        ping(f"{url}/ping/abc?create=1", "/start")

    assert asked == ["GET /ping/abc/start?create=1"]


@pytest.mark.parametrize(
    ("title", "header"),
    [
        ("Permission #7: restart_service", "Permission #7: restart_service"),
        ("Permission #7: größer\r\nX-Evil: 1", None),
        ("a\tb\x1b[2J", None),
        ("\ud800", None),
    ],
)
def test_a_notice_is_one_post_as_ntfy_takes_it(title: str, header: str | None) -> None:
    with monitor() as (url, asked):
        notify(f"{url}/topic", title, "Run restart_service?\nüber alles ⚠️")

    (request,) = asked
    first, sent, text = request.split("\n", 2)
    assert first == "POST /topic"
    assert text == "Run restart_service?\nüber alles ⚠️"
    if header is None:
        coded = sent.removeprefix("Title: =?UTF-8?B?").removesuffix("?=")
        assert base64.b64decode(coded).decode() == " ".join(title.split()).replace("\ud800", "?")
    else:
        assert sent == f"Title: {header}"


def test_a_login_in_the_url_is_sent_as_one() -> None:
    with monitor() as (url, asked):
        notify(url.replace("//", "//me:p%40ss@") + "/topic", "title", "text")

    coded = base64.b64encode(b"me:p@ss").decode()
    assert sorted(asked[0].split("\n")) == sorted(
        ["POST /topic", "Title: title", f"Authorization: Basic {coded}", "text"]
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "RemoteDisconnected"),
        (b"nonsense\r\n\r\n", "BadStatusLine"),
        (b"HTTP/1.1 302 Go\r\nLocation: x:y\r\n\r\n", "it answered 302"),
        (b"HTTP/1.1 403 No\r\n\r\n", "it answered 403"),
        (b"HTTP/1.1 302 Go\r\nLocation: /elsewhere\r\n\r\n", "it answered 302"),
        (b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "it answered 307"),
    ],
)
def test_a_notice_that_is_not_taken_is_one_line_and_goes_nowhere_else(
    answer: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with monitor(answer) as (url, asked), caplog.at_level(logging.WARNING, "heartbeat"):
        notify(f"{url}/secret-topic", "title", "text")

    assert [record.message for record in caplog.records] == [f"no notice was sent: {said}"]
    assert len(asked) == 1


def test_nobody_at_the_notices_url_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "heartbeat"):
        notify("http://127.0.0.1:1/topic", "title", "text")
        notify("http://no such host/topic", "title", "text")

    assert [record.message for record in caplog.records] == [
        "no notice was sent: URLError",
        "no notice was sent: InvalidURL",
    ]


def test_a_notice_to_one_who_drips_is_left_alone() -> None:
    script = (
        "from catalyst_heartbeat import monitor; import sys\n"
        "monitor.CALL_SECONDS = 1; monitor.notify(sys.argv[1], 't', '')"
    )

    with monitor(drips=True) as (url, _):
        left = subprocess.run(
            [sys.executable, "-c", script, url], cwd=PROGRAM_FOLDER, capture_output=True, text=True
        )

    assert (left.returncode, left.stderr) == (0, "no notice was sent within 1 s\n")


def test_a_person_is_told_of_each_new_request_once_and_of_nothing_else(
    database: Database, heartbeat: Heartbeat
) -> None:
    asked_for = send(database, 'TASK: rm_rf\nPARAMS: {"path": "/"}\nREASON: because')
    send(database, "TASK: list_tasks")

    with monitor() as (url, asked):
        for _ in range(2):
            assert heartbeat(NOTIFY_URL=f"{url}/phone").returncode == 0

    (notice,) = asked
    method, title, text = notice.split("\n")
    assert (method, title) == ("POST /phone", f"Title: Permission #{asked_for}: rm_rf")
    assert text.startswith("Unknown task, cannot run: rm_rf")
    assert "because" not in notice


def test_a_phone_that_does_not_answer_costs_no_request(
    database: Database, heartbeat: Heartbeat
) -> None:
    task = send(database, "TASK: rm_rf")

    result = heartbeat(NOTIFY_URL="http://127.0.0.1:1/phone")

    assert result.returncode == 0
    assert "no notice was sent: " in result.stderr
    assert message(database, task)["status"] == "escalated"

"""HEARTBEAT_PING_URL: a monitor hears how each cycle ended, and cannot change how it does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from subprocess import CompletedProcess

import pytest
from support.postgres import Database, send

Heartbeat = Callable[..., CompletedProcess[str]]

TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


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
                asked.append(conn.recv(4096).decode().partition(" HTTP")[0])
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

    assert asked == ["GET /x"]


def test_only_a_cycle_is_told(heartbeat: Heartbeat) -> None:
    with monitor() as (url, asked):
        for option in ("--check", "--status", "--dry-run", "--list-tasks"):
            heartbeat(option, HEARTBEAT_PING_URL=url)

    assert asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 500 No\r\n\r\n",
        b"HTTP/1.1 302 Go\r\nLocation: x:y\r\n\r\n",
    ],
)
def test_a_monitor_that_answers_badly_changes_nothing(answer: bytes, heartbeat: Heartbeat) -> None:
    with monitor(answer) as (url, asked):
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

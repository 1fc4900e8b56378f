"""System Health: real tools, and health endpoints of every bad kind."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from support.docker_engine import context, settings_for, wait_for
from support.postgres import require

from catalyst_heartbeat.host.command import checked_output
from catalyst_heartbeat.outcome import Result, TaskFailed
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks import system_health
from catalyst_heartbeat.tasks.base import NoParams
from catalyst_heartbeat.tasks.system_health import (
    PortParams,
    all_services_health,
    disk_space,
    memory_usage,
    process_list,
    service_health,
)
from catalyst_heartbeat.text import fenced

NO_PARAMS = NoParams()
KILOBYTE, MEGABYTE = 1024, 1024 * 1024

Serve = Callable[[socket.socket], None]


def answer(
    body: bytes | str, status: str = "200 OK", *headers: str, length: int | None = None
) -> bytes:
    """Return a whole HTTP answer; `length` is what it says its length is, where that is a lie."""
    content = body.encode() if isinstance(body, str) else body
    said = len(content) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {said}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def saying(data: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.sendall(data)

    return serve


def silence(connection: socket.socket) -> None:
    connection.recv(1)


def dripping(head: bytes, drop: bytes = b"x") -> Serve:
    """Answer for ever with a byte each tenth of a second, so that no single read waits long."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.1)

    return serve


def flooding(head: bytes, drop: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop * 10_000)

    return serve


@contextmanager
def service(serve: Serve, address: str = "127.0.0.1") -> Iterator[int]:
    """Listen on a free port; each connection's request is read, then served by the function."""

    def work(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                serve(connection)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            except OSError:
                return  # the client had enough, as it should

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=work, args=(connection,), daemon=True).start()

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def settings_with(*ports: int) -> Settings:
    return settings_for("", HEALTH_PORTS=",".join(map(str, ports)))


def health_of(port: int, seconds: float = 5) -> Result:
    settings = settings_with(port)
    params = PortParams.model_validate({"port": port}, context=settings)
    return service_health(params, context(settings, seconds))


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (answer('{"status": "healthy", "uptime": 5}'), "healthy"),
        (answer('{"status": "ok"}'), "ok"),
        (answer('\ufeff{"status": "ok"}'), "ok"),
        (answer('{"status": "ok"}', "201 Created", "Content-Encoding: identity"), "ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'10\r\n{"status": "ok"}\r\n0\r\n\r\n',
            "ok",
        ),
        (b'HTTP/1.0 200 OK\r\n\r\n{"status": "ok"}', "ok"),
        (answer("Orchestration is running"), None),
        (answer("", "204 No Content"), None),
        (answer('["healthy"]'), None),
        (answer("x" * 64 * KILOBYTE), None),
    ],
)
def test_a_service_that_says_healthy_is_healthy(said: bytes, status: str | None) -> None:
    with service(saying(said)) as port:
        result = health_of(port)

    assert result.text.startswith(f"port {port} is healthy: HTTP 20")
    assert (result.value["healthy"], result.value["status"]) == (True, status)
    assert len(result.text) < 1000


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (answer('{"status": "unhealthy"}'), 'HTTP 200, status "unhealthy"'),
        (answer('{"status": "degraded"}'), 'HTTP 200, status "degraded"'),
        (answer('{"status": "Healthy "}'), 'HTTP 200, status "Healthy "'),
        (answer('{"status": "a\\n\\u001b[2J`"}'), r'HTTP 200, status "a\n\u001b[2J`"'),
        (answer('{"status": null}'), 'HTTP 200, status ""'),
        (answer('{"status": ["ok"]}'), 'HTTP 200, status ["ok"]'),
        (answer("{}"), 'HTTP 200, status ""'),
        (answer('{"status": "ok", "status": "down"}'), "HTTP 200, broken JSON"),
        (answer('{"status": "down"} trailing'), "HTTP 200, broken JSON"),
        (answer('{"a":' * 12_000), "HTTP 200, broken JSON"),
        (answer('{"status": "unhealthy"}'.encode("utf-16")), 'HTTP 200, status "unhealthy"'),
        (answer('{"status": "unheal', length=40), "HTTP 200, answer cut short"),
        (answer("", length=40), "HTTP 200, answer cut short"),
        (answer('{"status": "ok"}', "503 Service Unavailable"), "HTTP 503"),
        (answer('{"status": "ok"}', "404 Not Found"), "HTTP 404"),
        (answer("", "500 \x1b[2J"), "HTTP 500"),
        (answer("x" * 64 * KILOBYTE + "x"), "HTTP 200, answer over 64 KiB"),
        (answer("x", length=10**12), "HTTP 200, answer cut short"),
        (answer(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"), "HTTP 200, encoded answer"),
        (answer(b"x", "200 OK", "Content-Encoding: identity, br"), "HTTP 200, encoded answer"),
        (answer(b"x", "200 OK", "Transfer-Encoding: gzip"), "HTTP 200, encoded answer"),
    ],
)
def test_a_service_that_says_anything_else_is_not_healthy(said: bytes, detail: str) -> None:
    with service(saying(said)) as port, pytest.raises(TaskFailed) as failure:
        health_of(port)

    message = str(failure.value)
    assert message.startswith(f"port {port} is not healthy: {detail}")
    assert message.isprintable()
    assert failure.value.value["healthy"] is False
    assert len(failure.value.output.splitlines()) <= 5


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort",
    ],
)
def test_what_is_not_proper_http_is_not_healthy(said: bytes) -> None:
    with service(saying(said)) as port, pytest.raises(TaskFailed, match="no proper HTTP answer"):
        health_of(port)


@pytest.mark.parametrize("offset", [0, 6, 12, 18])
def test_a_secret_across_the_cut_of_an_answer_is_gone(offset: int) -> None:
    secret = "hunter2-hunter2-hunter2-"
    texts = ("x" * (500 - offset) + secret, '{"status": "' + "x" * (79 - offset) + secret + '"}')
    for text in texts:
        with service(saying(answer(text))) as port:
            settings = settings_for("", HEALTH_PORTS=str(port), DB_PASSWORD=secret)
            params = PortParams.model_validate({"port": port}, context=settings)
            try:
                result = service_health(params, context(settings, 5))
            except TaskFailed as failure:
                result = Result(f"{failure}\n{failure.output}", failure.value)

        assert "hunter" not in result.text + json.dumps(result.value)


def test_a_port_with_nobody_is_one_sentence() -> None:
    with service(silence) as port:
        pass

    with pytest.raises(TaskFailed, match=f"^nobody listens on port {port}$") as failure:
        health_of(port)

    assert failure.value.value["detail"] == "nobody listens"


def test_a_service_that_listens_on_the_other_loopback_address_only_is_asked_there() -> None:
    require(os.path.exists("/proc/net/if_inet6"), "needs IPv6")
    with (
        service(saying(answer('{"status": "ok"}')), "::1") as good,
        service(saying(answer('{"status": "down"}')), "::1") as bad,
        service(saying(b"SSH-2.0"), "::1") as odd,
    ):
        assert health_of(good).text.startswith(f"port {good} is healthy: HTTP 200")
        with pytest.raises(TaskFailed, match='not healthy: HTTP 200, status "down"'):
            health_of(bad)
        with pytest.raises(TaskFailed, match="no proper HTTP answer"):
            health_of(odd)
        survey = all_services_health(NO_PARAMS, context(settings_with(good, bad, odd), 5))

    assert survey.text.startswith("1 of 3 healthy; ")


def test_a_host_without_ipv6_has_nobody_listening_there(monkeypatch: pytest.MonkeyPatch) -> None:
    no_family = (socket.AF_INET6 + 200, "::1")
    monkeypatch.setattr(system_health, "LOOPBACKS", (system_health.LOOPBACKS[0], no_family))
    with service(silence) as port:
        pass

    with pytest.raises(TaskFailed, match=f"^nobody listens on port {port}$"):
        health_of(port)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed(status: str) -> None:
    with service(saying(answer('{"status": "ok"}'))) as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere}/health"
        with service(saying(answer("", status, location))) as port:
            with pytest.raises(TaskFailed, match=f"not healthy: HTTP {status[:3]}"):
                health_of(port)
            with requests.get(f"http://127.0.0.1:{port}/health", timeout=5) as naive:
                assert naive.json() == {"status": "ok"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "serve",
    [
        silence,
        dripping(b""),
        dripping(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_service_that_drips_or_stays_silent_costs_no_more_than_the_limit(serve: Serve) -> None:
    with (
        service(serve) as port,
        pytest.raises(TaskFailed, match=f"no whole answer in time on port {port}"),
    ):
        health_of(port, seconds=0.6)


@pytest.mark.parametrize(
    "serve",
    [
        flooding(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100),
        flooding(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nxx\r\n"),
        saying(answer(gzip.compress(bytes(64 * MEGABYTE)), "200 OK", "Content-Encoding: gzip")),
    ],
)
def test_an_endless_answer_and_a_gzip_bomb_take_no_memory(serve: Serve) -> None:
    with service(serve) as port:
        tracemalloc.start()
        with pytest.raises(TaskFailed, match=r"over 64 KiB|encoded answer"):
            health_of(port)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert peak < 8 * MEGABYTE


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        service(saying(answer('{"status": "ok"}'))) as proxy,
        service(saying(answer('{"status": "down"}'))) as port,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        with pytest.raises(TaskFailed, match='status "down"'):
            health_of(port)
        with requests.get(f"http://127.0.0.1:{port}/health", timeout=5) as naive:
            assert naive.json() == {"status": "ok"}


def test_the_request_is_plain_and_goes_to_this_machine() -> None:
    seen: list[bytes] = []

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(65_536))
                connection.sendall(answer("fine"))

        thread = threading.Thread(target=serve)
        thread.start()
        health_of(port)
        thread.join()

    lines = seen[0].decode().split("\r\n")
    assert lines[0] == "GET /health HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines
    assert "gzip" not in seen[0].decode()


@pytest.mark.parametrize("port", [5000, 5009, "5000", "5009"])
def test_a_port_is_a_number_or_its_digits(port: Any) -> None:
    params = PortParams.model_validate({"port": port}, context=settings_for(""))

    assert params.port == int(port)


def test_a_survey_counts_names_the_unhealthy_and_has_a_row_for_each_port() -> None:
    with service(silence) as gone:
        pass
    with (
        service(saying(answer('{"status": "ok"}'))) as good,
        service(saying(answer('{"status": "down\\nor so"}'))) as down,
        service(saying(answer("plain"))) as plain,
    ):
        ports = sorted([gone, good, down, plain])
        result = all_services_health(NO_PARAMS, context(settings_with(*ports), 5))

    first, empty, header, *rows = result.text.split("\n")
    said = {gone: "nobody listens", down: 'HTTP 200, status "down\\nor so"'}
    unhealthy = [f"{port}: {said[port]}" for port in ports if port in said]
    assert first == "; ".join(["2 of 4 healthy", *unhealthy])
    assert (empty, header.split()) == ("", ["PORT", "HEALTH", "DETAIL"])
    assert [int(row.split()[0]) for row in rows] == ports
    assert (result.value["healthy"], result.value["total"]) == (2, 4)
    assert [row["port"] for row in result.value["ports"]] == ports


@pytest.mark.parametrize(
    "said", ["Authorization: Digest a=1", "Cookie: a=b", "password=", "<password>"]
)
def test_what_one_service_says_hides_no_other_in_the_report(said: str) -> None:
    with service(silence) as gone:
        pass
    with service(saying(answer(json.dumps({"status": said})))) as bad:
        settings = settings_with(bad, gone)
        result = all_services_health(NO_PARAMS, context(settings, 5))

    shown = fenced(result.text, settings.secrets)

    first, *rows = [line for line in shown.split("\n") if str(gone) in line]
    assert f"{gone}: nobody listens" in first
    assert f"{bad}: HTTP 200" in first
    assert rows[0].endswith("nobody listens")


def test_a_survey_asks_all_ports_at_once() -> None:
    all_asked = threading.Barrier(3)

    def serve_once_all_are_asked(connection: socket.socket) -> None:
        all_asked.wait()
        connection.sendall(answer('{"status": "ok"}'))

    with (
        service(serve_once_all_are_asked) as one,
        service(serve_once_all_are_asked) as two,
        service(serve_once_all_are_asked) as three,
    ):
        result = all_services_health(NO_PARAMS, context(settings_with(one, two, three)))

    assert result.text.splitlines()[0] == "3 of 3 healthy"


def test_a_survey_of_silent_services_ends_in_time() -> None:
    with service(silence) as one, service(dripping(b"")) as two, service(silence) as three:
        result = all_services_health(NO_PARAMS, context(settings_with(one, two, three), 0.8))

    assert result.text.startswith("0 of 3 healthy; ")
    assert [row["detail"] for row in result.value["ports"]] == ["no whole answer in time"] * 3


def test_disk_space_is_what_df_says() -> None:
    result = disk_space(NO_PARAMS, context(settings_for("")))

    assert result.text.splitlines()[0].split()[0] == "Filesystem"
    assert result.value["mounted_on"] == "/"
    assert 0 <= result.value["use_percent"] <= 100


def test_memory_usage_is_in_numbers_too() -> None:
    result = memory_usage(NO_PARAMS, context(settings_for("")))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEGABYTE

    assert result.text.split()[0] == "total"
    assert abs(result.value["mem"]["total"] - total) <= 1
    assert "free" in result.value["swap"]


def test_process_list_is_ten_by_memory_and_shows_no_arguments(tmp_path: Path) -> None:
    hog = tmp_path / "hog\n1 name"
    hog.symlink_to("/usr/bin/python3")
    ready = tmp_path / "ready"
    code = f"x = bytearray({300 * MEGABYTE}); open({str(ready)!r}, 'w'); input()"
    with running([str(hog), "-c", code, "--password=hunter2"], ready):
        result = process_list(NO_PARAMS, context(settings_for("")))
        naive = checked_output(["/usr/bin/ps", "-eo", "pid,args"], context(settings_for("")))

    assert len(result.text.split("\n")) == 11
    sizes = [row["rss_kib"] for row in result.value]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 10
    assert any(row["command"].startswith("hog") for row in result.value)
    assert "hunter2" not in result.text + json.dumps(result.value)
    assert "hunter2" in naive


def test_a_process_without_a_name_is_listed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    nameless = "import ctypes; ctypes.CDLL(None).prctl(15, b'')"  # PR_SET_NAME
    code = f"{nameless}; x = bytearray({300 * MEGABYTE}); open({str(ready)!r}, 'w'); input()"
    with running([sys.executable, "-c", code], ready):
        result = process_list(NO_PARAMS, context(settings_for("")))

    assert "" in [row["command"] for row in result.value]


@contextmanager
def running(command: list[str], ready: Path) -> Iterator[None]:
    """Run a command that reads its input until the end of the block, once it has made the file."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        wait_for(ready.exists)
        yield
    finally:
        process.communicate(b"\n")

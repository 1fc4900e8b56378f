"""The log tasks: the newest lines, of both streams, whatever the size and whatever lies there."""

from __future__ import annotations

import json
import os
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError
from support.docker_engine import (
    Engine,
    RunContainer,
    context,
    pretended_engine,
    settings_for,
    wait_for,
)
from support.pretended_systemd import ACTIVE, PretendSystemd

from catalyst_heartbeat.host import containers
from catalyst_heartbeat.outcome import Result, TaskFailed
from catalyst_heartbeat.tasks.logs import (
    LogFileParams,
    LogServiceParams,
    UnitParams,
    catalyst_logs,
    docker_logs,
    system_logs,
)

MEGABYTE = 1024 * 1024
GIGABYTE = 1024 * MEGABYTE
SECRET = "hunter2-of-the-logs"


@contextmanager
def flat_memory(limit: int = 8 * MEGABYTE) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@contextmanager
def little_read(limit: int = 8 * MEGABYTE) -> Iterator[None]:
    """Count the bytes that this process reads."""
    before = bytes_read()
    yield
    assert bytes_read() - before < limit


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def logs_of_trading(engine: Engine, **params: Any) -> Result:
    settings = settings_for(engine, DB_PASSWORD=SECRET)
    asked = {"service": "trading", **params}
    return docker_logs(LogServiceParams.model_validate(asked, context=settings), context(settings))


def read_log(folder: Path, name: str, **params: Any) -> Result:
    return catalyst_logs(
        LogFileParams(logfile=name, **params), context(settings_for("", LOG_DIR=str(folder)))
    )


def read_unit(unit: str = "docker", **params: Any) -> Result:
    settings = settings_for("", SYSTEM_UNITS="docker,ssh,gone,getty@", DB_PASSWORD=SECRET)
    asked = UnitParams.model_validate({"service": unit, **params}, context=settings)
    return system_logs(asked, context(settings))


def ended(engine: Engine, container: str) -> bool:
    return bool(engine.state(container)["Status"] == "exited")


def test_docker_logs_are_the_newest_lines_of_both_streams(
    engine: Engine, run_container: RunContainer
) -> None:
    script = "for i in $(seq 100); do echo out $i; echo err $i >&2; sleep 0.002; done"
    id = run_container("catalyst-trading", script)
    wait_for(lambda: ended(engine, id))

    result = logs_of_trading(engine)
    lines = result.text.splitlines()

    assert len(lines) == 50
    assert [line for line in lines if line.startswith("out")][-1] == "out 100"
    assert [line for line in lines if line.startswith("err")][-1] == "err 100"
    assert not {"out 1", "err 1"} & set(lines)
    assert result.value == {"service": "trading", "container": "catalyst-trading", "lines": lines}


@pytest.mark.parametrize("options", [[], ["--tty"]])
def test_docker_logs_keep_escapes_and_fences_within_their_line(
    engine: Engine, run_container: RunContainer, options: list[str]
) -> None:
    script = r"printf 'a\033[2J\007```\nTASK: write_file\n\377\376\nend'"
    id = run_container("catalyst-trading", script, *options)
    wait_for(lambda: ended(engine, id))

    lines = logs_of_trading(engine).text.split("\n")

    assert lines == ["a\x1b[2J\x07```", "TASK: write_file", "\ufffd\ufffd", "end"]


def test_a_container_that_wrote_nothing_says_so(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-trading")

    result = logs_of_trading(engine)

    assert result.text == "catalyst-trading has written nothing"
    assert result.value["lines"] == []


def test_docker_logs_of_a_huge_line_take_little_memory_and_are_its_newest_bytes(
    engine: Engine, run_container: RunContainer
) -> None:
    script = f"yes x | tr -d '\\n' | head -c {64 * MEGABYTE}; echo; echo newest"
    id = run_container("catalyst-trading", script)
    wait_for(lambda: ended(engine, id))

    # First, so that what the SDK is imported for is not counted.
    with containers.connect(settings_for(engine), 60) as api:
        naive = api.logs(id)
    with flat_memory():
        result = logs_of_trading(engine)

    assert result.text.endswith("x\nnewest")
    assert result.text.startswith("... x")
    assert len(result.text) < MEGABYTE
    assert len(naive) > 64 * MEGABYTE


def test_a_log_file_is_answered_with_its_last_hundred_lines(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("".join(f"line {number}\n" for number in range(250)))

    result = read_log(tmp_path, "app")

    assert result.text.split("\n") == [f"line {number}" for number in range(150, 250)]
    assert result.value == {"logfile": "app", "lines": result.text.split("\n")}


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"\n\n", ["", ""]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\xff\x00\n\x1b[1m\n", ["\ufffd\x00", "\x1b[1m"]),
        (b"x\n" * 100, ["x"] * 100),
        (b"x\n" * 101 + b"y", ["x"] * 99 + ["y"]),
        (b"x" * 65_536 + b"\n" + b"y" * 65_535 + b"\n", ["x" * 65_536, "y" * 65_535]),
        ("é".encode() * 65_537 + b"\nz\n", ["é" * 65_537, "z"]),
    ],
)
def test_the_last_lines_are_right_at_every_edge(
    tmp_path: Path, content: bytes, lines: list[str]
) -> None:
    (tmp_path / "edge.log").write_bytes(content)

    assert read_log(tmp_path, "edge").value["lines"] == lines


def test_a_log_of_ten_gigabytes_costs_nothing(tmp_path: Path) -> None:
    with (tmp_path / "huge.log").open("wb") as file:
        file.seek(10 * GIGABYTE)
        file.write(b"\n" + b"".join(b"line %d\n" % number for number in range(100)))

    with flat_memory(), little_read():
        lines = read_log(tmp_path, "huge").value["lines"]

    assert lines == [f"line {number}" for number in range(100)]


def test_a_log_that_is_one_endless_line_is_cut_at_a_megabyte(tmp_path: Path) -> None:
    with (tmp_path / "endless.log").open("wb") as file:
        file.truncate(10 * GIGABYTE)

    with flat_memory(), little_read():
        (line,) = read_log(tmp_path, "endless").value["lines"]

    assert line.startswith("... \0")
    assert len(line) < 2 * MEGABYTE


@pytest.mark.slow
def test_a_secret_across_the_cut_of_an_endless_line_is_gone(tmp_path: Path) -> None:
    secret = "hunter2-" * 4
    settings = settings_for("", LOG_DIR=str(tmp_path), DB_PASSWORD=secret)
    # Where the line is cut within the secret; 4096 characters behind that it is cut again.
    for offset in (0, 8, 16, len(secret), -4096 + 8, -4096 + 16):
        end = "x" * (MEGABYTE - len(secret) + offset)
        (tmp_path / "endless.log").write_text("x" * MEGABYTE + secret + end)

        result = catalyst_logs(LogFileParams(logfile="endless"), context(settings))

        assert "hunter2" not in result.text


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        ("AKIAIOSFODNN7EXAMPLE\naB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7b\n", "aB3dE5fG"),
        ("machine h\n login bot\n password swordfish9\n", "swordfish9"),
        ("ALTER ROLE bot PASSWORD\n 'swordfish9';\n", "swordfish9"),
        ("Authorization:\n Basic Ym90OnN3b3JkZmlzaDk=\n", "Ym90OnN3b3JkZmlzaDk"),
        ("-----BEGIN PRIVATE KEY-----\n" + "aB3dE5fG7hI91000\n" * 70, "aB3dE5fG7hI9"),
    ],
)
@pytest.mark.parametrize("before", ["", "head\n", "x" * 65_400 + "\n"])
def test_a_log_hides_a_secret_whose_name_stands_above_what_was_asked_for(
    content: str, secret: str, before: str, tmp_path: Path
) -> None:
    (tmp_path / "app.log").write_text(before + content)

    for lines in (1, 2, 50):
        result = read_log(tmp_path, "app", lines=lines)
        assert secret not in json.dumps(result.value)


def test_an_unknown_log_is_answered_with_the_names_there_are(tmp_path: Path) -> None:
    for name in ("heartbeat.log", "agent.log", "notes.txt", "evil\nname.log", ".hidden.log"):
        (tmp_path / name).touch()

    with pytest.raises(TaskFailed, match=r"/app.log does not exist; there are: agent, heartbeat$"):
        read_log(tmp_path, "app")


def test_of_very_many_logs_thirty_are_named(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}.log").touch()

    with pytest.raises(TaskFailed, match=r"0028, 0029 and 970 more$"):
        read_log(tmp_path, "app")


def test_a_missing_log_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match=r"there are: none \(No such file or directory\)$"):
        read_log(tmp_path / "nowhere", "app")


def make_symbolic_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def make_hard_link(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


def make_fifo(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path, secret: Path) -> None:
    path.mkdir()


def make_socket(path: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_looping_link(path: Path, secret: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    "make",
    [make_symbolic_link, make_hard_link, make_fifo, make_folder, make_socket, make_looping_link],
)
def test_only_a_regular_file_with_one_link_is_read(tmp_path: Path, make: Any) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    make(logs / "app.log", secret)

    with pytest.raises(TaskFailed, match="refused: ") as failure:
        read_log(logs, "app")

    assert "the secret" not in failure.value.output
    if make in (make_symbolic_link, make_hard_link):
        assert (logs / "app.log").read_text() == "the secret"  # plain opening gives it away


def test_a_log_folder_that_became_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "app.log").write_text("the secret")
    (tmp_path / "logs").symlink_to(elsewhere)

    with pytest.raises(TaskFailed, match="refused: "):
        read_log(tmp_path / "logs", "app")

    assert (tmp_path / "logs/app.log").read_text() == "the secret"


def test_docker_logs_show_as_many_lines_as_were_asked_for(
    engine: Engine, run_container: RunContainer
) -> None:
    id = run_container("catalyst-trading", "for i in $(seq 600); do echo line $i; done")
    wait_for(lambda: ended(engine, id))

    for count in (1, 500):
        lines = logs_of_trading(engine, lines=count).value["lines"]
        assert lines == [f"line {number}" for number in range(601 - count, 601)]


def test_docker_logs_that_contain_a_text_are_searched_further_back_and_counted(
    engine: Engine, run_container: RunContainer
) -> None:
    script = "echo 'a.b $(id)'; for i in $(seq 300); do echo axb $i; done; echo 'a.b $(id)'"
    id = run_container("catalyst-trading", script)
    wait_for(lambda: ended(engine, id))

    result = logs_of_trading(engine, contains="a.b $(id)")

    assert result.text.split("\n") == ["302 lines looked at, 2 matched", "", *["a.b $(id)"] * 2]
    assert result.value == {
        "service": "trading",
        "container": "catalyst-trading",
        "looked_at": 302,
        "matched": 2,
        "lines": ["a.b $(id)"] * 2,
    }


def test_docker_logs_since_some_minutes_are_those_of_the_engine(
    engine: Engine, run_container: RunContainer
) -> None:
    id = run_container("catalyst-trading", "echo now")
    wait_for(lambda: ended(engine, id))

    assert logs_of_trading(engine, since_minutes=10_080).value["lines"] == ["now"]


def test_docker_logs_ask_the_engine_itself_for_tail_and_since(tmp_path: Path) -> None:
    id = "1" * 64
    answers: dict[str, Any] = {
        "/containers/json": [{"Id": id, "Names": ["/trading"]}],
        "/logs": b"one\ntwo\n",
        f"/{id}/json": {"Name": "/trading", "State": {}, "Config": {"Tty": True}},
    }
    before = int(time.time())
    asked: list[str] = []

    with pretended_engine(tmp_path, answers, asked) as host:
        params = {"service": "trading", "lines": 7, "since_minutes": 90}
        settings = settings_for(host)
        result = docker_logs(
            LogServiceParams.model_validate(params, context=settings), context(settings)
        )

    (query,) = [parse_qs(urlsplit(path).query) for path in asked if "/logs?" in path]
    assert query["tail"] == ["107"]  # of which the first may be half a line
    assert 0 <= int(query["since"][0]) - (before - 90 * 60) <= 60
    assert result.value["lines"] == ["one", "two"]


@pytest.mark.parametrize("length", [16_384 * 2 - 12, 16_384 * 2 - 5])
def test_a_secret_across_the_parts_that_the_engine_makes_of_a_long_line_is_gone(
    engine: Engine, run_container: RunContainer, length: int
) -> None:
    endless = f"yes x | tr -d '\\n' | head -c {length}"
    script = f"{endless}; echo {SECRET}-more; {endless}; echo; echo last"
    id = run_container("catalyst-trading", script)
    wait_for(lambda: ended(engine, id))

    for count in range(1, 8):
        text = logs_of_trading(engine, lines=count).text
        assert text.endswith("last")
        assert not any(part in text for part in ("hunter", "of-the", "logs"))


def test_a_log_file_that_is_searched_is_read_back_to_the_cap(tmp_path: Path) -> None:
    with (tmp_path / "app.log").open("w") as file:
        for number in range(60_000):
            file.write(f"line {number:06} {'ERROR' if number % 1000 == 0 else 'fine'}\n")

    result = read_log(tmp_path, "app", contains="ERROR", lines=3)

    first, _, *lines = result.text.split("\n")
    assert first == "10,000 lines looked at, 10 matched, the newest 3 of them:"
    assert lines == [f"line 0{number}000 ERROR" for number in (57, 58, 59)]
    assert result.value["matched"] == 10
    assert result.value["lines"] == lines


def test_a_text_that_is_nowhere_is_said_to_have_matched_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\ntwo\n")

    assert read_log(tmp_path, "app", contains="Two").text == "2 lines looked at, 0 matched"


@pytest.mark.parametrize(
    "text", ["-x", "--help", "@file", ".*", "%s", "{0}", "\\", "a'b\"c", "`id`", "é\u202e"]
)
def test_a_text_is_taken_literally(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.log").write_text(f"one\n<{text}>\nthree\n")

    assert read_log(tmp_path, "app", contains=text).value["lines"] == [f"<{text}>"]


def test_a_text_finds_no_secret(tmp_path: Path) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n"
    (tmp_path / "app.log").write_text(f"pw {SECRET}\n{key}-----END PRIVATE KEY-----\n")
    settings = settings_for("", LOG_DIR=str(tmp_path), DB_PASSWORD=SECRET)

    for part in (SECRET, SECRET[:7], SECRET[7:], "hunter2", "MIIEvQ"):
        params = LogFileParams(logfile="app", contains=part)
        assert catalyst_logs(params, context(settings)).value["matched"] == 0


@pytest.mark.parametrize("contains", ["", "a\nb", "a\n", "a\rb", "a\0", "x" * 201, 5, True, ["a"]])
def test_a_text_to_look_for_is_one_short_line(contains: Any) -> None:
    with pytest.raises(ValidationError, match="contains"):
        LogFileParams(logfile="app", contains=contains)


def test_a_journal_is_asked_with_fixed_options_and_searched_here(
    pretend_systemd: PretendSystemd,
) -> None:
    own = "printf 'one\\nneedle $(id)\\n'"
    folder = pretend_systemd(docker=ACTIVE, own=own)

    plain = read_unit()
    result = read_unit(contains="needle $(id)", since_minutes=5, lines=2)

    assert plain.value == {"unit": "docker", "lines": ["one", "needle $(id)"]}
    assert result.text == "2 lines looked at, 1 matched\n\nneedle $(id)"
    assert (folder / "asked").read_text().splitlines() == [
        "--quiet --no-pager -u docker -n 150",
        "--quiet --no-pager -u docker -n 10100 --since=-5min",
    ]


def test_a_unit_with_a_journal_of_its_own_is_looked_for_there(
    pretend_systemd: PretendSystemd,
) -> None:
    own = ACTIVE.replace("LogNamespace=", "LogNamespace=apart")
    folder = pretend_systemd(docker=own, own="echo one")

    read_unit()

    assert (folder / "asked").read_text().split()[-1] == "--namespace=apart"


@pytest.mark.parametrize("unit", ["gone", "getty@"])
def test_a_unit_that_does_not_exist_is_a_failure_with_the_units_there_are(
    pretend_systemd: PretendSystemd, unit: str
) -> None:
    masked = ACTIVE.replace("loaded", "masked")
    pretend_systemd(docker=ACTIVE, ssh=masked, **{"getty@": ACTIVE})

    with pytest.raises(TaskFailed, match=rf'^no unit "{unit}" .* there are: docker, ssh$'):
        read_unit(unit)


def test_a_unit_without_entries_is_told_from_a_journal_that_is_off(
    pretend_systemd: PretendSystemd,
) -> None:
    pretend_systemd(docker=ACTIVE)

    result = read_unit(since_minutes=5)

    assert result.text == "the journal is on and has nothing of docker in the last 5 minutes"
    assert result.value["lines"] == []


@pytest.mark.parametrize(
    ("own", "boot", "journald", "fault"),
    [
        ("true", "echo '-- No entries --'", ACTIVE, "the journal is off"),
        ("true", "echo 'No journal files were found.' >&2", ACTIVE, "the journal is off"),
        ("true", "echo boot", ACTIVE.replace("=active", "=inactive"), "the journal is off"),
        (
            "echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1",
            "echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1",
            ACTIVE,
            "this user may not read",
        ),
        (
            "true",
            "echo 'Hint: You are currently not seeing messages from other users.' >&2; echo own",
            ACTIVE,
            "this user may not read",
        ),
    ],
)
def test_a_journal_that_is_off_or_closed_is_a_failure_that_says_so(
    pretend_systemd: PretendSystemd, own: str, boot: str, journald: str, fault: str
) -> None:
    pretend_systemd(docker=ACTIVE, own=own, boot=boot, **{"systemd-journald": journald})

    with pytest.raises(TaskFailed, match=f"^{fault}"):
        read_unit()


def test_a_huge_journal_is_its_newest_whole_lines(pretend_systemd: PretendSystemd) -> None:
    line = f"{SECRET}-and-more"
    pretend_systemd(docker=ACTIVE, own=f"yes '{line}' | head -n {3 * MEGABYTE // len(line)}")

    with flat_memory(24 * MEGABYTE):
        lines = read_unit(contains="and-more", lines=500).value["lines"]

    assert lines == ["[redacted]-and-more"] * 500


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")
def test_system_logs_without_systemd_are_one_sentence() -> None:
    params = UnitParams.model_validate({"service": "docker"}, context=settings_for(""))

    with pytest.raises(TaskFailed, match=r"^systemd is not running on this machine"):
        system_logs(params, context(settings_for("")))

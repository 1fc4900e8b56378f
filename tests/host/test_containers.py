"""tasks/containers.py and docker_ps: names, ids, hostile answers, an engine that is not there."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.docker_engine import (
    Engine,
    RunContainer,
    alarm,
    context,
    pretended_engine,
    settings_for,
    silent_engine,
)
from support.postgres import require

from catalyst_heartbeat.host import containers
from catalyst_heartbeat.outcome import LimitReached, TaskFailed
from catalyst_heartbeat.tasks.base import NoParams
from catalyst_heartbeat.tasks.system_health import docker_ps

TABLE = "table {{.Names}}\t{{.Status}}\t{{.Ports}}"
NO_PARAMS = NoParams()


def listed(name: str, **fields: Any) -> dict[str, Any]:
    """Return a container as the engine lists it."""
    return {
        "Id": name.encode().hex().ljust(64, "0")[:64],
        "Names": [f"/{name}"],
        "Image": "image",
        "Command": "run",
        "Created": 1_700_000_000,
        "State": "running",
        "Status": "Up 2 hours",
        "Ports": [],
        "Labels": {},
        "Mounts": [],
        "NetworkSettings": {"Networks": {}},
        **fields,
    }


def command_line_ps(host: str) -> str:
    require(shutil.which("docker"), "needs the docker command")
    command = ["docker", "--host", host, "ps", "--format", TABLE]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Blanks at a line's end are nothing that anybody sees.
    return "".join(f"{line.rstrip()}\n" for line in shown.splitlines())


def test_docker_ps_prints_what_the_command_line_prints(
    engine: Engine, run_container: RunContainer
) -> None:
    ids = [run_container("catalyst-trading"), run_container("db")]
    run_container("catalyst-stopped", "exit 3")
    run_container("catalyst-risk-manager-with-a-long-name")

    before = command_line_ps(engine.host)
    result = docker_ps(NO_PARAMS, context(settings_for(engine)))
    after = command_line_ps(engine.host)

    assert result.text + "\n" in (before, after)
    rows = {row["name"]: row for row in result.value}
    assert rows["catalyst-trading"]["id"] == ids[0]
    assert rows["db"]["status"].startswith("Up ")
    assert "catalyst-stopped" not in rows


def test_docker_ps_without_containers_is_the_header_and_an_empty_list(tmp_path: Path) -> None:
    with pretended_engine(tmp_path, {"/containers/json": []}) as host:
        result = docker_ps(NO_PARAMS, context(settings_for(host)))

        assert result.text + "\n" == command_line_ps(host)
    assert result.value == []


def test_ports_are_grouped_as_the_command_line_groups_them(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - a repeatable sample, no secret
    live = [
        listed(f"c{number}", Ports=[random_port(chance) for _ in range(chance.randrange(9))])
        for number in range(200)
    ]

    with pretended_engine(tmp_path, {"/containers/json": live}) as host:
        ours = docker_ps(NO_PARAMS, context(settings_for(host)))
        theirs = command_line_ps(host)

    assert ours.text.split("\n") == theirs.rstrip("\n").split("\n")


def random_port(chance: random.Random) -> dict[str, Any]:
    private = chance.randrange(80, 86)
    port = {"PrivatePort": private, "Type": chance.choice(["tcp", "tcp", "udp"])}
    if chance.random() < 0.7:
        port["IP"] = chance.choice(["0.0.0.0", "127.0.0.1"])
        port["PublicPort"] = chance.choice([private, private, private + 1000])
    return port


def test_an_ipv6_address_stands_in_brackets() -> None:
    ports = [
        {"IP": "::", "PrivatePort": port, "PublicPort": port, "Type": "tcp"} for port in (80, 81)
    ]

    assert containers.shown_ports(ports) == "[::]:80-81->80-81/tcp"


def test_a_hostile_name_or_status_adds_no_line_to_the_table(tmp_path: Path) -> None:
    evil = "web\n\x1b[2J\u2028trading   Up\x85\r\x0b"
    live = [listed(evil, Status=f"Up {evil}", Image=evil), listed("b", Names=None, Ports=None)]

    with pretended_engine(tmp_path, {"/containers/json": live}) as host:
        result = docker_ps(NO_PARAMS, context(settings_for(host)))
    naive = "\n".join(container["Names"][0] for container in live if container["Names"])

    assert len(result.text.splitlines()) == 3
    assert len(naive.splitlines()) > 1


def test_thousands_of_containers_are_one_call_and_one_row_each(tmp_path: Path) -> None:
    live = [listed(f"c{number}") for number in range(5000)]

    with pretended_engine(tmp_path, {"/containers/json": live}) as host:
        result = docker_ps(NO_PARAMS, context(settings_for(host)))

    assert len(result.value) == 5000


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trading", []),
        ("catalyst-trading", []),
        ("shop_trading_1", ["--label", "com.docker.compose.service=trading"]),
    ],
)
@pytest.mark.parametrize("script", ["exec sleep 1000", "exit 1"])
def test_a_service_is_its_name_or_prefixed_name_or_label_running_or_not(
    engine: Engine, run_container: RunContainer, name: str, options: list[str], script: str
) -> None:
    id = run_container(name, script, *options)
    settings = settings_for(engine)

    with containers.connect(settings, 10) as api:
        found = containers.resolve(api, "trading", settings)

    assert found == (id, name)


def test_a_leftover_of_docker_compose_run_is_not_the_service(
    engine: Engine, run_container: RunContainer
) -> None:
    label = "com.docker.compose.service=trading"
    service = run_container("shop_trading_1", "exec sleep 1000", "--label", label)
    one_off = ["--label", "com.docker.compose.oneoff=True"]
    run_container("shop_trading_run_1", "exit 0", "--label", label, *one_off)
    settings = settings_for(engine)

    with containers.connect(settings, 10) as api:
        found = containers.resolve(api, "trading", settings)

    assert found.id == service


@pytest.mark.parametrize("state", ["removing", "dead"])
def test_a_container_on_its_way_out_is_not_the_service(tmp_path: Path, state: str) -> None:
    going, service = listed("catalyst-trading", State=state), listed("trading")

    with pretended_engine(tmp_path, {"/containers/json": [going, service]}) as host:
        settings = settings_for(host)
        with containers.connect(settings, 10) as api:
            found = containers.resolve(api, "trading", settings)

    assert found.id == service["Id"]


def test_two_containers_that_match_one_service_are_named_and_refused(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-trading")
    run_container("other", "exit 0", "--label", "com.docker.compose.service=trading")
    settings = settings_for(engine)

    with (
        containers.connect(settings, 10) as api,
        pytest.raises(TaskFailed, match='2 containers match service "trading"') as failure,
    ):
        containers.resolve(api, "trading", settings)

    assert "catalyst-trading (" in str(failure.value)
    assert "other (" in str(failure.value)


def test_a_name_that_only_resembles_matches_nothing_and_the_known_ones_are_named(
    engine: Engine, run_container: RunContainer
) -> None:
    id = run_container("catalyst-trading")
    run_container("trading2", "exit 0", "--label", "com.docker.compose.service=Trading")
    settings = settings_for(engine)
    names = [
        "TRADING",
        "tradin",
        "/trading",
        "trading\n",
        "../images/x",
        "x/../catalyst-trading",
        "catalyst-",
        id,
        id[:12],
        "",
    ]

    with containers.connect(settings, 10) as api:
        for name in names:
            with pytest.raises(TaskFailed, match=r"(?s)no container .* known: .*catalyst-trading"):
                containers.resolve(api, name, settings)
        # The engine itself takes an id's beginning, and a path that leads elsewhere, for a name.
        for name in (id[:12], "x/../catalyst-trading"):
            assert api.inspect_container(name)["Id"] == id


def test_a_container_renamed_meanwhile_is_not_taken_for_the_service(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-trading")
    settings = settings_for(engine)

    with containers.connect(settings, 10) as api:
        found = containers.resolve(api, "trading", settings)
        engine.docker("rename", "catalyst-trading", "retired")

        with pytest.raises(TaskFailed, match="was renamed to retired meanwhile"):
            containers.inspect(api, found)


def test_a_container_recreated_meanwhile_is_left_alone(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-trading")
    settings = settings_for(engine)

    with containers.connect(settings, 10) as api:
        found = containers.resolve(api, "trading", settings)
        engine.docker("rm", "--force", "catalyst-trading")
        new = run_container("catalyst-trading")
        started = engine.state(new)["StartedAt"]

        with pytest.raises(TaskFailed, match="gone: removed or recreated meanwhile"):
            containers.restart(api, found, 1)
        with pytest.raises(TaskFailed, match="gone: removed or recreated meanwhile"):
            containers.inspect(api, found)
        assert engine.state(new)["StartedAt"] == started
        api.restart("catalyst-trading", timeout=0)  # by name, the new one would have been hit

    assert engine.state(new)["StartedAt"] != started


@pytest.mark.parametrize(
    "host",
    ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "unix:///etc/passwd"],
)
def test_an_engine_that_cannot_be_reached_is_one_sentence(host: str) -> None:
    with pytest.raises(TaskFailed) as failure:
        docker_ps(NO_PARAMS, context(settings_for(host)))

    message = str(failure.value)
    assert message.startswith(f"Docker is not reachable at {host}: ")
    assert message.endswith("; is the engine running?")
    assert len(message.splitlines()) == 1
    assert len(message) < 200


def test_an_engine_that_refuses_is_quoted_in_one_sentence(tmp_path: Path) -> None:
    answers = {"/containers/json": (500, {"message": "no\nspace"})}

    with (
        pretended_engine(tmp_path, answers) as host,
        pytest.raises(TaskFailed, match="Docker refused: no space"),
    ):
        docker_ps(NO_PARAMS, context(settings_for(host)))


def test_an_engine_that_accepts_and_stays_silent_costs_no_more_than_the_limit(
    tmp_path: Path,
) -> None:
    with silent_engine(tmp_path) as host, pytest.raises(LimitReached), alarm(0.5):
        docker_ps(NO_PARAMS, context(settings_for(host), seconds=600))


def test_an_engine_that_stays_silent_is_given_up_without_an_alarm_too(tmp_path: Path) -> None:
    with silent_engine(tmp_path) as host, pytest.raises(TaskFailed, match="timed out"):
        docker_ps(NO_PARAMS, context(settings_for(host), seconds=0.5))

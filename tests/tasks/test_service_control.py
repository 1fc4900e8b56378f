"""Service Control on a real engine: a restart is a success only if the service stays up."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.docker_engine import (
    IMAGE,
    Engine,
    RunContainer,
    alarm,
    context,
    settings_for,
    silent_engine,
    wait_for,
)
from support.pretended_systemd import ACTIVE, PretendSystemd

from catalyst_heartbeat.host import restarts
from catalyst_heartbeat.outcome import Outcome, Result, TaskFailed
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import NoParams
from catalyst_heartbeat.tasks.service_control import (
    TradingServiceParams,
    investigate_all_services,
    investigate_dashboard,
    investigate_service,
    restart_all_services,
    restart_dashboard,
    restart_service,
)

NO_PARAMS = NoParams()
TRADING = TradingServiceParams.model_validate({"service": "trading"}, context=settings_for(""))
ONCE = "test -e /tmp/again && {again}; touch /tmp/again; exec sleep 1000"
HEEDS_TERM = "--stop-signal=TERM"
IGNORES_TERM = "trap '' TERM; while :; do sleep 1; done"
CLOSES_ITS_BOOK = (
    "trap 'sleep {needs}; echo closed; exit 0' TERM; echo open; while :; do sleep 0.1; done"
)
CHECK_EACH_SECOND = ["--health-interval=1s", "--health-retries=1", "--health-timeout=2s"]
NO_SYSTEMD = pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")


def restart_trading(engine: Engine | str, seconds: float = 60) -> Result:
    return restart_service(TRADING, context(settings_for(engine), seconds))


def look_into_trading(engine: Engine | str, claimed_at: float) -> Outcome | None:
    return investigate_service(TRADING, context(settings_for(engine)), claimed_at)


def signals_sent(engine: Engine, container: str) -> list[int]:
    """Return the signals that the engine's book says a container was sent."""
    chosen = (f"--filter=container={container}", "--filter=event=kill", "--since=0", "--until=0s")
    sent = engine.docker("events", *chosen, "--format={{.Actor.Attributes.signal}}")
    return [int(number) for number in sent.split()]


def settings_with(engine: Engine, *services: str) -> Settings:
    return settings_for(engine, TRADING_SERVICES=",".join(services))


def test_a_restart_reports_the_container_before_and_after(
    engine: Engine, run_container: RunContainer
) -> None:
    id = run_container("catalyst-trading", ONCE.format(again="true"))
    before = engine.state(id)["StartedAt"]

    result = restart_trading(engine)

    after = engine.state(id)["StartedAt"]
    assert after != before
    assert result.value == {
        "service": "trading",
        "container": "catalyst-trading",
        "id": id,
        "started_before": before,
        "started_after": after,
        "restart_count": 0,
        "health": None,
        "killed": False,
        "error": None,
    }
    first, *seen = result.text.splitlines()
    assert first == "trading (catalyst-trading): restarted and stays up"
    assert before in seen[0]
    assert after in seen[1]


def test_a_stopped_container_is_started(engine: Engine, run_container: RunContainer) -> None:
    id = run_container("trading", f"test -e /tmp/again || exit 0; {IGNORES_TERM}", command="create")

    with pytest.raises(TaskFailed, match="did not stay up"):
        restart_trading(engine)
    assert engine.state(id)["Status"] == "exited"
    engine.docker("rm", id)
    run_container("trading", command="create")

    assert "before: created" in restart_trading(engine).text


@pytest.mark.parametrize(
    ("again", "options", "error"),
    [
        ("exit 3", [], "did not stay up: exited, exit code 3"),
        (
            "{ sleep 1; echo out of memory; exit 137; }",
            [],
            "did not stay up: exited, exit code 137",
        ),
        ("{ sleep 1; exit 1; }", ["--restart=always"], "restarted again by itself|did not stay up"),
    ],
)
def test_a_container_that_dies_after_its_restart_is_a_failure_with_what_was_seen(
    engine: Engine, run_container: RunContainer, again: str, options: list[str], error: str
) -> None:
    id = run_container("catalyst-trading", ONCE.format(again=again), *options)

    with pytest.raises(TaskFailed, match=error) as failure:
        restart_trading(engine)

    assert "before: up, started" in failure.value.output
    assert ("out of memory" in failure.value.output) == ("out of memory" in again)
    assert failure.value.value["error"]
    engine.docker("restart", "--time=0", id)  # the engine itself calls the same restart a success


@pytest.mark.parametrize(
    ("stop_timeout", "needs", "killed"), [(3, 1, False), (1, 3, True), (0, 1, True)]
)
def test_a_container_has_its_own_stop_timeout_and_is_said_to_have_been_killed_after_it(
    engine: Engine, run_container: RunContainer, stop_timeout: int, needs: int, killed: bool
) -> None:
    script = CLOSES_ITS_BOOK.format(needs=needs)
    id = run_container("catalyst-trading", script, HEEDS_TERM, f"--stop-timeout={stop_timeout}")
    wait_for(lambda: "open" in engine.docker("logs", id))

    result = restart_trading(engine)

    assert ("closed" in engine.docker("logs", id)) != killed
    assert result.value["killed"] == killed
    assert (signal.SIGKILL in signals_sent(engine, id)) == killed
    sentence = f"had to be killed after its stop timeout of {stop_timeout} s; restarted and stays"
    assert (sentence in result.text.splitlines()[0]) == killed


def test_a_container_that_was_killed_and_does_not_come_up_is_said_to_be_both(
    engine: Engine, run_container: RunContainer
) -> None:
    script = f"test -e /tmp/again && exit 3; touch /tmp/again; {IGNORES_TERM}"
    id = run_container("catalyst-trading", script, HEEDS_TERM, "--stop-timeout=1")
    wait_for(lambda: engine.state(id)["Running"])

    with pytest.raises(TaskFailed, match="killed after its stop timeout of 1 s; did not stay up"):
        restart_trading(engine)


@pytest.mark.parametrize(
    ("stop_timeout", "shown"), [("90", "90 s"), ("51", "51 s"), ("-1", "for ever")]
)
def test_a_stop_timeout_that_does_not_fit_the_task_is_refused_untouched(
    engine: Engine, run_container: RunContainer, stop_timeout: str, shown: str
) -> None:
    id = run_container("catalyst-trading", IGNORES_TERM, f"--stop-timeout={stop_timeout}")
    before = engine.state(id)

    with pytest.raises(TaskFailed, match=r"^nothing was touched") as failure:
        restart_trading(engine)

    assert f"catalyst-trading {shown}" in str(failure.value)
    assert "60 s" in str(failure.value)
    assert "at most 50 s" in str(failure.value)
    assert engine.state(id) == before


def test_all_services_are_refused_where_they_may_need_longer_in_all_than_the_task_has(
    engine: Engine, run_container: RunContainer
) -> None:
    names = ("one", "two", "three")
    ids = [run_container(name, IGNORES_TERM, "--stop-timeout=40") for name in names]
    settings = settings_with(engine, *names, "missing")
    before = [engine.state(id) for id in ids]

    with pytest.raises(TaskFailed, match=r"one 40 s, two 40 s, three 40 s.* 120 s.* 110 s in all"):
        restart_all_services(NO_PARAMS, context(settings, 120))

    assert [engine.state(id) for id in ids] == before
    engine.docker("kill", ids[0])  # what does not run needs no time to stop
    with pytest.raises(TaskFailed, match=r"^1 of 4 services failed: missing$"):
        restart_all_services(NO_PARAMS, context(settings, 120))


def test_a_restart_waits_until_the_health_check_says_healthy(
    engine: Engine, run_container: RunContainer
) -> None:
    check = "--health-cmd=test $(date +%s) -gt $(cat /tmp/at)"
    script = "echo $(($(date +%s) + 4)) > /tmp/at; exec sleep 1000"
    run_container("catalyst-trading", script, check, *CHECK_EACH_SECOND, "--health-retries=60")

    result = restart_trading(engine)

    assert result.value["health"] == "healthy"
    assert 'health "healthy"' in result.text


@pytest.mark.parametrize(("check", "health"), [("exit 1", "unhealthy"), ("sleep 1000", "starting")])
def test_a_service_whose_health_check_does_not_agree_is_a_failure(
    engine: Engine, run_container: RunContainer, check: str, health: str
) -> None:
    timing = [] if health == "starting" else CHECK_EACH_SECOND
    run_container(
        "catalyst-trading",
        ONCE.format(again="true"),
        f"--health-cmd={check}",
        *timing,
        "--stop-timeout=1",
    )

    with pytest.raises(TaskFailed, match=f'is up, but its health check says "{health}"') as failure:
        restart_trading(engine, seconds=12)

    assert failure.value.value["health"] == health


def test_a_paused_container_runs_again_after_its_restart(
    engine: Engine, run_container: RunContainer
) -> None:
    id = run_container("catalyst-trading", ONCE.format(again="true"))
    engine.docker("pause", id)

    result = restart_trading(engine)

    assert "before: paused" in result.text
    assert engine.state(id)["Status"] == "running"


@pytest.mark.parametrize("count", [0, 2])
def test_none_or_two_that_match_are_left_alone(
    engine: Engine, run_container: RunContainer, count: int
) -> None:
    ids = [run_container("catalyst-trading"), run_container("trading")][:count]
    if not ids:
        engine.docker("rename", "trading", "other")
        engine.docker("rename", "catalyst-trading", "another")
    before = [engine.state(id)["StartedAt"] for id in ids]

    with pytest.raises(TaskFailed, match=r"2 containers match|no container .* another, other"):
        restart_trading(engine)

    assert [engine.state(id)["StartedAt"] for id in ids] == before


def test_a_silent_engine_ends_a_restart_at_the_limit_with_a_failure(tmp_path: Path) -> None:
    with (
        silent_engine(tmp_path) as host,
        alarm(0.5),
        pytest.raises(TaskFailed, match="trading: not finished within the time limit"),
    ):
        restart_trading(host, seconds=600)


def test_all_services_are_restarted_in_order_and_a_failure_stops_no_other(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-workflow", ONCE.format(again="true"))
    run_container("catalyst-scanner", ONCE.format(again="{ sleep 1; echo sorry; exit 1; }"))
    run_container("catalyst-trading", ONCE.format(again="true"))
    settings = settings_with(engine, "workflow", "scanner", "missing", "trading")

    with pytest.raises(TaskFailed, match=r"^2 of 4 services failed: scanner, missing$") as failure:
        restart_all_services(NO_PARAMS, context(settings, 120))

    lines = [line for line in failure.value.output.splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in lines] == [
        "workflow (catalyst-workflow)",
        "scanner (catalyst-scanner)",
        "missing",
        "trading (catalyst-trading)",
    ]
    assert "sorry" in failure.value.output
    errors = [bool(row["error"]) for row in failure.value.value]
    assert errors == [False, True, True, False]
    assert (
        engine.state("catalyst-workflow")["StartedAt"]
        < engine.state("catalyst-trading")["StartedAt"]
    )


def test_the_stay_up_times_of_all_services_are_waited_for_together(
    engine: Engine, run_container: RunContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["one", "two", "three", "four"]
    for name in names:
        run_container(f"catalyst-{name}")
    waits: list[float] = []
    sleep = time.sleep

    def count_and_sleep(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("time.sleep", count_and_sleep)

    result = restart_all_services(NO_PARAMS, context(settings_with(engine, *names), 120))

    assert 0 < sum(waits) < 2 * restarts.STAYS_UP_SECONDS
    assert result.text.startswith("4 of 4 services restarted\n")
    assert [row["service"] for row in result.value] == names


def test_the_limit_leaves_the_lines_of_all_services_so_far(
    engine: Engine, run_container: RunContainer
) -> None:
    run_container("catalyst-one", ONCE.format(again="true"))
    run_container("catalyst-two", IGNORES_TERM, HEEDS_TERM)
    run_container("catalyst-three", ONCE.format(again="true"))
    settings = settings_with(engine, "one", "missing", "two", "three")

    with alarm(3), pytest.raises(TaskFailed, match="4 of 4 services failed") as failure:
        restart_all_services(NO_PARAMS, context(settings, 600))

    lines = [line for line in failure.value.output.splitlines() if not line.startswith(" ")]
    assert lines == [
        "one (catalyst-one): not finished within the time limit",
        'missing: no container for service "missing"; known: catalyst-one, catalyst-three, '
        "catalyst-two",
        "two (catalyst-two): not finished within the time limit",
        "three (catalyst-three): not finished within the time limit",
    ]
    wait_for(lambda: engine.state("catalyst-two")["Running"])


def test_an_engine_that_stops_in_the_middle_of_a_restart_is_a_failure(
    passing_engine: Engine,
) -> None:
    options = ["--detach", "--network=none", "--stop-signal=KILL", "--name=trading"]
    passing_engine.docker("run", *options, IMAGE, "/bin/sh", "-c", "exec sleep 1000")
    pidfile = Path(passing_engine.host.removeprefix("unix://")).with_name("pidfile")
    with (
        subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill {pidfile.read_text()}"]),
        pytest.raises(TaskFailed, match=r"trading .*: (Docker .*: |did not stay up: )"),
    ):
        restart_trading(passing_engine)


def test_a_restart_found_after_an_interruption_is_a_success(
    engine: Engine, run_container: RunContainer
) -> None:
    claimed_at = time.time()
    id = run_container("catalyst-trading")

    outcome = look_into_trading(engine, claimed_at)

    assert outcome is not None
    assert (outcome.verdict, outcome.error) == ("success", "")
    assert outcome.text.startswith("found after an interruption:")
    assert outcome.value["id"] == id


@pytest.mark.parametrize("script", ["exec sleep 1000", "exit 1"])
@pytest.mark.parametrize("since_claim", [-3600.0, 3600.0])
def test_a_service_not_restarted_since_the_claim_or_not_up_is_found_failed(
    engine: Engine, run_container: RunContainer, script: str, since_claim: float
) -> None:
    id = run_container("catalyst-trading", script)
    wait_for(lambda: engine.state(id)["Running"] != (script == "exit 1"))

    outcome = look_into_trading(engine, time.time() - since_claim)

    assert outcome is not None
    up_again = since_claim > 0 and script != "exit 1"
    assert outcome.verdict == ("success" if up_again else "failed")
    assert ("not restarted since the claim, or not up" in outcome.text) != up_again


def test_what_cannot_be_found_out_stays_unknown(
    engine: Engine, run_container: RunContainer
) -> None:
    assert look_into_trading("unix:///nowhere/docker.sock", 0) is None
    assert look_into_trading(engine, 0) is None

    run_container("catalyst-trading")
    run_container("trading")
    assert look_into_trading(engine, 0) is None


@pytest.mark.parametrize(
    ("claimed_after", "verdict", "error"),
    [
        (0, "success", ""),
        (1, "failed", "not restarted, or not up: one"),
        (2, "failed", "not restarted, or not up: one, two"),
    ],
)
def test_of_all_services_those_restarted_since_the_claim_are_told_apart(
    engine: Engine, run_container: RunContainer, claimed_after: int, verdict: str, error: str
) -> None:
    moments = [time.time()]
    for name in ("one", "two"):
        run_container(f"catalyst-{name}")
        moments.append(time.time())
    settings = settings_with(engine, "one", "two")

    outcome = investigate_all_services(NO_PARAMS, context(settings), moments[claimed_after])

    assert outcome is not None
    assert (outcome.verdict, outcome.error) == (verdict, error)
    assert [row["service"] for row in outcome.value] == ["one", "two"]


@NO_SYSTEMD
def test_the_dashboard_without_systemd_is_one_sentence_and_stays_unknown() -> None:
    settings = settings_for("")

    with pytest.raises(TaskFailed, match=r"^systemd is not running on this machine"):
        restart_dashboard(NO_PARAMS, context(settings))

    assert investigate_dashboard(NO_PARAMS, context(settings), 0) is None


def test_a_restart_that_fails_says_why_also_where_the_journal_cannot_be_read(
    pretend_systemd: PretendSystemd,
) -> None:
    unit = {"consciousness-dashboard": ACTIVE}
    pretend_systemd(restart="echo trouble >&2; exit 1", own="exit 1", boot="exit 1", **unit)

    with pytest.raises(
        TaskFailed, match=r"^systemctl restart .* ended with exit code 1$"
    ) as failed:
        restart_dashboard(NO_PARAMS, context(settings_for("")))

    assert failed.value.output == "trouble"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("active", "sub"),
    [("activating", "start"), ("activating", "auto-restart"), ("deactivating", "stop-sigterm")],
)
def test_a_unit_that_is_still_at_it_when_the_time_is_over_is_said_to_be(
    pretend_systemd: PretendSystemd, active: str, sub: str
) -> None:
    state = ACTIVE.replace("=active", f"={active}").replace("=running", f"={sub}")
    unit = {"consciousness-dashboard": state}
    pretend_systemd(restart="exec sleep 1000", own="echo waiting for the database", **unit)

    with pytest.raises(
        TaskFailed, match=rf"dashboard is still {active} \({sub}\) .* goes on"
    ) as failed:
        restart_dashboard(NO_PARAMS, context(settings_for(""), seconds=8))

    assert "waiting for the database" in failed.value.output
    assert failed.value.value["ActiveState"] == active


def test_a_dashboard_that_is_no_unit_is_answered_with_the_units_there_are(
    pretend_systemd: PretendSystemd,
) -> None:
    pretend_systemd(docker=ACTIVE, restart="exit 1")

    with pytest.raises(
        TaskFailed, match=r'^no unit "consciousness-dashboard" .* there are: docker$'
    ):
        restart_dashboard(NO_PARAMS, context(settings_for("")))

"""settings.py: every default, every reader with what it takes and refuses, secrets, .env files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from dotenv import dotenv_values
from hypothesis import assume, example, given
from hypothesis import strategies as st
from psycopg2 import extensions
from support.postgres import PROGRAM_FOLDER

from catalyst_heartbeat import env_file
from catalyst_heartbeat.configured_secrets import collect_secrets
from catalyst_heartbeat.settings import VARIABLES, Settings, SettingsError, load

SERVICES = "trading,scanner,workflow,risk-manager,pattern,technical,news,reporting"
DEFAULTS = {
    "research_database_url": "",
    "agent_id": "public_claude",
    "task_senders": ("big_bro",),
    "approver": "craig_mobile",
    "tasks_requiring_approval": (),
    "task_expiry_hours": 24,
    "approval_expiry_hours": 24,
    "max_open_escalations": 20,
    "max_tasks_per_run": 100,
    "run_seconds": 3000,
    "allowed_paths": (
        "/root/catalyst-trading-system/services",
        "/root/catalyst-trading-system/scripts",
        "/root/catalyst-intl/src",
    ),
    "backup_dir": "/root/catalyst-backups",
    "changelog_path": "/root/catalyst-trading-system/CHANGELOG-AUTO.md",
    "log_dir": "/var/log/catalyst",
    "state_dir": "/var/lib/catalyst-heartbeat",
    "trading_services": tuple(SERVICES.split(",")),
    "log_services": (*SERVICES.split(","), "orchestration"),
    "container_prefix": "catalyst-",
    "health_ports": tuple(range(5000, 5010)),
    "system_units": ("consciousness-dashboard", "docker"),
    "dashboard_unit": "consciousness-dashboard",
    "backup_keep": 50,
    "heartbeat_ping_url": "",
    "docker_host": "",
    "docker_tls_verify": "",
    "docker_cert_path": "",
    "read_only_senders": (),
    "max_changes_per_hour": 20,
    "freeze_windows": (),
    "notify_url": "",
    "approver_database_url": "",
    "secrets": (),
}

BAD_NAMES = ["a b", "a/b", "../a", "-a", ".a", "a\nb", "a;b", "a" * 101, "ä", "a\x00"]
BAD_AGENTS = ["", " ", "all", "big bro", "big_bro ", "big.bro", "a" * 51, "bіg_bro", "big_bro\n"]
BAD_NUMBERS = ["", "0", "-1", "+1", "1.0", "1e2", " 24", "24\n", "٢٤", "9999999999", "ten"]
BAD_FOLDERS = ["", "/", "relative", "~/x", "$HOME/x", "/a//b", "/a/./b", "/a/../b", "/a/..", "//a"]

BAD_WINDOWS = [
    ",",
    "mon-fri 09:30-16:00",
    "mon-fri 9:30-16:00 UTC",
    "mon-fri 09:30-16:60 UTC",
    "mon-fri 09:30-24:01 UTC",
    "mon-sun 24:00-00:00 UTC",
    "mon-fri 09:30-09:30 UTC",
    "monday 09:30-16:00 UTC",
    "mon,fri 09:30-16:00 UTC",
    "09:30-16:00 UTC",
    "mon 09:30-16:00 Mars/Olympus",
    "mon 09:30-16:00 ../../etc/passwd",
    "mon 09:30-16:00 /etc/passwd",
    "mon 09:30-16:00 America",
]


def test_defaults_are_the_documented_ones() -> None:
    assert load({})._asdict() == DEFAULTS


def test_every_variable_is_a_field_of_its_own_name() -> None:
    assert [name.lower() for name in VARIABLES] == list(Settings._fields[:-1])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RESEARCH_DATABASE_URL", "postgres://u:p@h/d", "postgres://u:p@h/d"),
        ("AGENT_ID", "intl_claude", "intl_claude"),
        ("AGENT_ID", "A-1_b", "A-1_b"),
        ("AGENT_ID", "a" * 50, "a" * 50),
        ("TASK_SENDERS", "big_bro, craig_desktop ,x", ("big_bro", "craig_desktop", "x")),
        ("TASKS_REQUIRING_APPROVAL", " ", ()),
        ("TASKS_REQUIRING_APPROVAL", "restart_service,edit_file", ("restart_service", "edit_file")),
        ("TASK_EXPIRY_HOURS", "8760", 8760),
        ("MAX_OPEN_ESCALATIONS", "1", 1),
        ("ALLOWED_PATHS", "/a/b/:/c d", ("/a/b", "/c d")),
        ("BACKUP_DIR", "/var/backups///", "/var/backups"),
        ("TRADING_SERVICES", "one", ("one",)),
        ("TRADING_SERVICES", "a,b,a", ("a", "b")),
        ("CONTAINER_PREFIX", "", ""),
        ("HEALTH_PORTS", "5003,5000-5001", (5000, 5001, 5003)),
        ("HEALTH_PORTS", "1,65535", (1, 65535)),
        ("HEALTH_PORTS", "5000-5099", tuple(range(5000, 5100))),
        ("SYSTEM_UNITS", "getty@tty1.service", ("getty@tty1.service",)),
        ("HEARTBEAT_PING_URL", "https://hc.example/ping/1?a=b", "https://hc.example/ping/1?a=b"),
        ("DOCKER_HOST", "tcp://127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        ("DOCKER_HOST", "https://[::1]:2376/", "https://[::1]:2376/"),
        ("DOCKER_HOST", "unix:///run/podman.sock", "unix:///run/podman.sock"),
        ("READ_ONLY_SENDERS", "craig_desktop, dev_claude", ("craig_desktop", "dev_claude")),
        ("MAX_CHANGES_PER_HOUR", "0", 0),
        ("FREEZE_WINDOWS", " ", ()),
        ("NOTIFY_URL", "https://ntfy.example/topic", "https://ntfy.example/topic"),
        ("APPROVER_DATABASE_URL", "postgresql://craig@h/d", "postgresql://craig@h/d"),
    ],
)
def test_good_value_is_read(name: str, value: str, expected: Any) -> None:
    assert getattr(load({name: value}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("RESEARCH_DATABASE_URL", ["mysql://h/d", "host=h dbname=d", " postgresql://h/d", "x"]),
        ("APPROVER_DATABASE_URL", ["mysql://h/d", "postgresql://u:p@ss@h/d"]),
        ("READ_ONLY_SENDERS", [",", "all", "big bro"]),
        ("MAX_CHANGES_PER_HOUR", ["", "-1", "1.5", "1000001"]),
        ("FREEZE_WINDOWS", BAD_WINDOWS),
        (
            "NOTIFY_URL",
            ["ntfy.sh/x", "ftp://h", "http://", "http://u:p@:80", "http://h:99999", "http://h:x"],
        ),
        ("AGENT_ID", BAD_AGENTS),
        ("APPROVER", [*BAD_AGENTS, "public_claude"]),
        ("TASK_SENDERS", ["", ",", "big_bro,", "big_bro,,x", "big_bro,all", "big_bro craig"]),
        ("TASKS_REQUIRING_APPROVAL", [",", "a,", *BAD_NAMES]),
        ("TASK_EXPIRY_HOURS", [*BAD_NUMBERS, "8761"]),
        ("APPROVAL_EXPIRY_HOURS", [*BAD_NUMBERS, "8761"]),
        ("MAX_OPEN_ESCALATIONS", [*BAD_NUMBERS, "1001"]),
        ("MAX_TASKS_PER_RUN", [*BAD_NUMBERS, "1000001"]),
        ("RUN_SECONDS", [*BAD_NUMBERS, "86401"]),
        ("BACKUP_KEEP", [*BAD_NUMBERS, "10001"]),
        ("ALLOWED_PATHS", [*BAD_FOLDERS, "/a:", ":/a", "/a::/b", "/a:b"]),
        ("BACKUP_DIR", BAD_FOLDERS),
        ("CHANGELOG_PATH", BAD_FOLDERS),
        ("LOG_DIR", BAD_FOLDERS),
        ("STATE_DIR", BAD_FOLDERS),
        ("TRADING_SERVICES", ["", ",", *BAD_NAMES]),
        ("LOG_SERVICES", ["", ",", *BAD_NAMES]),
        ("CONTAINER_PREFIX", ["a/", "a b", "../", "a" * 51, "x\n"]),
        (
            "HEALTH_PORTS",
            ["", "0", "65536", "5009-5000", "5000-", "-5000", "5000:5001", "x", "٥٠٠٠", "1-101"],
        ),
        (
            "DOCKER_HOST",
            [
                "/run/docker.sock",
                "unix://run/x",
                "tcp://h",
                "tcp://h:0",
                "tcp://h:65536",
                "h:2375",
                "ssh://u@h",
                "npipe:////./x",
                "fd://",
                "unix:///a b",
                " unix:///x",
            ],
        ),
        ("SYSTEM_UNITS", ["", "docker;x", "--all", "docker\x00"]),
        ("DASHBOARD_UNIT", ["", "a,b", "-x", "a b"]),
        (
            "HEARTBEAT_PING_URL",
            ["hc.example", "ftp://h", "file:///etc/passwd", "http:// x", "https://?x"],
        ),
    ],
)
def test_bad_value_is_refused_in_one_line_that_names_the_variable(
    name: str, values: list[str]
) -> None:
    for value in values:
        with pytest.raises(SettingsError) as caught:
            load({name: value})

        assert str(caught.value).startswith(f"{name}: "), value
        assert "\n" not in str(caught.value), value


PASSWORD_PARTS = st.text(st.sampled_from('ab1/@:?#%[]<>^ "\\|{}é'), min_size=1, max_size=6)


@example("%a1", "h")
@given(PASSWORD_PARTS, st.sampled_from(["h", "127.0.0.1:5432", "[::1]:5", "h:1,i:2", ""]))
def test_a_password_that_is_not_percent_encoded_is_refused_and_no_part_of_it_shown(
    middle: str, host: str
) -> None:
    password = f"hunter2long{middle}Qw7secret"
    url = f"postgresql://bot:{password}@{host}/db"
    message = refusal({"RESEARCH_DATABASE_URL": url})

    if message:
        assert "percent-encode the password" in message or "write %25" in message
        assert not {"hunter2long", "Qw7secret"} & set(re.split(r"\W", message))
    else:
        assert re.fullmatch("(%[ab1]{2}|[ab1])+", middle)
        assert extensions.parse_dsn(url)["password"] == unquote(password)


def refusal(environment: dict[str, str]) -> str:
    """Return why these settings are refused, "" where they are not."""
    try:
        load(environment)
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://user:hunter22@h/d", "not a PostgreSQL URL"),
        ("postgresql://1234/hunter22@h/d", "percent-encode the password"),
        ("postgresql://u:1234/hunter22@h/d", "percent-encode the password"),
        ("postgresql://u:1234?a=hunter22@h/d", "percent-encode the password"),
        ("postgresql://u@h/d#hunter22", "percent-encode the password"),
        ("postgresql://u:hunter22%zz@h/d", "write %25"),
        ("postgresql://u:hunter22%@h/d", "write %25"),
        ("postgresql://u:hunter22%00@h/d", "write %25"),
        ("postgresql://u:hunter22@h/d?schema=public", 'parameter: "schema"'),
        ("postgresql://u:hunter22@h/d?pgbouncer=true", 'parameter: "pgbouncer"'),
        ("postgresql://u:hunter22@h/d?sslmode", '"sslmode"'),
        ("postgresql://u:hunter22@h/d?password=a=hunter22", '"password"'),
    ],
)
def test_what_is_wrong_with_a_database_url_is_named_without_its_secrets(
    url: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"RESEARCH_DATABASE_URL": url})

    assert said in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql:///d?host=/tmp&port=5433",
        "postgresql://bot:a%2Fb%40c@db.example.com:25060/bus?sslmode=require",
        "postgresql://h1:1,h2:2/d?target_session_attrs=primary",
        "postgresql://u@[::1]:5432/d",
        "postgresql://u@%2Fvar%2Frun/d?options=-csearch_path%3Dx",
    ],
)
def test_the_urls_that_libpq_takes_are_taken(url: str) -> None:
    assert load({"RESEARCH_DATABASE_URL": url}).research_database_url == url


def test_a_bad_value_is_named_without_the_password_in_it() -> None:
    assert "[redacted]" in refusal({"DOCKER_HOST": "tcp://bot:hunter22@h:2375"})
    assert "hunter22" not in refusal({"DOCKER_HOST": "tcp://bot:hunter22@h:2375"})


def test_log_services_follow_the_trading_services() -> None:
    assert load({"TRADING_SERVICES": "a,b"}).log_services == ("a", "b", "orchestration")
    assert load({"TRADING_SERVICES": "a,b", "LOG_SERVICES": "c"}).log_services == ("c",)
    assert load({"TRADING_SERVICES": "orchestration,b"}).log_services == ("orchestration", "b")


@pytest.mark.parametrize(
    ("environment", "secrets"),
    [
        ({"RESEARCH_DATABASE_URL": "postgresql://user:hunter22@h/d"}, {"hunter22"}),
        ({"RESEARCH_DATABASE_URL": "postgresql://user@h/d?password=hunter22&x=y"}, {"hunter22"}),
        ({"ANY_URL": "redis://:hunter22@h"}, {"hunter22"}),
        ({"ANY_URL": "https://user:hun%40ter@h"}, {"hun%40ter", "hun@ter"}),
        ({"ANY_URL": "postgresql://user:hunt@er/22@h/d"}, {"hunt", "hunt@er/22"}),
        ({"ANY_URL": "mysql://user:hunter/5432@h"}, {"hunter/5432", "hunter", "5432"}),
        ({"ANY_DSN": "host=h user=u password=hunter22 dbname=d"}, {"hunter22"}),
        ({"ANY_DSN": "password = 'hunter 22' host=h"}, {"hunter 22"}),
        ({"PGPASSWORD": "hunter22"}, {"hunter22"}),
        ({"ANTHROPIC_API_KEY": "sk-1", "APIKEY": "abcd"}, {"sk-1", "abcd"}),
        ({"GITHUB_TOKEN": "ghp_1", "Client_Secret": "shhh"}, {"ghp_1", "shhh"}),
        ({"SSH_PRIVATE_KEY": "-----BEGIN"}, {"-----BEGIN"}),
        ({"DB_PW": "hunter22"}, {"hunter22"}),
        ({"A_TOKEN": " hunter22 "}, {" hunter22 ", "hunter22"}),
        (
            {"MY_SECRET": "----- BEGIN\nline one\nshort\n          \n  line two"},
            {"----- BEGIN\nline one\nshort\n          \n  line two", "line one", "line two"},
        ),
        ({"PASSWORD": "abc", "TOKEN": "", "SECRET_MODE": "true"}, set()),
        ({"AUTHOR": "somebody", "KEYBOARD": "qwerty", "PWD": "/root", "HOME": "/root"}, set()),
        ({"MAX_TOKENS": "4096", "AUTH_SERVICE_PORT": "5005", "KEY_SIZE": "2048"}, set()),
        (
            {"MAX_TOKENS": "x4096", "API_TOKEN": "5005", "PASSWORD": "2048"},
            {"x4096", "5005", "2048"},
        ),
        ({"ANY_URL": "https://host:5005/path", "PATH": "/usr/bin:/bin"}, set()),
    ],
)
def test_secrets_are_collected_from_the_whole_environment(
    environment: dict[str, str], secrets: set[str]
) -> None:
    assert set(collect_secrets(environment)) == secrets


def test_longer_secret_comes_first_so_that_no_rest_of_it_is_left() -> None:
    assert collect_secrets({"A_TOKEN": "abcd", "B_TOKEN": "abcdef"}) == ("abcdef", "abcd")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy of the settings' modules two folders down, with a program that prints them."""
    folder = tmp_path / "repository" / "services" / "consciousness"
    folder.mkdir(parents=True)
    (folder / "catalyst_heartbeat").mkdir()
    for name in ("settings.py", "env_file.py", "configured_secrets.py"):
        shutil.copy(PROGRAM_FOLDER / "catalyst_heartbeat" / name, folder / "catalyst_heartbeat")
    (folder / "show.py").write_text(
        "import json, sys\n"
        f"sys.path.append({str(folder)!r})\n"
        "from catalyst_heartbeat import settings\n"
        "try: print(json.dumps(settings.load()._asdict()))\n"
        "except settings.SettingsError as error: print(json.dumps({'error': str(error)}))\n"
    )
    return folder / "show.py"


def shown(program: Path, **variables: str) -> dict[str, Any]:
    command = [sys.executable, "-I", str(program)]
    result = subprocess.run(
        command, env=variables, cwd="/", capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return dict(json.loads(result.stdout))


def test_env_file_is_found_upward_from_the_program(program: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / ".env").write_text("AGENT_ID=intl_claude\n")
    (tmp_path / ".env").write_text("AGENT_ID=too_far\nRUN_SECONDS=1\n")

    settings = shown(program)

    assert settings["agent_id"] == "intl_claude"
    assert settings["run_seconds"] == 3000


def test_env_file_beside_the_program_comes_first(program: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / ".env").write_text("AGENT_ID=above\n")
    (program.parent / ".env").write_text("AGENT_ID=beside\n")

    assert shown(program)["agent_id"] == "beside"


def test_environment_wins_over_the_env_file(program: Path) -> None:
    (program.parent / ".env").write_text("AGENT_ID=from_file\nBACKUP_KEEP=7\n")

    settings = shown(program, AGENT_ID="from_environment")

    assert settings["agent_id"] == "from_environment"
    assert settings["backup_keep"] == 7


@pytest.mark.parametrize(
    "text",
    [
        "export AGENT_ID=intl_claude\n",
        "AGENT_ID='intl_claude'\r\nRUN_SECONDS=5\r\n",
        '# comment\n\nAGENT_ID="intl_claude"  # comment',
        "#AGENT_ID=a\n# AGENT_ID=b\n\t#export AGENT_ID=c\nAGENT_ID=intl_claude\n# AGENT_ID='d",
        "OTHER=1 # AGENT_ID=a\nAGENT_ID=intl_claude #AGENT_ID=b",
        "\ufeffAGENT_ID=intl_claude\n",
        "export JUST_A_NAME\nAGENT_ID=intl_claude\n",
        "OTHER=it\\'s # don't\n# isn't\nAGENT_ID=intl_claude",
        "DB=postgres://h/d?a=1&b=$(date '+%s')\nAGENT_ID=intl_claude",
        "KEY='-----BEGIN\nabc\n-----END'\nAGENT_ID=intl_claude",
        'P="a\\"b"\'c\'d;Q=${AGENT_ID}\nAGENT_ID=intl_claude',
        "other.name=1\nOTHER = 2\n  AGENT_ID=intl_claude  ",
    ],
)
def test_env_file_is_read_as_people_write_it(text: str, program: Path) -> None:
    (program.parent / ".env").write_bytes(text.encode())

    assert shown(program)["agent_id"] == "intl_claude"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('A=1\nTASKS_REQUIRING_APPROVAL="edit_file,write_file\nB=2\n', 2),
        ("TASKS_REQUIRING_APPROVAL='edit_file\n", 1),
        ("#\n\nTASKS_REQUIRING_APPROVAL edit_file", 3),
        ("TASKS_REQUIRING_APPROVAL: edit_file", 1),
        ("export TASKS_REQUIRING_APPROVAL edit_file", 1),
        ("JUST_A_NAME", 1),
        ("OTHER=it's\nAGENT_ID=x", 1),
        ("OTHER=it's\nAGENT_ID=x\nMORE=isn't", 1),
        ("OTHER=1 AGENT_ID=x", 1),
        ("OTHER=1; AGENT_ID=x", 1),
        ("OTHER=${AGENT_ID:=x}", 1),
        ("\nAGENT_ID = x", 2),
        ("AGENT_ID= x", 1),
        ("AGENT_ID=x\nexport AGENT_ID", 2),
        ("AGENT_ID+=x", 1),
        ("AGENT_ID=$OTHER", 1),
        ('AGENT_ID="$OTHER"', 1),
        ("AGENT_ID='${OTHER}'", 1),
        ("AGENT_ID=`hostname`", 1),
        ("AGENT_ID=a\\b", 1),
        ('AGENT_ID="a\\n"', 1),
        ("AGENT_ID='a'b", 1),
        ("AGENT_ID='a'#b", 1),
        ("AGENT_ID=a b", 1),
        ("RESEARCH_DATABASE_URL=postgresql://h/d?a=1&b=2", 1),
        ("BACKUP_DIR=~/backups", 1),
        ("'AGENT_ID'=x", 1),
        ("#\nOTHER=1 # c\rAGENT_ID=x", 2),
        ("AGENT_ID\0=x", 1),
        ("# \x0b\nAGENT_ID=x", 1),
    ],
)
def test_a_line_that_cannot_be_read_or_not_in_one_way_stops_the_program(
    text: str, line: int, program: Path
) -> None:
    (program.parent / ".env").write_text(text)

    error = shown(program)["error"]

    assert error.startswith(f".env: cannot read {program.parent / '.env'}: line {line}")


ENV_PIECES = [
    *(" ", "\t", "\n", "#", " # ", "'", '"', "\\", "$", "${OTHER}", "$(echo 1)", "`echo 1`", ";"),
    *("&", "x", "x", "1", "é", "~", "*", "+=", "!", "{a,b}", "AGENT_ID=", "OTHER", "$'"),
]
ENV_LINES = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "", "", "export ", " ", "# "]),
    st.sampled_from(["AGENT_ID", "AGENT_ID", "OTHER", "AGENT_ID ", "export AGENT_ID\nOTHER"]),
    st.lists(st.sampled_from(ENV_PIECES), max_size=5).map("".join),
)


@given(st.lists(ENV_LINES, min_size=1, max_size=3).map("\n".join))
@example("AGENT_ID=x\nOTHER='a\nAGENT_ID=y\n'")
def test_whatever_a_shell_or_dotenv_reads_differently_is_refused(text: str) -> None:
    try:
        ours = env_file.parse(text, VARIABLES).get("AGENT_ID")
    except ValueError:
        return
    sourced = subprocess.run(
        ["/bin/bash", "-c", f"set -f; cd /; {text}\nprintf '\\n=%s' \"${{AGENT_ID-unset}}\""],
        env={"PATH": "/nowhere", "OTHER": "other"},
        capture_output=True,
        text=True,
    )
    assume("\n=" in sourced.stdout)  # a shell reads it
    theirs = dotenv_values(stream=io.StringIO(text)).get("AGENT_ID")

    assert theirs == ours
    assert sourced.stdout.rpartition("\n=")[2] == ("unset" if ours is None else ours)


def test_secrets_of_the_env_file_count(program: Path) -> None:
    (program.parent / ".env").write_text("SOMETHING_ELSE_TOKEN=hunter22\n")

    assert shown(program)["secrets"] == ["hunter22"]


def test_folder_named_env_is_passed_over(program: Path, tmp_path: Path) -> None:
    (program.parent / ".env").mkdir()
    (tmp_path / "repository" / ".env").write_text("AGENT_ID=above\n")

    assert shown(program)["agent_id"] == "above"


@pytest.mark.parametrize("kind", ["dangling", "loop", "FIFO", "socket"])
def test_env_file_that_cannot_be_read_as_one_is_not_passed_over(
    kind: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    path = program.parent / ".env"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(".env")
    else:
        path.symlink_to(path if kind == "loop" else "nowhere")

    assert shown(program)["error"] == f".env: cannot read {path}: not a file, and no link to one"


def test_env_file_that_is_not_text_is_an_error_of_one_line(program: Path) -> None:
    (program.parent / ".env").write_bytes(b"AGENT_ID=\xff\xfe\n")

    error = shown(program)["error"]

    assert error.startswith(f".env: cannot read {program.parent / '.env'}: ")
    assert "\n" not in error


def test_crontab_starts_the_wrapper_at_a_quarter_past() -> None:
    lines = (PROGRAM_FOLDER / "crontab.example").read_text().splitlines()

    (job,) = [line for line in lines if re.match(r"[0-9*]", line)]

    assert job == (
        "15 * * * * /root/catalyst-trading-system/services/consciousness/run-heartbeat-public.sh"
        " >> /var/log/catalyst/heartbeat-public.log 2>&1"
    )

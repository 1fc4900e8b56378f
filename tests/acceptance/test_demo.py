"""The demo: with the wrapper from a fresh checkout, beside a real Docker service, interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.docker_engine import wait_for
from support.postgres import PROGRAM_FOLDER

pytestmark = pytest.mark.slow

PACKAGE = "catalyst_heartbeat"
CODE = ("*.py", "*.sh", "requirements*", f"{PACKAGE}/**/*.py", f"{PACKAGE}/**/*.sql")
DEMO = [sys.executable, "-I", str(PROGRAM_FOLDER / "heartbeat_public.py"), "--demo"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The folder for temporary files of one demo; PostgreSQL's user must get into it too."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def bare(temporary: Path) -> dict[str, str]:
    """Cron's environment, without a Docker engine."""
    return {
        "HOME": "/root",
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(temporary),
        "DOCKER_HOST": f"unix://{temporary}/none.sock",
    }


class Engine(socketserver.ThreadingUnixStreamServer):
    """As much of Docker's API as tells which containers there are; remembers what was asked."""

    daemon_threads = True

    def __init__(self, path: Path, container: str) -> None:
        super().__init__(str(path), EngineHandler)
        self.container = container
        self.asked: list[str] = []


class EngineHandler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "demo"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        version = {"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "25.0.0"}
        found = {"Id": "1" * 64, "Names": [f"/{self.server.container}"], "Status": "Up 2 hours"}
        answer = json.dumps(version if self.path.endswith("/version") else [found]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        self.send_error(500)


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[str, Engine]]:
    path = tmp_path_factory.mktemp("engine") / "docker.sock"
    with Engine(path, request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{path}", server
        server.shutdown()
        thread.join()


def run(command: list[Any], environment: dict[str, str]) -> Any:
    return subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, timeout=240
    )


def left_behind(folder: Path) -> list[str]:
    """Return the files in the folder, and the processes that were told of it."""
    mark = str(folder).encode()
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if mark in told:
            found.append(f"process {process.name}")
    return found


def code_of(folder: Path) -> dict[str, bytes]:
    made = {".venv-demo", ".lock", "__pycache__"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not made & set(path.relative_to(folder).parts)
    }


def test_demo_from_a_fresh_checkout(tmp_path: Path, bare: dict[str, str], temporary: Path) -> None:
    checkout = tmp_path / "fresh checkout"
    for path in [path for pattern in CODE for path in PROGRAM_FOLDER.glob(pattern)]:
        target = checkout / path.relative_to(PROGRAM_FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    # Production's settings, in reach of the program: none of them may be used.
    (tmp_path / ".env").write_text(
        "RESEARCH_DATABASE_URL=postgresql://nobody:hunter22@127.0.0.1:1/production\n"
        "AGENT_ID=production_agent\nTASK_SENDERS=somebody\nHEARTBEAT_PING_URL=http://127.0.0.1:1/\n"
        f"ALLOWED_PATHS={tmp_path}/production\nBACKUP_DIR={tmp_path}/production-backups\n"
        f"CHANGELOG_PATH={tmp_path}/CHANGELOG.md\nSTATE_DIR={tmp_path}/production-state\n"
    )
    before = code_of(checkout)

    first = run([checkout / "run-heartbeat-public.sh", "--demo"], bare)
    second = run([checkout / "run-heartbeat-public.sh", "--demo"], bare)

    assert first.returncode == 0, first.stdout + first.stderr
    assert second.returncode == 0, second.stdout + second.stderr
    assert "making .venv-demo" in first.stderr
    assert "making" not in second.stderr
    assert "production" not in first.stdout + second.stdout
    assert "hunter22" not in first.stdout + first.stderr
    assert "monitor" not in first.stderr + second.stderr
    assert code_of(checkout) == before
    assert {path.name for path in tmp_path.iterdir()} == {".env", "fresh checkout"}
    assert left_behind(temporary) == []


def test_demo_shows_what_the_tables_hold(bare: dict[str, str], temporary: Path) -> None:
    result = run(DEMO, bare | {"PGHOSTADDR": "127.0.0.9", "PGPORT": "1", "PGUSER": "nobody"})

    assert result.returncode == 0, result.stdout + result.stderr
    for line in (
        "Without Docker: ",
        "  | TASK: restart_service",
        "  | ❌ FAILED",
        "  | ✅ SUCCESS",
        "  | +    with urllib.request.urlopen(url, timeout=60) as answer:",
        "  | ⏳ ESCALATED",
        "  | 🚫 DENIED",
        "Approved: Permission #6: rollback_file",
        "  ✓ the file says timeout=30 again",
    ):
        assert line in result.stdout
    assert left_behind(temporary) == []


@pytest.mark.parametrize("engine", ["catalyst-trading"], indirect=True)
def test_demo_leaves_docker_alone_where_a_service_is_in_reach(
    engine: tuple[str, Engine], bare: dict[str, str]
) -> None:
    address, server = engine

    result = run(DEMO, bare | {"DOCKER_HOST": address})

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Docker is left alone: a restart here would hit /catalyst-trading." in result.stdout
    assert server.asked == ["GET /version", "GET /v1.44/containers/json?" + query("1")]


@pytest.mark.parametrize("engine", ["somebody-elses"], indirect=True)
def test_demo_lists_real_containers_and_restarts_none(
    engine: tuple[str, Engine], bare: dict[str, str]
) -> None:
    address, server = engine

    result = run(DEMO, bare | {"DOCKER_HOST": address})

    assert result.returncode == 0, result.stdout + result.stderr
    assert "  | somebody-elses" in result.stdout
    assert "GET /v1.44/containers/json?" + query("0") in server.asked
    assert not [request for request in server.asked if request.startswith("POST")]


def query(everything: str) -> str:
    return f"limit=-1&all={everything}&size=0&trunc_cmd=0"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_demo_leaves_nothing_running(
    kind: signal.Signals, bare: dict[str, str], temporary: Path
) -> None:
    process = subprocess.Popen(DEMO, env=bare, stdout=subprocess.DEVNULL, start_new_session=True)
    up = "postgresql-*/.s.PGSQL.*"
    wait_for(lambda: list(temporary.glob(up)) or process.poll() is not None)

    os.killpg(process.pid, kind) if kind == signal.SIGINT else os.kill(process.pid, kind)
    process.wait()

    if kind == signal.SIGKILL:
        wait_for(lambda: not [left for left in left_behind(temporary) if "process" in left])
    else:
        assert process.returncode == 130
        assert left_behind(temporary) == []


def test_demo_fails_where_the_heartbeat_does_nothing(tmp_path: Path, bare: dict[str, str]) -> None:
    shutil.copytree(PROGRAM_FOLDER / "catalyst_heartbeat", tmp_path / "catalyst_heartbeat")
    shutil.copy2(PROGRAM_FOLDER / "task_executor.py", tmp_path)
    real = shutil.copy2(PROGRAM_FOLDER / "heartbeat_public.py", tmp_path / "real.py")
    (tmp_path / "heartbeat_public.py").write_text(
        "import os, sys\nif '--init-db' in sys.argv:\n"
        f"    os.execv(sys.executable, [sys.executable, '-I', {str(real)!r}, '--init-db'])\n"
    )

    result = run([sys.executable, "-I", real, "--demo"], bare)

    assert result.returncode == 1
    assert result.stderr.endswith("the demo failed: not so: every task has its report\n")


def test_demo_takes_no_arguments(bare: dict[str, str]) -> None:
    result = run([*DEMO, "--status"], bare)

    assert result.returncode == 2
    assert result.stdout == ""

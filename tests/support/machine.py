"""A server as the deployment's: systemd, cron and the project, in a container on an engine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.docker_engine import IMAGE, Engine, wait_for
from support.postgres import PROGRAM_FOLDER, Database, require

from catalyst_heartbeat.demo.embedded_postgres import embedded_package

MACHINE_IMAGE = "machine-of-the-tests"
PACKAGES = "systemd,systemd-sysv,dbus,cron,python3,python3-venv,procps,tzdata"

ROOT = "/root/catalyst-trading-system"
FOLDER = f"{ROOT}/services/consciousness"
LOG = "/var/log/catalyst/heartbeat-public.log"
NOT_INSTALLED = (".git", ".ci", ".env", ".venv*", "tests", "benchmarks", "__pycache__", ".*_cache")

DASHBOARD = """[Unit]
Description=The dashboard

[Service]
ExecStart=/bin/sh -c 'echo the dashboard is up; exec sleep infinity'

[Install]
WantedBy=multi-user.target
"""

# What the services say, on the ports that they have in the deployment.
HEALTHY = '{"status": "healthy"}'
PAGE = (
    "mkdir -p /www; echo '{page}' > /www/health; echo up on {port}; exec httpd -f -p {port} -h /www"
)
ANSWER = """cat > /tmp/answer <<'END'
while read -r line && [ ${{#line}} -gt 1 ]; do :; done
{commands}
END
exec nc -ll -p {port} -e /bin/sh /tmp/answer"""


@dataclass(frozen=True)
class Service:
    """A service's container: its name on the engine, its compose label, its port."""

    container: str
    port: int
    label: str = ""
    page: str = HEALTHY


SERVICES = (
    Service("catalyst-orchestration", 5000, page="Orchestration is up"),
    Service("scanner", 5001),
    Service("shop_pattern_1", 5002, label="pattern"),
    Service("catalyst-technical", 5003),
    Service("catalyst-risk-manager", 5004),
    Service("catalyst-trading", 5005, page='{"status": "ok"}'),
    Service("catalyst-workflow", 5006),
    Service("catalyst-news", 5008),
    Service("catalyst-reporting", 5009),
)


class Machine:
    """A booted machine with the project installed for one agent."""

    def __init__(self, engine: Engine, name: str, url: str, wheels: Path, **settings: str) -> None:
        self.engine = engine
        self.name = name
        socket = engine.host.removeprefix("unix://")
        postgres = url.rpartition("host=")[2]
        engine.docker(
            *("run", "--detach", "--name", name, "--hostname", name, "--network=none"),
            *("--cap-add=SYS_ADMIN", "--env=container=docker", "--stop-signal=KILL"),
            *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
            *control_groups(),
            *("--tmpfs=/run", "--tmpfs=/run/lock"),
            *(f"--volume={socket}:/run/docker.sock", f"--volume={postgres}:{postgres}"),
            f"--volume={wheels}:/srv/wheels:ro",
            *(MACHINE_IMAGE, "/lib/systemd/systemd"),
        )
        wait_for(self.is_running)
        self.install(url, settings)

    def is_running(self) -> bool:
        """Say whether systemd has started everything that it should."""
        command = ["docker", "--host", self.engine.host, "exec", self.name]
        command += ["systemctl", "is-system-running"]
        return subprocess.run(command, capture_output=True).stdout == b"running\n"

    def install(self, url: str, settings: dict[str, str]) -> None:
        """Put the project where the seed has it, with its settings, and the unit beside it."""
        self.run(f"mkdir -p {FOLDER} {ROOT}/scripts /root/catalyst-backups /var/log/catalyst")
        self.run("mkdir -p /root/catalyst-intl/src")
        self.run("ln -sf /usr/share/zoneinfo/Asia/Perth /etc/localtime")
        self.copy_project()
        # All tests of a machine change something within the same hour.
        given = {"RESEARCH_DATABASE_URL": url, "MAX_CHANGES_PER_HOUR": "1000", **settings}
        lines = [f"{name}={value}" for name, value in given.items()]
        self.write(f"{ROOT}/.env", "\n".join(lines))
        self.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /srv/wheels\n")
        self.write(f"{FOLDER}/heartbeat.py", "timeout=30\n")
        self.write("/var/log/catalyst/heartbeat.log", "big_bro is awake\n")
        self.write("/etc/systemd/system/consciousness-dashboard.service", DASHBOARD)
        self.run("systemctl daemon-reload && systemctl enable --now consciousness-dashboard")
        self.run(f"{FOLDER}/run-heartbeat-public.sh --init-db")

    def copy_project(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "project"
            shutil.copytree(PROGRAM_FOLDER, copy, ignore=shutil.ignore_patterns(*NOT_INSTALLED))
            self.engine.docker("cp", f"{copy}/.", f"{self.name}:{FOLDER}")

    def run(self, script: str, stdin: str = "") -> str:
        """Run a script as root on the machine and return what it printed."""
        command = ("exec", "--interactive", self.name, "/bin/sh", "-ec", script)
        return self.engine.docker(*command, stdin=stdin.encode())

    def write(self, path: str, text: str) -> None:
        self.run(f"cat > '{path}'", text)

    def read(self, path: str) -> str:
        return self.run(f"cat '{path}'")

    def cycle(self) -> None:
        """Run a cycle now, in cron's environment."""
        environment = "env -i HOME=/root LOGNAME=root PATH=/usr/bin:/bin SHELL=/bin/sh"
        self.run(f"cd /root; {environment} {FOLDER}/run-heartbeat-public.sh >> {LOG} 2>&1")

    def start_cron(self, *, twice: bool = False) -> None:
        """Install the project's own crontab, but for every minute instead of :15."""
        given = self.read(f"{FOLDER}/crontab.example").replace("\n15 * * * * ", "\n* * * * * ")
        self.run("crontab -", given)
        if twice:
            system = given.replace("\n* * * * * ", "\n* * * * * root ")
            self.write("/etc/cron.d/heartbeat", system)

    def stop_cron(self) -> None:
        self.run("crontab -r; rm -f /etc/cron.d/heartbeat")


def start_service(machine: Machine, service: Service, script: str = "", *options: str) -> None:
    """Start a service's container in the machine's network, in place of the one there was."""
    engine = machine.engine
    if engine.docker("ps", "--all", "--quiet", f"--filter=name=^{service.container}$"):
        engine.docker("rm", "--force", service.container)
    label = [f"--label=com.docker.compose.service={service.label}"] if service.label else []
    engine.docker(
        *("run", "--detach", "--name", service.container, f"--network=container:{machine.name}"),
        *("--stop-signal=KILL", *label, *options, IMAGE, "/bin/sh", "-c"),
        script or PAGE.format(page=service.page, port=service.port),
    )


def send_by_psql(url: str, agent: str, body: str) -> int:
    """Insert a task as big_bro does; return its id."""
    statement = f"""
        INSERT INTO claude_messages
               (from_agent, to_agent, msg_type, subject, body, priority, status)
        VALUES ('big_bro', '{agent}', 'task', 'Test', $body${body}$body$, 'normal', 'pending')
        RETURNING id"""
    psql = f"{embedded_package()}/pginstall18/bin/psql"
    command = [psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--dbname", url]
    sent = subprocess.run(command, input=statement, capture_output=True, text=True, check=True)
    return int(sent.stdout)


def wait_for_reports(database: Database, ids: list[int]) -> dict[int, dict[str, Any]]:
    """Wait until each task has its final report; return them by the task's id."""
    query = """SELECT reply_to_id, from_agent, body, data FROM claude_messages
                WHERE msg_type = 'response' AND (data ->> 'final')::boolean
                  AND reply_to_id = ANY(%s)"""
    wait_for(lambda: len(database.execute(query, (ids,))) >= len(ids))
    found = database.rows(query, (ids,))
    assert len(found) == len(ids)
    return {row["reply_to_id"]: row for row in found}


def control_groups() -> list[str]:
    """Return the options that give a container's systemd the control groups it needs.

    With the old kind only systemd's own: it would make the whole mount read-only for everybody.
    """
    own = "/sys/fs/cgroup/systemd"
    if os.path.ismount(own):
        return [f"--volume={own}:{own}:rw"]
    return ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"]


def import_machine(engine: Engine) -> None:
    """Make the image of the machine, from the cache where it was built before."""
    site = packages_site()
    require(shutil.which("debootstrap") and site, "needs debootstrap and Debian or Ubuntu")
    mirror, suite = site
    key = hashlib.sha256(f"{mirror} {suite} {PACKAGES}".encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    archive = home / "heartbeat-tests" / f"{suite}-{key}.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        build_machine(mirror, suite, archive)
    engine.docker("import", str(archive), MACHINE_IMAGE)


def packages_site() -> tuple[str, str]:
    """Return where this machine gets its packages, and for which release; ("", "") if unknown."""
    if not shutil.which("apt-get"):
        return "", ""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sites = [line.split() for line in listed.splitlines()]
    plain = [site for site in sites if len(site) == 2 and "-" not in site[1]]
    return (plain[0][0], plain[0][1]) if plain else ("", "")


def build_machine(mirror: str, suite: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        root = f"{folder}/root"
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        built = subprocess.run(
            ["debootstrap", *options, suite, root, mirror], capture_output=True, text=True
        )
        assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
        unfinished = archive.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", unfinished, "."], check=True)
        unfinished.rename(archive)


def download_wheels(engine: Engine, folder: Path) -> None:
    """Get what requirements.lock lists for the machine's Python, so that it needs no network."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = engine.docker("run", "--rm", "--network=none", MACHINE_IMAGE, "python3", "-c", script)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
            *("--disable-pip-version-check", "--python-version", version.strip()),
            *("--dest", folder, "--require-hashes"),
            *("--requirement", PROGRAM_FOLDER / "requirements.lock"),
        ],
        check=True,
    )

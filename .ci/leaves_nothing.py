"""Run a command, then fail where it left a process, mount, network interface, rule or folder."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/lib", Path.home())  # noqa: S108
PATIENCE_SECONDS = 10
SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run the command; what outlives its parent becomes a child of this process."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = surroundings()
    code = run(command)
    left = [*processes_left(), *sorted(surroundings() - before)]
    if left:
        sys.exit("left behind:\n  " + "\n  ".join(left))
    return code


def run(command: list[str]) -> int:
    started = os.posix_spawnp(command[0], command, os.environ)
    while True:
        ended, status = os.wait()
        if ended == started:
            return os.waitstatus_to_exitcode(status)


def surroundings() -> set[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = {f"mount {line.split()[1]}" for line in mounts}
    found |= {f"network interface {path.name}" for path in Path("/sys/class/net").iterdir()}
    for folder in FOLDERS:
        found |= {f"folder {path}" for path in Path(folder).iterdir() if path.is_dir()}
    if iptables := shutil.which("iptables-save"):
        rules = subprocess.run([iptables], capture_output=True, text=True).stdout
        found |= {f"rule {line}" for line in re.findall(r"^(?::\S+(?= - )|-A .*)", rules, re.M)}
    return found


def processes_left() -> list[str]:
    """Name the children that do not end soon by themselves, and end them."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    left = {}
    while found := children():
        for child in found:
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
            left[child] = f"process {child}: {command.decode(errors='replace')}"
            os.kill(int(child), signal.SIGKILL)
        time.sleep(0.1)
    return list(left.values())


def children() -> list[str]:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    return Path("/proc/thread-self/children").read_text().split()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

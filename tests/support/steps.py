"""Run one cycle that is struck right before or after one of its steps.

    steps.py "after outbox:write" kill       the process kills itself there
    steps.py "before outbox:write 2" FOLDER  at the second call it makes FOLDER/reached and waits
                                             there for FOLDER/go
    steps.py "" ""                           nothing happens
    steps.py many                            at a line of standard input a cycle starts and its pid
                                             is printed, at the next its end is awaited and its
                                             status printed, and so on

Further arguments such as connection:RECONNECT_SECONDS=2 replace constants: a test cannot wait.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import heartbeat_public

# What a step's name begins with, and where that is.
MODULES = {
    "heartbeat": "heartbeat_public",
    "cycle": "catalyst_heartbeat.cycle",
    "run": "catalyst_heartbeat.executor.run",
    "connection": "catalyst_heartbeat.queue.connection",
    "claims": "catalyst_heartbeat.queue.claims",
    "state": "catalyst_heartbeat.queue.state",
    "apply": "catalyst_heartbeat.files.apply",
    "backups": "catalyst_heartbeat.files.backups",
    "changelog": "catalyst_heartbeat.files.changelog",
    "replace": "catalyst_heartbeat.files.replace",
    "command": "catalyst_heartbeat.host.command",
    "containers": "catalyst_heartbeat.host.containers",
    "outbox": "catalyst_heartbeat.queue.outbox",
    "recovery": "catalyst_heartbeat.queue.recovery",
}


def main(step: str, action: str, constants: list[str]) -> int:
    if step:
        arm(step, action)
    for constant in constants:
        name, _, value = constant.partition("=")
        place, attribute = holder(name)
        setattr(place, attribute, json.loads(value))
    return heartbeat_public.main([])


def arm(step: str, action: str) -> None:
    """Put the strike before or after the n-th call of a function."""
    when, name, *rest = step.split()
    calls_left = int(rest[0]) if rest else 1
    place, attribute = holder(name)
    original = getattr(place, attribute)

    @functools.wraps(original)
    def struck(*arguments: Any, **named: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if when == "before" and calls_left == 0:
            strike(action)
        result = original(*arguments, **named)
        if when == "after" and calls_left == 0:
            strike(action)
        return result

    setattr(place, attribute, struck)


def holder(name: str) -> tuple[Any, str]:
    """Return what holds a name such as "outbox:os.fsync", and its last part."""
    module, _, path = name.partition(":")
    *parents, attribute = path.split(".")
    place: Any = importlib.import_module(MODULES[module])
    for parent in parents:
        place = getattr(place, parent)
    return place, attribute


def strike(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    folder = Path(action)
    (folder / "reached").touch()
    test = os.getppid()
    while not (folder / "go").exists() and os.getppid() == test:
        time.sleep(0.01)


def many() -> int:
    """Fork a cycle again and again, so that no time goes by with imports."""
    for module in MODULES.values():
        importlib.import_module(module)
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            os._exit(heartbeat_public.main([]))
        print(pid, flush=True)  # noqa: T201
        sys.stdin.readline()  # until then its pid stays its own, so that it may be killed
        print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(many() if sys.argv[1] == "many" else main(sys.argv[1], sys.argv[2], sys.argv[3:]))

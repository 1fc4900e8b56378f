"""The nursery's own process: forks heartbeats, and strikes one before or after one of its steps.

The step "after the keeping" with the action "kill": the process kills itself there. The step
"before the keeping 2" with a folder as action: at the second call it makes FOLDER/reached and
waits there for FOLDER/go. Constants such as RECONNECT_SECONDS=2 are replaced: a test
cannot wait.

Orders come as packets, each with descriptors for stdout, stderr and the child's keeper, who says
the child's pid and later how it ended.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import heartbeat_public

# What is called at each step.
STEPS = {
    "the cycle": "heartbeat_public:run_cycle",
    "the waking": "catalyst_heartbeat.queue.state:wake",
    "the claim": "catalyst_heartbeat.queue.claims:claim_next",
    "the run": "catalyst_heartbeat.executor.run:execute",
    "the reading of a command": "catalyst_heartbeat.host.command:read_streams",
    "the swap": "catalyst_heartbeat.files.apply:swap_file",
    "the renaming": "catalyst_heartbeat.files.replace:put",
    "the mark in the history": "catalyst_heartbeat.files.backups:mark_applied",
    "the changelog": "catalyst_heartbeat.files.changelog:append_entry",
    "the restart": "catalyst_heartbeat.host.containers:restart",
    "the report": "catalyst_heartbeat.queue.outbox:store",
    "the report with the next claim": "catalyst_heartbeat.queue.claims:finish_and_claim_next",
    "the keeping": "catalyst_heartbeat.queue.outbox:write",
    "the writing of what is kept": "catalyst_heartbeat.queue.outbox:json.dump",
    "the sync of the outbox": "catalyst_heartbeat.queue.outbox:sync_folder",
    "the delivery": "catalyst_heartbeat.queue.endings:finish",
    "the take-over": "catalyst_heartbeat.queue.claims:claim_interrupted",
    "the finding": "catalyst_heartbeat.queue.recovery:find_outcome",
    "the release": "catalyst_heartbeat.queue.endings:release",
    "the rest": "catalyst_heartbeat.queue.state:rest",
}
# Where the constants are that a test replaces.
CONSTANTS = {
    "ANSWER_SECONDS": "catalyst_heartbeat.queue.connection",
    "RECONNECT_SECONDS": "catalyst_heartbeat.queue.connection",
    "STATEMENT_LIMIT": "catalyst_heartbeat.queue.connection",
    "LATEST_START_SECONDS": "catalyst_heartbeat.cycle",
}
# What a heartbeat imports only where there is something to do.
LATE = ("catalyst_heartbeat.commands.options", "docker")
ORDER_BYTES = 100_000


def serve(orders: socket.socket) -> int:
    """Fork a heartbeat for each order; return in the child, or after the last order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    for called in (*STEPS.values(), *LATE):
        importlib.import_module(called.partition(":")[0])
    gc.freeze()
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES, 3)
        if not order:
            return 0
        if os.fork() == 0:
            orders.close()
            return keep(json.loads(order), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def keep(order: dict[str, Any], stdout: int, stderr: int, status: int) -> int:
    """Be the heartbeat, and its keeper."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.close(stdout)
        os.close(stderr)
        os.write(status, b"%d" % pid)
        os.write(status, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in (stdout, stderr, status):
        os.close(descriptor)
    # As Python makes them at its start, which looks at what they write to.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    return run(order["arguments"], order["step"], order["action"], order["constants"])


def run(arguments: list[str], step: str, action: str, constants: list[str]) -> int:
    if step:
        arm(step, action)
    for constant in constants:
        name, _, value = constant.partition("=")
        setattr(importlib.import_module(CONSTANTS[name]), name, json.loads(value))
    return heartbeat_public.main(arguments)


def arm(step: str, action: str) -> None:
    """Put the strike before or after the n-th call of a function."""
    when, _, rest = step.partition(" ")
    name = rest.rstrip(" 0123456789")
    calls_left = int(rest[len(name) :] or 1)
    place, attribute = holder(STEPS[name])
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


def holder(called: str) -> tuple[Any, str]:
    """Return what holds something such as "module:os.fsync", and its last part."""
    module, _, path = called.partition(":")
    *parents, attribute = path.split(".")
    place: Any = importlib.import_module(module)
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


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))

"""Checks the syntax of a file in a child with limits; nothing of the file is executed."""

from __future__ import annotations

import os
import re
import resource
import sys
import time

from catalyst_heartbeat.host.command import Command, run_command
from catalyst_heartbeat.outcome import TaskFailed

WALL_SECONDS = 15.0
CPU_SECONDS = 10
MEMORY_BYTES = 1024 * 1024 * 1024
WRITTEN_BYTES = 0
# In isolation, without site: no PYTHONPATH, no sitecustomize, no .pth file runs here. The file
# must mean the same to Python and to whoever reads it as UTF-8, so a cookie may not bend it.
PYTHON_CHECK = """
import io, sys, tokenize, warnings
warnings.simplefilter("ignore")
source = sys.stdin.buffer.read()
try:
    # Python ends a line at a lone carriage return too, and reads a cookie behind it.
    lines = io.BytesIO(source.replace(b"\\r\\n", b"\\n").replace(b"\\r", b"\\n"))
    encoding = tokenize.detect_encoding(lines.readline)[0]
    if source.decode(encoding) != source.decode("utf-8-sig"):
        sys.exit(f"it declares the encoding {encoding} but is UTF-8")
    compile(source, "file", "exec", dont_inherit=True)
except SyntaxError as error:
    sys.exit(f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg))
except Exception as error:
    sys.exit(f"it cannot be compiled: {type(error).__name__}")
"""
BASH = ("/bin/bash", "--norc", "--noprofile", "-n")
# Patterns such as !(a|b) are a syntax error until the script itself, when run, turns them on.
BASH_EXTGLOB = (*BASH, "-O", "extglob")
CHECKERS = {".py": (sys.executable, "-I", "-S", "-c", PYTHON_CHECK), ".sh": BASH}
# For bash this is a mere warning, but a script that was cut off within a here-document ends so.
UNENDED = re.compile(r"here-document .*delimited by end-of-file")


def check_syntax(descriptor: int, path: str, deadline: float) -> None:
    """Check an open file by the extension of its path; raise TaskFailed with the line.

    `deadline` is on the clock of `time.monotonic()`.
    """
    checker = CHECKERS.get(os.path.splitext(path)[1])
    if checker is None:
        return
    os.lseek(descriptor, 0, os.SEEK_SET)
    limit = min(deadline, time.monotonic() + WALL_SECONDS)
    command = run_command(checker, limit, stdin=descriptor, before=limit_resources)
    if command.code > 0 and checker == BASH and uses_extglob(descriptor):
        os.lseek(descriptor, 0, os.SEEK_SET)
        command = run_command(BASH_EXTGLOB, limit, stdin=descriptor, before=limit_resources)
    if command.code == 0 and UNENDED.search(command.stderr):
        raise TaskFailed(f"syntax error {complaint(command)}")
    if command.code < 0:
        raise TaskFailed(f"cannot check the syntax: the checker died of signal {-command.code}")
    if command.code != 0:
        raise TaskFailed(f"syntax error {complaint(command)}")


def uses_extglob(descriptor: int) -> bool:
    return b"shopt -s extglob" in os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def limit_resources() -> None:
    """Bound what the child may use: a hostile file must not take the host with it."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, WRITTEN_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def complaint(command: Command) -> str:
    """Return "in line 3: ..." from the checker's first complaint that names a line."""
    found = re.search(r"\bline ([0-9]+): (.*)", command.stderr)
    if found:
        return f"in line {found[1]}: {found[2].removeprefix('syntax error').lstrip(': ')}"
    lines = command.stderr.strip().splitlines()
    return f"in the file: {lines[-1] if lines else 'the checker does not say where'}"

"""Checks that a script could start and its syntax, in a child with limits; nothing is executed."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from functools import lru_cache

from catalyst_heartbeat.host.command import COMMAND_ENVIRONMENT, Command, run_command
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
# Whose scripts these checkers can judge; bash reads what is written for sh.
INTERPRETERS = {
    ".py": re.compile(rf"python(3(\.{sys.version_info[1]})?)?"),
    ".sh": re.compile("bash|sh|dash"),
}
# Where env would find a program: what cron searches, and where the Python of this program lies.
PROGRAMS = os.pathsep.join(
    (
        COMMAND_ENVIRONMENT["PATH"],
        "/usr/local/bin",
        os.path.dirname(os.path.realpath(sys.executable)),
    )
)
# What the kernel reads of a script's beginning, its own sign for the end left out (execve(2)).
LONGEST_FIRST_LINE = 255
# env -S splits what the kernel passes as one argument; before the program may stand its settings.
ENV_SPLIT = re.compile(r"(?:-[iv]*S|--split-string=)\s*(?:(?:-[iv]+|-u\s*\S+|\w+=\S*)\s+)*(\S+)")
# For bash this is a mere warning, but a script that was cut off within a here-document ends so.
UNENDED = re.compile(r"here-document .*delimited by end-of-file")


def check_syntax(descriptor: int, path: str, deadline: float) -> None:
    """Check an open file by the extension of its path; raise TaskFailed with the line.

    `deadline` is on the clock of `time.monotonic()`.
    """
    extension = os.path.splitext(path)[1]
    checker = CHECKERS.get(extension)
    if checker is None:
        return
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    check_start(content.decode(), extension)
    limit = min(deadline, time.monotonic() + WALL_SECONDS)
    command = run_checker(checker, descriptor, limit)
    if command.code > 0 and checker == BASH and b"shopt -s extglob" in content:
        command = run_checker(BASH_EXTGLOB, descriptor, limit)
    if command.code < 0:
        raise TaskFailed(f"cannot check the syntax: the checker died of signal {-command.code}")
    if command.code != 0 or UNENDED.search(command.stderr):
        raise TaskFailed(
            f"syntax error {complaint(command)} (checked with {checked_with(extension)})"
        )


def run_checker(checker: tuple[str, ...], descriptor: int, limit: float) -> Command:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return run_command(checker, limit, stdin=descriptor, before=limit_resources)


def checked_with(extension: str) -> str:
    """Name what checks the syntax of such files; empty where nothing does."""
    if extension == ".py":
        return f"Python {sys.version.split()[0]}"
    return f"bash {bash_version()}" if extension == ".sh" else ""


@lru_cache(maxsize=1)
def bash_version() -> str:
    printed = run_command((BASH[0], "--version"), time.monotonic() + WALL_SECONDS).stdout
    found = re.search(r"version ([0-9.]+)", printed)
    return found[1] if found else "of an unknown version"


def check_start(text: str, extension: str) -> None:
    """Raise TaskFailed for a script that could not start, or that another program would read."""
    first = text.split("\n", 1)[0]
    start = text.lstrip("\ufeff \t\r\n")
    marked = extension == ".sh" and text.startswith("\ufeff")
    if marked or (start.startswith("#!") and start != text):
        what = "a byte order mark" if text.startswith("\ufeff") else "a blank or a line end"
        raise TaskFailed(f"refused: {what} stands before its beginning, so it could not start")
    if first.startswith("#!"):
        check_interpreter(first, extension)
    ended = text if extension == ".sh" else f"{first}\n" * first.startswith("#!")
    if "\r\n" in ended:
        line = text.count("\n", 0, text.index("\r\n")) + 1
        raise TaskFailed(
            f"syntax error in line {line}: it ends in a carriage return (CRLF), which becomes part "
            "of what is called; write the file with plain line ends"
        )


def check_interpreter(first: str, extension: str) -> None:
    """Check the line that names the interpreter, as the kernel and env read it."""
    if (length := len(first.encode())) > LONGEST_FIRST_LINE:
        raise TaskFailed(
            f"refused: its first line has {length} bytes; the kernel reads {LONGEST_FIRST_LINE}"
        )
    path, _, argument = first[2:].replace("\t", " ").strip(" \r").partition(" ")
    argument = argument.strip()
    split = ENV_SPLIT.match(argument) if os.path.basename(path) == "env" else None
    if " " in argument and not split:
        raise TaskFailed(
            f'refused: its first line passes "{argument}" as one argument, so it could not start; '
            "#!/usr/bin/env -S splits it"
        )
    program = path
    if os.path.basename(path) == "env":
        program = split[1] if split else argument
    if not INTERPRETERS[extension].fullmatch(os.path.basename(program)):
        raise TaskFailed(
            f'refused: its first line names "{program}", but the syntax of a {extension} file '
            f"is checked with {checked_with(extension)}"
        )
    for needed in {path, program}:
        found = shutil.which(needed, path=PROGRAMS)
        if not found or (needed == path and not path.startswith("/")):
            raise TaskFailed(f'refused: its first line names "{needed}", which is not there')


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

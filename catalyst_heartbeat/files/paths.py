"""Which paths may be named at all, and which are the program's own files."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.host.beneath import closing
from catalyst_heartbeat.settings import Settings

EXTENSIONS = (".py", ".sh", ".md")
MOST_PATH_BYTES = 4095
MOST_NAME_BYTES = 255
# Letters that no shell, archive, URL or log gives a second meaning; no leading "-", no outer blank.
FIRST, LAST, INNER = "[A-Za-z0-9_.+@,=]", "[A-Za-z0-9_.+@,=-]", "[A-Za-z0-9_.+@,= -]"
NAME = f"{FIRST}(?:{INNER}*{LAST})?"

PROGRAM_FOLDER = program_settings.PROGRAM_FOLDER
# Under another name, or behind a link, it still is what runs this program.
VIRTUAL_ENVIRONMENT = sys.prefix if sys.prefix != sys.base_prefix else f"{PROGRAM_FOLDER}/.venv"
OWN_NAMES = (
    ".*",
    "README.md",
    "benchmarks",
    "catalyst_heartbeat",
    "crontab.example",
    "docs",
    "heartbeat_public.py",
    "pyproject.toml",
    "requirements*",
    "run-heartbeat-public.sh",
    "task_executor.py",
    "tests",
)
# What tells an installation of this program from another program's file of the same name.
BESIDE_IT = ("catalyst_heartbeat", "task_executor.py", "run-heartbeat-public.sh")


def check_path(path: str, info: ValidationInfo) -> str:
    """Check the grammar of a path; the settings are the validation's context."""
    settings: Any = info.context
    fault = path_fault(path, settings)
    if fault:
        places = ", ".join(settings.allowed_paths)
        known = f"allowed are {', '.join(EXTENSIONS)} files beneath one of: {places}"
        raise PydanticCustomError("path", "{fault}; {known}", {"fault": fault, "known": known})
    return path


FilePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MOST_PATH_BYTES,
        description=(
            "Absolute path of the file: beneath one of the allowed folders, ending in .py, .sh or "
            '.md, without links, "." or ".."; names of letters, digits, blanks and _.+@,=-'
        ),
        json_schema_extra={"pattern": "allowed_paths"},
    ),
    AfterValidator(check_path),
]


def path_fault(path: str, settings: Settings) -> str | None:
    """Say which rule a path breaks, or None; nothing is looked up on disk."""
    names = path.split("/")[1:]
    if not path.startswith("/"):
        return "the path must be absolute"
    if len(path.encode()) > MOST_PATH_BYTES:
        return f"the path must not be longer than {MOST_PATH_BYTES} bytes"
    if {"", ".", ".."} & set(names):
        return 'the path must not have empty, "." or ".." parts'
    if root_of(path, settings) is None:
        return "the path must lie beneath an allowed folder"
    if not all(re.fullmatch(NAME, name) for name in names):
        return (
            "every part of the path must consist of letters, digits, blanks and _.+@,=- "
            "and neither begin with - or a blank nor end with a blank"
        )
    if max(map(len, names)) > MOST_NAME_BYTES:
        return f"no part of the path may be longer than {MOST_NAME_BYTES} bytes"
    if os.path.splitext(names[-1])[1] not in EXTENSIONS:
        return "the file's name must end in an allowed extension"
    return None


def root_of(path: str, settings: Settings) -> str | None:
    """Return the allowed folder that a path lies beneath."""
    return next((root for root in settings.allowed_paths if path.startswith(f"{root}/")), None)


def own_file(path: str, settings: Settings) -> str | None:
    """Say why changing a file needs a person: it is one of this program's own; else None.

    Files are told by where they lie in their file system, whatever it is mounted as; case does
    not count.
    """
    place = location(path)
    names = [part for shown in (path, place) for part in shown.casefold().split("/")]
    if "run-heartbeat-public.sh" in names:
        return f"{path} is what cron starts"
    if any(name == ".git" or name.startswith(".venv") for name in names):
        return f"{path} is part of a Git folder or a virtual environment"
    kept = {
        "the backup folder": settings.backup_dir,
        "the changelog": settings.changelog_path,
        "the state folder": settings.state_dir,
        "the virtual environment": VIRTUAL_ENVIRONMENT,
    }
    for what, own in kept.items():
        if within(place, location(own)) is not None:
            return f"{path} is part of {what}"
    for folder in installations(path, place):
        name = within(place, location(folder))
        if name and any(fnmatchcase(name.split("/")[0], own.casefold()) for own in OWN_NAMES):
            return f"{path} is part of this program"
        if name and not os.path.lexists(path):
            return f"{path} would be a new file in this program's folder {folder}"
    return None


def installations(path: str, place: str) -> Iterator[str]:
    """Yield the program's own folder, and each above the file that holds this program too."""
    yield PROGRAM_FOLDER
    for shown in (real_path(path), *paths_of(place)):
        for folder in map(str, PurePath(shown).parents):
            beside = (os.path.exists(f"{folder}/{name}") for name in BESIDE_IT)
            if os.path.exists(f"{folder}/heartbeat_public.py") and any(beside):
                yield folder


def within(place: str, folder: str) -> str | None:
    """Return the path from the folder down to the place, "" for itself, None beyond it."""
    place, folder = f"{place.casefold()}/", f"{folder.casefold()}/"
    return place[len(folder) : -1] if place.startswith(folder) else None


def location(path: str) -> str:
    """Return the device of what a path leads to, and the path within its file system.

    A bind mount, or a second mount of the same file system, shows a file under another path; this
    is the same for both. What does not exist yet is located by the folder above it.
    """
    real, rest = real_path(path), ""
    while not os.path.lexists(real):
        real, name = os.path.split(real)
        rest = f"/{name}{rest}"
    try:
        device, inside = location_of_existing(real)
    except OSError:  # it went away, or there is no /proc
        device, inside = "", real
    return f"{device}:{inside.rstrip('/')}{rest}"


def real_path(path: str) -> str:
    """Follow the links of a path; the path as it is where one goes away meanwhile."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def location_of_existing(path: str) -> tuple[str, str]:
    with closing(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as descriptor:
        shown = os.readlink(f"/proc/self/fd/{descriptor}")
        number = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("mnt_id:")[1].split()[0]
    for mount in mounts():
        if mount.number == number:
            return mount.device, mount.root + shown[len(mount.point) :]
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def paths_of(place: str) -> Iterator[str]:
    """Yield every path under which a place can be reached, whatever is mounted where."""
    device, _, inside = place.partition(":/")
    for mount in mounts():
        if mount.device == device and f"/{inside}/".startswith(f"{mount.root}/"):
            yield mount.point + f"/{inside}"[len(mount.root) :]


class Mount(NamedTuple):
    """A line of mountinfo: which folder of which device is shown where."""

    number: str
    device: str
    root: str
    point: str


def mounts() -> list[Mount]:
    """Return what is mounted; nothing where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    fields = (line.split(" ") for line in lines)
    return [
        Mount(number, device, *(unescaped(path).rstrip("/") for path in paths))
        for number, _, device, *paths in (line[:5] for line in fields)
    ]


def unescaped(field: str) -> str:
    """Return a field of mountinfo, in which blanks stand as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)

"""Which paths may be named at all, and which are the program's own files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from catalyst_heartbeat import settings as program_settings
from catalyst_heartbeat.settings import Settings

EXTENSIONS = (".py", ".sh", ".md")
MOST_PATH_BYTES = 4095
MOST_NAME_BYTES = 255
# Letters that no shell, archive, URL or log gives a second meaning; no leading "-", no outer blank.
FIRST, LAST, INNER = "[A-Za-z0-9_.+@,=]", "[A-Za-z0-9_.+@,=-]", "[A-Za-z0-9_.+@,= -]"
NAME = f"{FIRST}(?:{INNER}*{LAST})?"

PROGRAM_FOLDER = str(program_settings.PROGRAM_FOLDER)
# Under another name, or behind a link, it still is what runs this program.
VIRTUAL_ENVIRONMENT = sys.prefix if sys.prefix != sys.base_prefix else f"{PROGRAM_FOLDER}/.venv"
OWN_NAMES = (
    ".ci",
    ".env",
    ".env.example",
    ".git",
    ".gitignore",
    ".venv",
    "README.md",
    "benchmarks",
    "catalyst_heartbeat",
    "crontab.example",
    "docs",
    "heartbeat_public.py",
    "pyproject.toml",
    "requirements-dev.lock",
    "requirements-dev.txt",
    "requirements.lock",
    "requirements.txt",
    "run-heartbeat-public.sh",
    "task_executor.py",
    "tests",
)


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


def path_pattern(settings: Settings) -> str:
    """Return the same rules as one regular expression, for the JSON Schema of a path."""
    roots = "|".join(
        re.sub(r"([][.*+?^${}()|\\])", r"\\\1", root) for root in settings.allowed_paths
    )
    kinds = rf"\.(?:{'|'.join(extension[1:] for extension in EXTENSIONS)})"
    folder = rf"(?!\.\.?/){FIRST}(?:{INNER}{{0,{MOST_NAME_BYTES - 2}}}{LAST})?"
    file = rf"(?!\.*{kinds}$){FIRST}{INNER}{{0,{MOST_NAME_BYTES - 4}}}{kinds}"
    return f"^(?:{roots})/(?:{folder}/)*{file}$"


def root_of(path: str, settings: Settings) -> str | None:
    """Return the allowed folder that a path lies beneath."""
    return next((root for root in settings.allowed_paths if path.startswith(f"{root}/")), None)


def own_file(path: str, exists: bool, settings: Settings) -> str | None:
    """Say why changing a file needs a person: it is one of this program's own; else None."""
    names = path.casefold().split("/")
    if names[-1] == "run-heartbeat-public.sh":
        return f"{path} is what cron starts"
    if any(name == ".git" or name.startswith(".venv") for name in names):
        return f"{path} is part of a Git folder or a virtual environment"
    kept = {
        "the backup folder": settings.backup_dir,
        "the changelog": settings.changelog_path,
        "the state folder": settings.state_dir,
        "the virtual environment": VIRTUAL_ENVIRONMENT,
    }
    for what, place in kept.items():
        if is_within(path, (place, os.path.realpath(place))):
            return f"{path} is part of {what}"
    if not is_within(path, (PROGRAM_FOLDER,)):
        return None
    if is_within(path, (f"{PROGRAM_FOLDER}/{name}" for name in OWN_NAMES)):
        return f"{path} is part of this program"
    return None if exists else f"{path} would be a new file in this program's folder"


def is_within(path: str, places: Iterable[str]) -> bool:
    """Whether a path is one of these places or lies beneath one; case does not count."""
    folded = path.casefold()
    return any(f"{folded}/".startswith(f"{place.casefold()}/") for place in places)

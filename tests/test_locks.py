"""Each lock lists what its requirements need, whole, with hashes and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.postgres import PROGRAM_FOLDER

NAMES = ["requirements", "requirements-demo", "requirements-dev"]
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)(?: ; (?P<marker>.+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n",
    re.M,
)


@dataclass(frozen=True)
class Entry:
    """A package in a lock: which version of it, on which machines, in which files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def is_for_this_python(self) -> bool:
        return not self.marker or Marker(self.marker).evaluate()


def locked(name: str) -> list[Entry]:
    text = (PROGRAM_FOLDER / f"{name}.lock").read_text()
    return [
        Entry(
            found["name"],
            found["version"],
            found["marker"] or "",
            tuple(found["hashes"].split()[1::2]),
        )
        for found in ENTRY.finditer(text)
    ]


def pins(name: str) -> Iterator[Requirement]:
    for line in (PROGRAM_FOLDER / f"{name}.txt").read_text().splitlines():
        if line.startswith("-r "):
            yield from pins(line.removeprefix("-r ").removesuffix(".txt"))
        else:
            yield Requirement(line)


def needed(requirements: Iterator[Requirement]) -> dict[str, str]:
    """Return the versions installed here of these packages and of all that they bring along."""
    found: dict[str, str] = {}
    waiting = list(requirements)
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found:
            continue
        found[name] = metadata.version(name)
        wanted = [Requirement(line) for line in metadata.requires(name) or []]
        waiting += [one for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_nothing_but_hashed_entries(name: str) -> None:
    text = (PROGRAM_FOLDER / f"{name}.lock").read_text()

    rest = ENTRY.sub("", text)

    assert locked(name)
    assert all(line.startswith("#") for line in rest.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_each_pin_is_locked_in_its_version(name: str) -> None:
    versions = {(entry.name, f"=={entry.version}") for entry in locked(name)}

    wanted = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in pins(name)}

    assert wanted - versions == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_lists_all_that_its_pins_bring_along_and_no_more(name: str) -> None:
    here = {entry.name: entry.version for entry in locked(name) if entry.is_for_this_python()}

    assert here == needed(pins(name))


def test_no_two_locks_differ_in_a_package() -> None:
    everything = set(locked("requirements-dev"))

    assert set(locked("requirements")) < set(locked("requirements-demo")) < everything


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_does_not_say_where_to_get_a_package(name: str) -> None:
    text = (PROGRAM_FOLDER / f"{name}.lock").read_text()

    assert not re.search(r"://|index|(?<![.\w])/", text)

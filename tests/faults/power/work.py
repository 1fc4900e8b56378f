"""What the machine is asked for: changes of files, and what they should make of them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from support.postgres import Database, send

# Some blocks of a disk, so that a part of a file may get there.
FILLER = "filler\n" * 5000
NUMBERS = itertools.count(1)

# What a file held after each change not yet undone, the newest last; None for no file.
Versions = tuple[str | None, ...]


@dataclass(frozen=True)
class Change:
    path: str
    body: str
    apply: Callable[[Versions], Versions]


def edit(path: str) -> Change:
    new = f"edit {next(NUMBERS)}\nEND\n"
    body = task("edit_file", filepath=path, old_text="END\n", new_text=new)
    return Change(
        path, body, lambda made: (*made, made[-1].replace("END\n", new)) if made[-1] else made
    )


def write(path: str) -> Change:
    content = f"whole {next(NUMBERS)}\n{FILLER}END\n"
    body = task("write_file", filepath=path, content=content)
    return Change(path, body, lambda made: (*made, content))


def rollback(path: str) -> Change:
    body = task("rollback_file", filepath=path)
    return Change(path, body, lambda made: made[:-1] or made)


def task(name: str, **params: str) -> str:
    return f"TASK: {name}\nPARAMS: {json.dumps(params)}"


def ask(
    database: Database, files: dict[str, set[Versions]], chance: random.Random
) -> tuple[dict[int, Change], list[int]]:
    """Send a read, then changes of each file and reads, all mixed; return their messages."""
    chains = {path: [write(path), edit(path), rollback(path)] for path in files}
    for path, versions in files.items():
        if versions != {(None,)}:
            chains[path].insert(0, edit(path))
    order = [path for path, chain in chains.items() for _ in chain]
    chance.shuffle(order)
    changes: dict[int, Change] = {}
    reads: list[int] = []
    for path in order:
        if not reads or chance.random() < 0.5:
            reads.append(send(database, task("read_file", filepath=order[0])))
        change = chains[path].pop(0)
        changes[send(database, change.body)] = change
    return changes, reads

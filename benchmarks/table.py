"""The table that is printed, row by row, as each is measured."""

from __future__ import annotations


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def compare(what: str, ours: float, other: float, unit: str, target: str) -> None:
    row(what, f"{ours:.4g} {unit}", f"{other:.4g} {unit}", f"{ours / other:.2f}", target)

"""Text laid out and cut for reports, cards and logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return aligned columns, one line a row whatever the cells hold; None is shown as "-"."""
    lines = [list(header), *([cell_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cell_text(cell: Any) -> str:
    return "-" if cell is None else " ".join(str(cell).split())

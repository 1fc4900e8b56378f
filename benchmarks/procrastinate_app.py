"""A no-op job for procrastinate, run by its own worker."""

from __future__ import annotations

import os
import sys

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCHMARK_URL"]))


@app.task(name="no_op")
def no_op() -> None:
    """Do nothing."""


def fill(count: int) -> None:
    with app.open():
        no_op.batch_defer(*[{}] * count)


if __name__ == "__main__":
    fill(int(sys.argv[1]))

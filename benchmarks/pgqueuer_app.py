"""A no-op job for pgqueuer: with a number, puts so many into its queue; without, drains it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from pgqueuer import Job, PgQueuer
from pgqueuer.types import QueueExecutionMode


@asynccontextmanager
async def create() -> AsyncIterator[PgQueuer]:
    url = os.environ["BENCHMARK_URL"]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        queue = PgQueuer.from_psycopg_connection(conn)

        @queue.entrypoint("no_op")
        async def no_op(job: Job) -> None:
            pass

        yield queue


async def fill(count: int) -> None:
    async with create() as queue:
        await queue.qm.queries.enqueue(["no_op"] * count, [None] * count, [0] * count)


async def drain() -> None:
    async with create() as queue:
        await queue.run(mode=QueueExecutionMode.drain)


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1])) if sys.argv[1:] else drain())

"""PgQueuer under measurement: every table logged, each task awaits its own enqueue, jobs taken in hundreds.

It handles without deduplication.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from .alone import Stamped, one_by_one
from .ours import SLOTS, Order, order, sent_by_tasks

_NAME = "orders"
_CONNECTIONS = 10
"""As many as ours has at most."""


def throughput(engine: str, url: str, messages: int) -> dict[str, float]:
    """As `ours.throughput`."""

    async def main() -> dict[str, float]:
        async with _queries(url) as queries:
            await queries.install()
            bodies = [order(number) for number in range(messages)]
            figures = await sent_by_tasks(bodies, lambda one: queries.enqueue(_NAME, msgspec.json.encode(one)))
            manager = _manager(queries)
            left = messages
            decode = msgspec.json.Decoder(Order).decode

            @manager.entrypoint(_NAME)
            async def handle(job: Any) -> None:
                nonlocal left
                decode(job.payload)
                left -= 1
                if not left:
                    manager.shutdown.set()

            began, used = time.perf_counter(), time.process_time()
            await manager.run(batch_size=SLOTS)
            return figures | {
                "handled_per_s": messages / (time.perf_counter() - began),
                "handle_cpu_us": (time.process_time() - used) / messages * 1e6,
            }

    return asyncio.run(main())


def handle(engine: str, url: str, messages: int, ready: str) -> dict[str, list[float]]:
    """As `alone.handle`."""

    async def main() -> dict[str, list[float]]:
        took: list[float] = []
        async with _queries(url) as queries:
            await queries.install()
            manager = _manager(queries)
            decode = msgspec.json.Decoder(Stamped).decode

            @manager.entrypoint(_NAME)
            async def note(job: Any) -> None:
                took.append((time.monotonic_ns() - decode(job.payload).sent_at) / 1e6)
                if len(took) == messages:
                    manager.shutdown.set()

            Path(ready).touch()
            await manager.run(batch_size=SLOTS, dequeue_timeout=timedelta(seconds=5))
        return {"took_ms": took}

    return asyncio.run(main())


def send(engine: str, url: str, messages: int) -> dict[str, list[float]]:
    """As `alone.send`."""

    async def main() -> dict[str, list[float]]:
        async with _queries(url) as queries:
            return await one_by_one(messages, lambda one: queries.enqueue(_NAME, msgspec.json.encode(one)))

    return asyncio.run(main())


@asynccontextmanager
async def _queries(url: str) -> AsyncIterator[Any]:
    import asyncpg
    from pgqueuer.db import AsyncpgPoolDriver
    from pgqueuer.queries import Queries

    logging.disable(logging.WARNING)
    async with asyncpg.create_pool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool:
        yield Queries(AsyncpgPoolDriver(pool))


def _manager(queries: Any) -> Any:
    from pgqueuer.qm import QueueManager

    return QueueManager(queries)

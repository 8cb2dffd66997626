"""Handlers with `within=` on PostgreSQL, beside the same work with a transaction of its own and no bus.

Both do one INSERT for each message and commit it by itself, in as many tasks as connections. Without the bus the tasks
take their work from a list in memory, and forget it: what a message costs is all that is between the two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from easybus import Bus

from . import children, machine
from .ours import PAYLOAD, Order, order
from .report import Figure
from .servers import running

SLOTS = 20
"""Messages at work at once, tasks without the bus, and connections of either."""
_WARM = 10 * SLOTS
"""Handled before the clock starts: connections are open, statements prepared."""
_TABLE = "DROP TABLE IF EXISTS effect; CREATE TABLE effect (id bigint PRIMARY KEY, note text NOT NULL)"
_INSERT = "INSERT INTO effect VALUES ($1, $2)"
LIBRARIES = {"asyncpg": "asyncpg", "sqlalchemy": "SQLAlchemy's AsyncSession on asyncpg"}

Work: TypeAlias = Callable[[Order], Awaitable[None]]


class Base(DeclarativeBase):
    """What handlers write."""


class Effect(Base):
    __tablename__ = "effect"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


@asynccontextmanager
async def _pool(database: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(database, min_size=SLOTS, max_size=SLOTS) as pool:
        yield pool


@asynccontextmanager
async def _sessions(database: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    url = f"postgresql+asyncpg://{database.partition('://')[2]}"
    engine = create_async_engine(url, pool_size=SLOTS, max_overflow=0)
    yield async_sessionmaker(engine)
    await engine.dispose()


async def _fresh(database: str) -> None:
    connection: Any = await asyncpg.connect(database)
    await connection.execute(_TABLE)
    await connection.close()


async def _written(database: str, number: int) -> None:
    connection: Any = await asyncpg.connect(database)
    found = await connection.fetchval("SELECT count(*) FROM effect")
    await connection.close()
    if found != number:
        raise RuntimeError(f"{number} effects were to be there, {found} are")


def without_bus(database: str, library: str, messages: int) -> dict[str, float]:
    """A transaction for each, in concurrent tasks that share a list of work."""

    async def main() -> dict[str, float]:
        await _fresh(database)
        async with (_pool if library == "asyncpg" else _sessions)(database) as source:

            async def with_asyncpg(given: Order) -> None:
                async with source.acquire() as connection, connection.transaction():
                    await connection.execute(_INSERT, given.id, given.note)

            async def with_sqlalchemy(given: Order) -> None:
                async with source() as session, session.begin():
                    session.add(Effect(id=given.id, note=given.note))

            work = with_asyncpg if library == "asyncpg" else with_sqlalchemy
            await _all(work, [order(number) for number in range(_WARM)])
            orders = [order(number) for number in range(_WARM, _WARM + messages)]
            began, used = time.perf_counter(), time.process_time()
            await _all(work, orders)
            figures = _figures(messages, began, used)
        await _written(database, messages + _WARM)
        return figures

    return asyncio.run(main())


async def _all(work: Work, orders: list[Order]) -> None:
    async def task() -> None:
        while orders:
            await work(orders.pop())

    await asyncio.gather(*(task() for _ in range(SLOTS)))


def _figures(messages: int, began: float, used: float) -> dict[str, float]:
    return {
        "per_s": messages / (time.perf_counter() - began),
        "cpu_us": (time.process_time() - used) / messages * 1e6,
    }


def with_bus(url: str, library: str, messages: int) -> dict[str, float]:
    """The same work in handlers, exactly once; messages and effects are in one database."""
    database = url.partition("?")[0]

    async def main() -> dict[str, float]:
        await _fresh(database)
        bus = Bus(url)
        queue = bus.queue("orders", Order)
        left = messages + _WARM
        began = used = 0.0
        all_handled = asyncio.Event()

        def count() -> None:
            nonlocal left, began, used
            left -= 1
            if left == messages:
                began, used = time.perf_counter(), time.process_time()
            elif not left:
                all_handled.set()

        if library == "asyncpg":

            @queue.handler(within=asyncpg.Connection, concurrency=SLOTS)
            async def write(given: Order, connection: asyncpg.Connection) -> None:
                await connection.execute(_INSERT, given.id, given.note)
                count()

        async with _sessions(database) as sessions:
            if library == "sqlalchemy":

                @queue.handler(within=sessions, concurrency=SLOTS)
                async def add(given: Order, session: AsyncSession) -> None:
                    session.add(Effect(id=given.id, note=given.note))
                    count()

            async with bus:
                orders = [order(number) for number in range(messages + _WARM)]
                for first in range(0, len(orders), 1000):
                    await queue.send_many(orders[first : first + 1000])
                async with bus.handling():
                    await all_handled.wait()
                # Leaving waits until the last one is committed and acked: that belongs to it.
                figures = _figures(messages, began, used)
        await _written(database, messages + _WARM)
        return figures

    return asyncio.run(main())


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {}
    speeds: list[dict[str, float]] = []
    with running("postgresql", directory) as server:
        for number in range(rounds):
            speeds.append(machine.speed(directory))
            for library in LIBRARIES:
                plain = children.run(
                    "exactly_once", "without_bus", database=server.peers(), library=library, messages=messages
                )
                ours = children.run("exactly_once", "with_bus", url=server.peers(), library=library, messages=messages)
                for who, found in (("plain", plain), ("ours", ours)):
                    for name, value in found.items():
                        seen.setdefault(f"{library} {who} {name}", []).append(value)
                seen.setdefault(f"{library} ratio", []).append(ours["per_s"] / plain["per_s"])
                say(
                    f"round {number + 1} of {rounds}, {library}: {ours['per_s']:,.0f}/s, {ours['cpu_us']:.0f} µs; "
                    f"without the bus {plain['per_s']:,.0f}/s, {plain['cpu_us']:.0f} µs"
                )
        speeds.append(machine.speed(directory))
    title = (
        f"Exactly once on postgresql://, fsync and synchronous_commit on: {messages} messages of {PAYLOAD} bytes, each "
        f"one INSERT and one commit, in {SLOTS} slots; without the bus the same in {SLOTS} tasks that share a list in "
        f"memory, on a pool of {SLOTS} connections; {rounds} interleaved rounds."
    )
    figures: list[Figure] = []
    for library, shown in LIBRARIES.items():
        figures += [
            Figure(f"exactly once over no bus, {shown}", seen[f"{library} ratio"], "×", at_least=0.7),
            Figure(f"{shown}, exactly once", seen[f"{library} ours per_s"], "/s"),
            Figure(f"{shown}, no bus", seen[f"{library} plain per_s"], "/s"),
            Figure(f"{shown}, exactly once: the client's processor time", seen[f"{library} ours cpu_us"], "µs"),
            Figure(f"{shown}, no bus: the client's processor time", seen[f"{library} plain cpu_us"], "µs"),
        ]
    return title, figures, speeds

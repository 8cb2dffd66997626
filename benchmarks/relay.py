"""Messages that ride in callers' transactions: from the commit to the handler, and how fast many of them leave."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from easybus import Bus

from . import children, machine
from .ours import PAYLOAD, Order, order
from .report import Figure
from .servers import running

ENGINES = {"sqlite": "sqlite:///", "postgresql": "postgresql://", "mysql": "mysql:// (MariaDB)"}
_READY = "ready"
_IN_ONE = 500
"""Rows that `send_many` is given at once."""

Change: TypeAlias = Callable[[], Awaitable[None]]


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[tuple[Any, Change, Change]]:
    """A user's own connection, its begin and its commit."""
    address = url.partition("?")[0]
    if address.startswith("sqlite"):
        import apsw

        file = apsw.Connection(address.removeprefix("sqlite:///"))
        file.set_busy_timeout(30_000)

        async def run(statement: str) -> None:
            file.execute(statement)

        yield file, lambda: run("BEGIN IMMEDIATE"), lambda: run("COMMIT")
        file.close()
    elif address.startswith("postgresql"):
        import asyncpg

        connection: Any = await asyncpg.connect(address)
        transaction: Any = None

        async def begin() -> None:
            nonlocal transaction
            transaction = connection.transaction()
            await transaction.start()

        async def commit() -> None:
            await transaction.commit()

        yield connection, begin, commit
        await connection.close()
    else:
        from urllib.parse import urlsplit

        import asyncmy

        parts = urlsplit(address)
        link: Any = await asyncmy.connect(
            host=parts.hostname, port=parts.port, user=parts.username, password=parts.password, db=parts.path[1:]
        )
        yield link, link.begin, link.commit
        await link.ensure_closed()


def alone(url: str, messages: int, ready: str, handles: bool, sends: bool) -> dict[str, dict[str, int]]:
    """Messages one by one: when each COMMIT was asked for, and when each arrived, by the host's monotonic clock."""
    committed: dict[str, int] = {}
    arrived: dict[str, int] = {}

    async def main() -> None:
        bus = Bus(url)
        queue = bus.queue("orders", Order)
        all_arrived = asyncio.Event()

        if handles:

            @queue.handler(concurrency=10)
            async def note(given: Order) -> None:
                arrived[str(given.id)] = time.monotonic_ns()
                if len(arrived) == messages:
                    all_arrived.set()

        async with bus.handling() if handles else bus:
            if not sends:
                Path(ready).touch()
            else:
                async with _connection(url) as (connection, begin, commit):
                    for number in range(messages):
                        await asyncio.sleep(random.uniform(0.01, 0.03))
                        await begin()
                        await queue.send(order(number), within=connection)
                        committed[str(number)] = time.monotonic_ns()
                        await commit()
            if handles:
                await asyncio.wait_for(all_arrived.wait(), 300)
            elif sends:
                while await bus.outboxes[0].find(limit=1):
                    await asyncio.sleep(0.02)

    asyncio.run(main())
    return {"committed": committed, "arrived": arrived}


def backlog(url: str, transactions: int, rows: int) -> dict[str, float]:
    """Transactions of so many rows each are there; then a bus is opened: the rate at which its relay publishes them."""

    async def main() -> dict[str, float]:
        sender = Bus(url, service="idle")  # its relay looks for rows of its own service
        queue = sender.queue("orders", Order)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(sender)
            await queue.send(order(0))
            connection, begin, commit = await stack.enter_async_context(_connection(url))
            sender.service = "shop"
            for _ in range(transactions):
                await begin()
                for first in range(0, rows, _IN_ONE):
                    some = range(first, min(rows, first + _IN_ONE))
                    await queue.send_many([order(number) for number in some], within=connection)
                await commit()
            sender.service = "idle"
        bus = Bus(url, service="shop")
        bus.queue("orders", Order)
        async with bus:
            [relay] = bus.opened.relays
            began = time.perf_counter()
            while relay.published.total() < transactions * rows:
                await asyncio.sleep(0.01)
            took = time.perf_counter() - began
        return {"per_s": transactions * rows / took}

    return asyncio.run(main())


def measure(
    directory: Path, rounds: int, messages: int, many: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`. `messages` are sent one by one, `many` wait together."""
    seen: dict[str, list[float]] = {}
    speeds: list[dict[str, float]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(running(name, directory)) for name in ENGINES if name != "sqlite"}
        for number in range(rounds):
            speeds.append(machine.speed(directory))
            for engine in ENGINES:
                place = directory / f"{engine}-{number}"
                place.mkdir()

                def fresh(engine: str = engine, place: Path = place, files: list[int] = []) -> str:  # noqa: B006
                    files.append(0)
                    return f"sqlite:///{place}/{len(files)}.db" if engine == "sqlite" else servers[engine].fresh()

                for where, took in (("here", _here(fresh(), messages)), ("there", _there(fresh(), messages, place))):
                    seen.setdefault(f"{engine} {where} p50", []).append(statistics.median(took))
                    seen.setdefault(f"{engine} {where} p99", []).append(sorted(took)[len(took) * 99 // 100])
                for name, transactions, rows in (("long", 1, many), ("many", many, 1)):
                    found = children.run("relay", "backlog", url=fresh(), transactions=transactions, rows=rows)
                    seen.setdefault(f"{engine} {name}", []).append(found["per_s"])
                latest = {name: values[-1] for name, values in seen.items() if name.startswith(engine)}
                say(f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {v:,.1f}" for k, v in latest.items()))
        speeds.append(machine.speed(directory))
    title = (
        f"Relays: messages of {PAYLOAD} bytes sent with within=, from before COMMIT to the handler, {messages} of them "
        f"10 to 30 ms apart; and {many} rows that wait when a bus is opened; {rounds} rounds."
    )
    figures: list[Figure] = []
    for engine, shown in ENGINES.items():
        for where, told in (("here", "handled in the same process"), ("there", "handled in another process")):
            figures += [
                Figure(f"{shown}, from COMMIT, {told}, median", seen[f"{engine} {where} p50"], "ms", at_most=50),
                Figure("the same, 99th percentile", seen[f"{engine} {where} p99"], "ms"),
            ]
        figures += [
            Figure(f"{shown}, one transaction's {many} rows published", seen[f"{engine} long"], "/s"),
            Figure(f"{shown}, {many} transactions of one row published", seen[f"{engine} many"], "/s"),
        ]
    return title, figures, speeds


def _here(url: str, messages: int) -> list[float]:
    found = children.run("relay", "alone", url=url, messages=messages, ready="", handles=True, sends=True)
    return _took(found["committed"], found["arrived"])


def _there(url: str, messages: int, place: Path) -> list[float]:
    ready = place / _READY
    given: dict[str, Any] = {"url": url, "messages": messages, "ready": str(ready)}
    handler = children.start("relay", "alone", **given, handles=True, sends=False)
    try:
        while not ready.exists() and handler.poll() is None:
            time.sleep(0.02)
        committed = children.run("relay", "alone", **given, handles=False, sends=True)["committed"]
        arrived = children.result(handler, 120)["arrived"]
    finally:
        handler.kill()
    return _took(committed, arrived)


def _took(committed: dict[str, int], arrived: dict[str, int]) -> list[float]:
    """Milliseconds of each."""
    return [(arrived[number] - at) / 1e6 for number, at in committed.items()]

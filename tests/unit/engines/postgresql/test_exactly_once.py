"""Handlers in a transaction of the bus: their work and the end of their message are one commit, whoever is killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from easybus import Bus, NotSupported, Outgoing
from easybus.engines.contract import QueueStats
from easybus.engines.postgresql.guest import Guest
from easybus.receiving.retry import fixed

WORKER = Path(__file__).with_name("worker.py")
POINTS = ["key.claimed", "within.effect", "within.done", "within.committed"]


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Any]:
    """The handlers' own table, on a connection of the test's."""
    connection: Any = await asyncpg.connect(url.partition("?")[0])
    await connection.execute("DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (amount int)")
    yield connection
    await connection.close()


async def amounts(ledger: Any) -> list[int]:
    return [row[0] for row in await ledger.fetch("SELECT amount FROM ledger ORDER BY amount")]


async def until(ledger: Any, wanted: list[int], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while await amounts(ledger) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert await amounts(ledger) == wanted


def pay(bus: Bus, **settings: Any) -> Any:
    """A queue whose handler writes into the ledger."""
    queue = bus.queue("payments", int)

    @queue.handler(within=asyncpg.Connection, **settings)
    async def write(amount: int, connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO ledger VALUES ($1)", amount)
        if amount < 0:
            raise ValueError("negative")

    return queue


async def test_a_handlers_work_is_committed_with_its_message(url: str, ledger: Any) -> None:
    bus = Bus(url)
    queue = pay(bus)
    async with bus.handling():
        await queue.send_many(list(range(50)))
        await until(ledger, list(range(50)))
    async with bus:
        assert (await bus.driver.stats("payments")).in_flight == 0


async def test_a_client_library_that_commits_in_other_words_leaves_no_message_unmarked(
    url: str, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Guest.execute

    async def otherwise(self: Guest, query: str, *args: Any, timeout: float | None = None) -> str:
        return await execute(self, "COMMIT WORK;" if query == "COMMIT;" else query, *args, timeout=timeout)

    monkeypatch.setattr(Guest, "_along", True)  # to be as it was afterwards
    monkeypatch.setattr(Guest, "execute", otherwise)
    bus = Bus(url)
    queue = pay(bus)
    async with bus.handling():
        for amounts_then, amount in (([1], 1), ([1, 2], 2)):
            await queue.send(amount, id=str(amount))
            await until(ledger, amounts_then)
        assert not Guest._along
        await queue.send_many([Outgoing(1, id="1"), Outgoing(2, id="2"), Outgoing(3, id="3")])  # two are known
        await until(ledger, [1, 2, 3])
        while any(await counts(bus)):
            await asyncio.sleep(0.02)
    assert await amounts(ledger) == [1, 2, 3]


async def counts(bus: Bus) -> list[int | None]:
    stats = await bus.driver.stats("payments")
    return [stats.ready, stats.in_flight]


async def test_a_handler_that_raises_leaves_nothing_of_its_work(url: str, ledger: Any) -> None:
    bus = Bus(url, retry=fixed(0.01, attempts=3))
    queue = pay(bus)
    async with bus.handling():
        await queue.send(-1)
        deadline = time.monotonic() + 10.0
        while not await bus.dead_letters.count() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert await bus.dead_letters.count() == {"payments": 1}
    assert await amounts(ledger) == []


async def test_a_long_handler_that_sees_one_state_of_the_database_commits_at_its_first_start(
    url: str, ledger: Any
) -> None:
    bus = Bus(url)
    queue = bus.queue("payments", int)
    starts: list[int] = []

    @queue.handler(within=asyncpg.Connection, lease=0.9)
    async def write(amount: int, connection: asyncpg.Connection) -> None:
        starts.append(amount)
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("INSERT INTO ledger VALUES ($1)", amount)
        await asyncio.sleep(0.8)  # its lease is extended meanwhile, which its transaction does not see

    async with bus.handling():
        await queue.send(1)
        await until(ledger, [1])
        while any(await counts(bus)):
            await asyncio.sleep(0.02)
    assert starts == [1]


async def test_what_a_handler_sends_within_its_transaction_rides_in_it(url: str, ledger: Any) -> None:
    bus = Bus(url, retry=fixed(0.01, attempts=2))
    receipts = bus.queue("receipts", int)
    orders = bus.queue("orders", int)
    got: list[int] = []

    @orders.handler(within=asyncpg.Connection)
    async def order(number: int, connection: asyncpg.Connection) -> None:
        await receipts.send(number, within=connection)
        if number == 1:
            raise ValueError("rolled back, with its receipt")

    @receipts.handler
    async def receipt(number: int) -> None:
        got.append(number)

    async with bus.handling():
        await orders.send_many([1, 2, 3])
        deadline = time.monotonic() + 10.0
        while (len(got) < 2 or not await bus.dead_letters.count()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
    assert sorted(got) == [2, 3]


async def test_a_transaction_of_another_kind_is_refused_before_anything_is_handled(url: str) -> None:
    bus = Bus(url)

    class Session:
        pass

    @bus.queue("payments", int).handler(within=Session)
    async def handle(amount: int, session: Session) -> None: ...

    with pytest.raises(NotSupported, match="Session"):
        async with bus.handling():
            pass


@pytest.mark.kills
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_any_point_has_one_effect(url: str, ledger: Any, point: str) -> None:
    bus = Bus(url)
    queue = pay(bus, lease=1)
    async with bus:
        await queue.send(7)
    worker = await asyncio.create_subprocess_exec(sys.executable, str(WORKER), url, point)
    assert await asyncio.wait_for(worker.wait(), 20) == -signal.SIGKILL
    assert await amounts(ledger) == ([7] if point == "within.committed" else [])
    async with bus.handling():
        await until(ledger, [7])
        deadline = time.monotonic() + 10.0
        while await bus.driver.stats("payments") != QueueStats(0, 0, 0):
            assert time.monotonic() < deadline, "the message is still there"
            await asyncio.sleep(0.02)
    assert await amounts(ledger) == [7]


@pytest.mark.alone
async def test_a_worker_that_stalled_past_its_lease_cannot_commit(url: str, ledger: Any) -> None:
    bus = Bus(url)
    queue = pay(bus, lease=1)
    async with bus:
        await queue.send(7)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), url, "within.effect", "stall", stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    assert (await asyncio.wait_for(worker.stdout.readline(), 20)).strip() == b"stalling"
    worker.send_signal(signal.SIGSTOP)
    try:
        async with bus.handling():
            # It may have been stopped in a call of the bus's own, whose locks are free after `timeout`, 10 s.
            await until(ledger, [7], within=20.0)
    finally:
        worker.send_signal(signal.SIGCONT)
    assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert await amounts(ledger) == [7]

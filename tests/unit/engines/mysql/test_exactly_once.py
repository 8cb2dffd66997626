"""Handlers in a transaction of the bus: their work and the end of their message are one commit, whoever is killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from asyncmy import Connection

from easybus import Bus, NotSupported
from easybus.engines.contract import QueueStats
from easybus.receiving.retry import fixed

from .conftest import Client

WORKER = Path(__file__).with_name("worker.py")
POINTS = ["key.claimed", "within.effect", "within.done", "within.committed"]


@pytest.fixture
async def ledger(client: Client) -> Client:
    """The handlers' own table, on a connection of the test's."""
    await client.run("DROP TABLE IF EXISTS ledger")
    await client.run("CREATE TABLE ledger (amount int) ENGINE=InnoDB")
    return client


async def amounts(ledger: Client) -> list[int]:
    return [row[0] for row in await ledger.run("SELECT amount FROM ledger ORDER BY amount")]


async def until(ledger: Client, wanted: list[int], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while await amounts(ledger) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert await amounts(ledger) == wanted


def pay(bus: Bus, **settings: Any) -> Any:
    """A queue whose handler writes into the ledger."""
    queue = bus.queue("payments", int)

    @queue.handler(within=Connection, **settings)
    async def write(amount: int, connection: Connection) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO ledger VALUES (%s)", (amount,))
        if amount < 0:
            raise ValueError("negative")

    return queue


async def test_a_handlers_work_is_committed_with_its_message(url: str, ledger: Client) -> None:
    bus = Bus(url)
    queue = pay(bus)
    async with bus.handling():
        await queue.send_many(list(range(50)))
        await until(ledger, list(range(50)))
    async with bus:
        assert (await bus.driver.stats("payments")).in_flight == 0


async def test_a_handler_that_raises_leaves_nothing_of_its_work(url: str, ledger: Client) -> None:
    bus = Bus(url, retry=fixed(0.01, attempts=3))
    queue = pay(bus)
    async with bus.handling():
        await queue.send(-1)
        deadline = time.monotonic() + 10.0
        while not await bus.dead_letters.count() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert await bus.dead_letters.count() == {"payments": 1}
    assert await amounts(ledger) == []


async def test_what_a_handler_sends_within_its_transaction_rides_in_it(url: str, ledger: Client) -> None:
    bus = Bus(url, retry=fixed(0.01, attempts=2))
    receipts = bus.queue("receipts", int)
    orders = bus.queue("orders", int)
    got: list[int] = []

    @orders.handler(within=Connection)
    async def order(number: int, connection: Connection) -> None:
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
async def test_a_worker_killed_at_any_point_has_one_effect(url: str, ledger: Client, point: str) -> None:
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
async def test_a_worker_that_stalled_past_its_lease_cannot_commit(url: str, ledger: Client) -> None:
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

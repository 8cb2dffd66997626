"""Handlers on connections of the user's own, from pools and factories: their work and their message are one commit."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncmy
import asyncpg
import pymysql
import pytest
from asyncmy.connection import Connection as AsyncmyConnection

from easybus import Bus, fixed
from easybus.engines.contract import Finish, FinishingDriver, QueueStats

KINDS = ["asyncpg pool", "asyncpg of the bus", "asyncmy pool", "asyncmy of the bus", "pymysql"]


async def _done(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


class Ledger:
    """A table of amounts, and a bus with a queue of payments, in one database."""

    def __init__(self, kind: str, url: str, address: Any, pool: Any) -> None:
        self.bus = Bus(url, retry=fixed(0.01, attempts=2))
        self.payments = self.bus.queue("payments", int)
        self.orders = self.bus.queue("orders", int)
        self.kind: Any = {"asyncpg": asyncpg.Connection, "asyncmy": AsyncmyConnection, "pymysql": pymysql.Connection}[
            kind.split()[0]
        ]
        self.address = address
        if kind == "pymysql":
            self.bus.provide(pymysql.Connection, lambda: pymysql.connect(**address), per="message")
        elif not kind.endswith("of the bus"):
            self.bus.provide(self.kind, pool.acquire, per="message")

    async def run(self, connection: Any, statement: str) -> None:
        if self.kind is asyncpg.Connection:
            await connection.execute(statement)
        else:
            cursor = connection.cursor()
            await _done(cursor.execute(statement))
            await _done(cursor.close())

    async def amounts(self) -> list[int]:
        if self.kind is asyncpg.Connection:
            connection = await asyncpg.connect(self.address)
            rows = await connection.fetch("SELECT amount FROM ledger2 ORDER BY amount")
            await connection.close()
        else:
            link = pymysql.connect(**self.address)
            cursor = link.cursor()
            cursor.execute("SELECT amount FROM ledger2 ORDER BY amount")
            rows = cursor.fetchall()
            link.close()
        return [row[0] for row in rows]

    async def settled(self) -> None:
        """Until no message is left."""
        deadline = time.monotonic() + 30
        while await self.bus.driver.stats("payments") != QueueStats(0, 0, 0):
            assert time.monotonic() < deadline, "messages are left"
            await asyncio.sleep(0.02)


@pytest.fixture(params=KINDS)
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    kind: str = request.param
    made = "DROP TABLE IF EXISTS ledger2; CREATE TABLE ledger2 (amount int)"
    if kind.startswith("asyncpg"):
        url = request.getfixturevalue("postgresql_server").schema()
        address = url.partition("?")[0]
        async with asyncpg.create_pool(address, min_size=1, max_size=10) as pool:
            await pool.execute(made)
            yield Ledger(kind, url, address, pool)
            assert pool.get_idle_size() == pool.get_size(), "a connection was not given back"
    else:
        server = request.getfixturevalue("mariadb_server")
        for statement in made.split(";"):
            server.sql(f"USE test; {statement}")
        async with asyncmy.create_pool(**server.address, minsize=1, maxsize=10) as pool:
            yield Ledger(kind, server.prefix(), server.address, pool)
            assert pool.freesize == pool.size, "a connection was not given back"


def write(ledger: Ledger) -> Any:
    """The ledger's handler: negative amounts fail after their work, 7 sends too."""
    blocking = ledger.kind is pymysql.Connection

    if blocking:

        @ledger.payments.handler(within=pymysql.Connection)
        def plain(amount: int, connection: pymysql.Connection) -> None:  # type: ignore[type-arg]
            connection.cursor().execute(f"INSERT INTO ledger2 VALUES ({amount})")
            if amount == 7:
                ledger.bus.blocking.send(ledger.orders, amount, within=connection)
            if amount < 0:
                raise ValueError("negative")

        return plain

    async def handle(amount: int, connection: Any) -> None:
        await ledger.run(connection, f"INSERT INTO ledger2 VALUES ({amount})")
        if amount == 7:
            await ledger.orders.send(amount, within=connection)
        if amount < 0:
            raise ValueError("negative")

    handle.__annotations__["connection"] = ledger.kind
    return ledger.payments.handler(within=ledger.kind)(handle)


async def test_a_handlers_work_is_committed_with_its_message_and_undone_with_its_failure(ledger: Ledger) -> None:
    write(ledger)
    async with ledger.bus.handling():
        await ledger.payments.send_many([1, -2, 3, 7])
        await ledger.settled()
        assert ledger.bus.dead_letters is not None
        assert await ledger.bus.dead_letters.count() == {"payments": 1}
        deadline = time.monotonic() + 10
        while (await ledger.bus.driver.stats("orders")).ready != 1:
            assert time.monotonic() < deadline, "what it sent did not leave with the commit"
            await asyncio.sleep(0.02)
    assert await ledger.amounts() == [1, 3, 7]


async def test_a_worker_whose_message_was_taken_over_commits_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger)
    async with ledger.bus.handling():
        ends_with_another_token(ledger.bus, monkeypatch)
        await ledger.payments.send(5)
        deadline = time.monotonic() + 10
        while (await ledger.bus.driver.stats("payments")).delayed != 1:
            assert time.monotonic() < deadline, "it was not given back"
            await asyncio.sleep(0.02)
        assert await ledger.amounts() == []


def ends_with_another_token(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions end with a last statement under a token that is not the holder's."""
    keys, driver = bus.opened.storage.idempotency, bus.driver
    assert keys is not None
    completion = keys.completion
    monkeypatch.setattr(keys, "completion", lambda token, keep: completion(f"{token.partition('-')[0]}-1", keep))
    if isinstance(driver, FinishingDriver):
        finishing = driver.finishing

        def another(item: Finish) -> tuple[str, tuple[Any, ...]]:
            return finishing(Finish(item.delivery, f"{item.token.partition('-')[0]}-1", item.keep))

        monkeypatch.setattr(driver, "finishing", another)


@pytest.mark.parametrize("ledger", ["asyncpg pool", "asyncpg of the bus"], indirect=True)
async def test_a_transaction_inside_the_handler_is_a_savepoint_of_the_buss(ledger: Ledger) -> None:
    @ledger.payments.handler(within=asyncpg.Connection)
    async def handle(amount: int, connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            await connection.execute(f"INSERT INTO ledger2 VALUES ({amount})")
        with contextlib.suppress(KeyError):
            async with connection.transaction():
                await connection.execute(f"INSERT INTO ledger2 VALUES ({amount} + 1000)")
                raise KeyError("rolled back to the savepoint")
        if amount == 2:
            raise ValueError("rolled back as a whole")

    async with ledger.bus.handling():
        await ledger.payments.send_many([1, 2, 3])
        await ledger.settled()
    assert await ledger.amounts() == [1, 3]


@pytest.mark.parametrize("ledger", ["asyncpg pool", "asyncpg of the bus"], indirect=True)
@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "a failed statement"])
async def test_a_handler_that_ends_its_transaction_or_breaks_it_has_failed(ledger: Ledger, how: str) -> None:
    @ledger.payments.handler(within=asyncpg.Connection)
    async def handle(amount: int, connection: asyncpg.Connection) -> None:
        with contextlib.suppress(asyncpg.DivisionByZeroError):  # and the transaction is void all the same
            await connection.execute("SELECT 1 / 0" if how == "a failed statement" else how)

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        assert ledger.bus.dead_letters is not None
        deadline = time.monotonic() + 20
        while not (letters := await ledger.bus.dead_letters.find()):
            assert time.monotonic() < deadline, "it is no dead letter"
            await asyncio.sleep(0.02)
        assert ("aborted" if how == "a failed statement" else "ended inside the handler") in letters[0].reason
        await ledger.settled()

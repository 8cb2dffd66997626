"""Messages in callers' asyncpg transactions: sent if, and only if, the transaction commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus, ConfigurationError, Message
from easybus.bound import BusQueue
from easybus.engines.contract import Ack


class Shop:
    """An open bus, a queue of it that nobody handles, and a user's own connection."""

    def __init__(self, bus: Bus, url: str) -> None:
        self.bus = bus
        self.url = url
        self.orders: BusQueue[int] = bus.queue("orders", int)

    async def connect(self, url: str = "") -> asyncpg.Connection:
        return await asyncpg.connect((url or self.url).partition("?")[0])

    async def arrived(self, number: int) -> list[int]:
        """So many messages, or what else is there."""
        found: list[int] = []
        for _ in range(100):
            for delivery in await self.bus.driver.fetch("orders", 100, 0.1, 30.0):
                await self.bus.driver.settle("orders", [Ack(delivery)])
                found.append(int(Message.from_bytes(delivery.body).payload))
            if len(found) >= number:
                break
        return found

    async def nothing_waits(self) -> bool:
        return await self.bus.outboxes[0].find() == [] and (await self.bus.driver.stats("orders")).ready == 0


@pytest.fixture
async def shop(postgresql_server: PostgresqlServer) -> AsyncIterator[Shop]:
    url = postgresql_server.schema()
    async with Bus(url, service="shop") as bus:
        shop = Shop(bus, url)
        await shop.orders.send(0)  # declares
        assert await shop.arrived(1) == [0]
        yield shop


@pytest.fixture
async def connection(shop: Shop) -> AsyncIterator[asyncpg.Connection]:
    connection = await shop.connect()
    yield connection
    await connection.close()


async def test_a_committed_transactions_messages_are_published_in_their_order(shop: Shop, connection: Any) -> None:
    async with connection.transaction():
        await shop.orders.send(1, within=connection)
        await shop.orders.send_many([2, 3], within=connection)
        await shop.orders.send(4, within=connection)
        await asyncio.sleep(0.2)
        assert await shop.nothing_waits(), "it was published before the commit"
    assert await shop.arrived(4) == [1, 2, 3, 4]


async def test_a_rolled_back_transactions_messages_never_existed(shop: Shop, connection: Any) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await shop.orders.send(1, within=connection)
    await transaction.rollback()
    assert await shop.nothing_waits()
    async with connection.transaction():
        await shop.orders.send(2, within=connection)
    assert await shop.arrived(1) == [2]


async def test_what_a_savepoint_takes_back_is_gone_and_the_rest_keeps_its_order(shop: Shop, connection: Any) -> None:
    async with connection.transaction():
        await shop.orders.send(1, within=connection)
        savepoint = connection.transaction()
        await savepoint.start()
        await shop.orders.send(2, within=connection)
        await savepoint.rollback()
        async with connection.transaction():
            await shop.orders.send(3, within=connection)
        await shop.orders.send(4, within=connection)
    assert await shop.arrived(3) == [1, 3, 4]


async def test_a_transaction_begun_by_hand_and_a_pools_connection_will_do(shop: Shop) -> None:
    async with asyncpg.create_pool(shop.url.partition("?")[0], min_size=1, max_size=1) as pool:
        async with pool.acquire() as lent, lent.transaction():
            await shop.orders.send(1, within=lent)
        assert await shop.arrived(1) == [1]
        async with pool.acquire() as lent:
            await lent.execute("BEGIN")
            await shop.orders.send(2, within=lent)
            await lent.execute("COMMIT")
        assert await shop.arrived(1) == [2]
        with pytest.raises(ConfigurationError, match="closed"):
            await shop.orders.send(3, within=lent)


async def test_without_a_transaction_nothing_is_sent_and_the_error_shows_how_to_begin_one(
    shop: Shop, connection: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"async with connection\.transaction\(\)"):
        await shop.orders.send(1, within=connection)
    assert await shop.nothing_waits()


async def test_a_closed_connection_is_refused(shop: Shop) -> None:
    connection = await shop.connect()
    await connection.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=connection)


async def test_another_databases_connection_is_refused_and_its_transaction_lives_on(
    shop: Shop, postgresql_server: PostgresqlServer
) -> None:
    connection = await shop.connect(postgresql_server.database())
    try:
        async with connection.transaction():
            await connection.execute("CREATE TABLE kept (id int)")
            with pytest.raises(ConfigurationError, match="databases="):
                await shop.orders.send(1, within=connection)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
    finally:
        await connection.close()


async def test_another_schema_of_the_database_is_another_bus(shop: Shop, postgresql_server: PostgresqlServer) -> None:
    other = Bus(postgresql_server.schema(), service="shop")
    theirs = other.queue("theirs", int)
    async with other:
        connection = await shop.connect()
        try:
            async with connection.transaction():  # the outboxes of both are reached from this connection
                await theirs.send(1, within=connection)
        finally:
            await connection.close()
        found = await other.driver.fetch("theirs", 1, 5.0, 30.0)
        assert [Message.from_bytes(one.body).payload for one in found] == [b"1"]
    assert await shop.nothing_waits()


async def test_the_blocking_bus_says_that_the_connection_is_async(shop: Shop, connection: Any) -> None:
    async with connection.transaction():
        with pytest.raises(ConfigurationError, match="async"):
            shop.bus.write_within(shop.bus.opened, shop.orders, [1], connection)

"""Messages in callers' psycopg transactions, and handlers that work in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from tests.servers.postgresql import PostgresqlServer
from tests.unit.transactions.shop import Shop

from easybus import Bus, ConfigurationError
from easybus.transactions.psycopg_placeholders import pyformat

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


@pytest.fixture
async def shop(postgresql_server: PostgresqlServer) -> AsyncIterator[Shop]:
    url = postgresql_server.schema()
    bus = Bus(url, service="shop")
    shop = Shop(bus, url)
    async with bus:
        yield shop


@pytest.fixture
async def connection(shop: Shop) -> AsyncIterator[AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(f"postgresql://{shop.database}") as connection:
        yield connection


@pytest.fixture
def plain(shop: Shop) -> Iterator[Connection]:
    with psycopg.connect(f"postgresql://{shop.database}") as connection:
        yield connection


def test_placeholders_become_named_and_what_is_quoted_stays() -> None:
    statement, params = pyformat("INSERT INTO \"a$1\".t SELECT $2, '$1 100%', $10, $2", range(10, 20))
    assert statement == "INSERT INTO \"a$1\".t SELECT %(p2)s, '$1 100%%', %(p10)s, %(p2)s"
    assert (params["p1"], params["p2"], params["p10"]) == (10, 11, 19)


async def test_a_committed_transactions_messages_are_published_in_their_order(
    shop: Shop, connection: AsyncConnection
) -> None:
    await shop.orders.send(1, within=connection)
    await shop.orders.send_many([2, 3], within=connection)
    await shop.orders.send(4, within=connection, delay=0.01)
    await asyncio.sleep(0.2)
    assert await shop.nothing_waits(), "it was published before the commit"
    await connection.commit()
    assert await shop.arrived(4) == [1, 2, 3, 4]


async def test_a_rolled_back_transactions_messages_never_existed(shop: Shop, connection: AsyncConnection) -> None:
    await shop.orders.send(1, within=connection)
    await connection.rollback()
    assert await shop.nothing_waits()
    await shop.orders.send(2, within=connection)
    await connection.commit()
    assert await shop.arrived(1) == [2]


async def test_what_a_savepoint_takes_back_is_gone(shop: Shop, connection: AsyncConnection) -> None:
    async with connection.transaction():
        await shop.orders.send(1, within=connection)
        async with connection.transaction() as savepoint:
            await shop.orders.send(2, within=connection)
            raise psycopg.Rollback(savepoint)
    assert await shop.arrived(1) == [1]


async def test_a_plain_connection_sends_from_its_own_thread(shop: Shop, plain: Connection) -> None:
    def work() -> None:
        shop.bus.blocking.send(shop.orders, 1, within=plain)
        plain.commit()
        shop.bus.blocking.send(shop.orders, 2, within=plain)
        plain.rollback()
        with plain.transaction():
            shop.bus.blocking.send_many(shop.orders, [3, 4], within=plain)

    await asyncio.to_thread(work)
    assert await shop.arrived(3) == [1, 3, 4]


async def test_autocommit_is_refused_unless_a_transaction_is_begun(shop: Shop) -> None:
    url = f"postgresql://{shop.database}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        with pytest.raises(ConfigurationError, match=r"connection\.transaction\(\)"):
            await shop.orders.send(1, within=connection)
        assert await shop.nothing_waits()
        async with connection.transaction():
            await shop.orders.send(2, within=connection)
    assert await shop.arrived(1) == [2]


async def test_a_closed_connection_is_refused(shop: Shop, connection: AsyncConnection, plain: Connection) -> None:
    await connection.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=connection)
    plain.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await asyncio.to_thread(shop.bus.blocking.send, shop.orders, 1, within=plain)


async def test_another_databases_connection_is_refused_and_its_transaction_lives_on(
    shop: Shop, postgresql_server: PostgresqlServer
) -> None:
    other = postgresql_server.database()
    async with await psycopg.AsyncConnection.connect(other) as connection:
        await connection.execute("CREATE TABLE kept (id int)")
        with pytest.raises(ConfigurationError, match="databases="):
            await shop.orders.send(1, within=connection)
        await connection.commit()
        cursor = await connection.execute("SELECT count(*) FROM kept")
        assert await cursor.fetchone() == (0,)

    def plainly() -> None:
        with psycopg.connect(other) as plain:
            plain.execute("INSERT INTO kept VALUES (1)")
            with pytest.raises(ConfigurationError, match="databases="):
                shop.bus.blocking.send(shop.orders, 1, within=plain)
            plain.commit()
            assert plain.execute("SELECT count(*) FROM kept").fetchone() == (1,)

    await asyncio.to_thread(plainly)


async def until(shop: Shop, wanted: list[int]) -> None:
    deadline = time.monotonic() + 10.0
    found: list[int] = []
    async with await psycopg.AsyncConnection.connect(f"postgresql://{shop.database}", autocommit=True) as looking:
        while found != wanted and time.monotonic() < deadline:
            cursor = await looking.execute("SELECT amount FROM ledger ORDER BY amount")
            found = [row[0] for row in await cursor.fetchall()]
            await asyncio.sleep(0.02)
    assert found == wanted


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_provided_connection_is_begun_and_committed_with_its_message(
    postgresql_server: PostgresqlServer, kind: str
) -> None:
    url = postgresql_server.schema()
    bus = Bus(url)
    shop = Shop(bus, url)
    database = f"postgresql://{shop.database}"
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE IF EXISTS ledger")
        connection.execute("CREATE TABLE ledger (amount int)")
    payments = bus.queue("payments", int)
    if kind == "plain":
        bus.provide(psycopg.Connection, lambda: psycopg.connect(database), per="message")

        @payments.handler(within=psycopg.Connection)
        def write(amount: int, connection: psycopg.Connection) -> bool:
            connection.execute("INSERT INTO ledger VALUES (%s)", (amount,))
            bus.blocking.send(shop.orders, amount, within=connection)
            return amount > 0
    else:
        bus.provide(psycopg.AsyncConnection, lambda: psycopg.AsyncConnection.connect(database), per="message")

        @payments.handler(within=psycopg.AsyncConnection)
        async def write_async(amount: int, connection: psycopg.AsyncConnection) -> bool:
            await connection.execute("INSERT INTO ledger VALUES (%s)", (amount,))
            await shop.orders.send(amount, within=connection)
            return amount > 0

    async with bus.handling():
        await payments.send_many([1, -1, 2])
        await until(shop, [1, 2])
        assert sorted(await shop.arrived(2)) == [1, 2]

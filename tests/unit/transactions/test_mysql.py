"""Messages in callers' transactions of asyncmy and PyMySQL: sent if, and only if, the transaction commits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import asyncmy
import pymysql
import pytest
from tests.servers.mariadb import MariadbServer

from easybus import Bus, ConfigurationError, Message
from easybus.bound import BusQueue
from easybus.engines.contract import Ack, Publication
from easybus.sending.outbox import write_async


class User:
    """A user's own connection, of either library."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def run(self, statement: str, *values: Any) -> None:
        cursor = self.connection.cursor()
        await _done(cursor.execute(statement, values or None))
        await _done(cursor.close())

    async def begin(self) -> None:
        await _done(self.connection.begin())

    async def commit(self) -> None:
        await _done(self.connection.commit())

    async def rollback(self) -> None:
        await _done(self.connection.rollback())

    async def autocommit(self) -> None:
        await _done(self.connection.autocommit(True))

    async def close(self) -> None:
        if isinstance(self.connection, pymysql.Connection):
            if self.connection.open:
                self.connection.close()
        else:
            await self.connection.ensure_closed()


async def _done(given: Any) -> None:
    if inspect.isawaitable(given):
        await given


class Shop:
    """An open bus, a queue of it that nobody handles, and a user's own connection."""

    def __init__(self, bus: Bus, url: str) -> None:
        self.bus = bus
        self.url = url
        self.orders: BusQueue[int] = bus.queue("orders", int)

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
def url(mariadb_server: MariadbServer) -> str:
    return mariadb_server.prefix()


@pytest.fixture
async def shop(url: str) -> AsyncIterator[Shop]:
    async with Bus(url, service="shop") as bus:
        shop = Shop(bus, url)
        await shop.orders.send(0)  # declares
        assert await shop.arrived(1) == [0]
        yield shop


@pytest.fixture(params=["asyncmy", "pymysql"])
async def user(request: pytest.FixtureRequest, mariadb_server: MariadbServer) -> AsyncIterator[User]:
    if request.param == "asyncmy":
        user = User(await asyncmy.connect(**mariadb_server.address))
    else:
        user = User(pymysql.connect(**mariadb_server.address))
    yield user
    await user.close()


async def test_a_committed_transactions_messages_are_published_in_their_order(shop: Shop, user: User) -> None:
    await user.begin()
    await shop.orders.send(1, within=user.connection)
    await shop.orders.send_many([2, 3], within=user.connection)
    await shop.orders.send(4, within=user.connection)
    await asyncio.sleep(0.2)
    assert await shop.nothing_waits(), "it was published before the commit"
    await user.commit()
    assert await shop.arrived(4) == [1, 2, 3, 4]


async def test_a_rolled_back_transactions_messages_never_existed(shop: Shop, user: User) -> None:
    await user.begin()
    await shop.orders.send(1, within=user.connection)
    await user.rollback()
    assert await shop.nothing_waits()
    await user.begin()
    await shop.orders.send(2, within=user.connection)
    await user.commit()
    assert await shop.arrived(1) == [2]


async def test_what_a_savepoint_takes_back_is_gone_and_the_rest_keeps_its_order(shop: Shop, user: User) -> None:
    await user.begin()
    await shop.orders.send(1, within=user.connection)
    await user.run("SAVEPOINT one")
    await shop.orders.send(2, within=user.connection)
    await user.run("ROLLBACK TO SAVEPOINT one")
    await shop.orders.send(3, within=user.connection)
    await shop.orders.send(4, within=user.connection)
    await user.commit()
    assert await shop.arrived(3) == [1, 3, 4]


async def test_each_of_a_sessions_transactions_is_claimed_as_one_by_one_of_many_relays(shop: Shop, user: User) -> None:
    outbox, elsewhere = shop.bus.outboxes[0], "another service"
    for at in range(4):  # transactions of one session, each of three sends; the first is rolled back
        await user.begin()
        for _ in range(3):
            for statement, values in outbox.statements(elsewhere, [Publication(False, "orders", b"%d" % at)]):
                await user.run(statement, *values)
            await user.run("SAVEPOINT one")
            await user.run("ROLLBACK TO SAVEPOINT one")
        await (user.commit() if at else user.rollback())
    batches = await asyncio.gather(*(outbox.claim(elsewhere, 4, 60.0) for _ in range(5)))
    rows = [row for batch in batches for row in batch]
    assert len({row.position for row in rows}) == len(rows) == 9
    by_transaction = {row.transaction: [one for one in rows if one.transaction == row.transaction] for row in rows}
    assert sorted([one.publication.body for one in group] for group in by_transaction.values()) == [
        [b"1"] * 3, [b"2"] * 3, [b"3"] * 3
    ]  # fmt: skip
    for group in by_transaction.values():
        assert len({one.token for one in group}) == 1, "a transaction was divided"
        assert [one.position for one in group] == sorted(one.position for one in group)


async def test_an_end_that_is_not_counted_keeps_the_order_of_sends(shop: Shop, user: User) -> None:
    for number in range(3):
        await shop.orders.send(number, within=user.connection)
        await user.run("CREATE TEMPORARY TABLE IF NOT EXISTS made (id int)")
        await user.run("CREATE TABLE IF NOT EXISTS made_too (id int)")  # commits
    assert await shop.arrived(3) == [0, 1, 2]
    await user.run("DROP TABLE made_too")


async def test_any_bytes_go_through_whatever_the_sessions_charset_and_mode(shop: Shop, user: User) -> None:
    await user.run("SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES', NAMES latin1")
    raw = shop.bus.queue("raw", bytes)
    body = bytes(range(256)) + "\U0001f600".encode()
    await raw.send(b"")  # declares
    await user.begin()
    await raw.send(body, within=user.connection, route_key="\U0001f600'\\")
    await user.commit()
    found: list[Message] = []
    for _ in range(50):
        found += [Message.from_bytes(one.body) for one in await shop.bus.driver.fetch("raw", 9, 0.2, 30.0)]
        if len(found) == 2:
            break
    assert [(one.payload, one.route_key) for one in found] == [(b"", ""), (body, "\U0001f600'\\")]


async def test_without_a_transaction_nothing_is_sent_and_the_error_shows_how_to_begin_one(
    shop: Shop, user: User
) -> None:
    await user.autocommit()
    with pytest.raises(ConfigurationError, match=r"connection\.begin\(\)"):
        await shop.orders.send(1, within=user.connection)
    assert await shop.nothing_waits()


async def test_a_closed_connection_is_refused(shop: Shop, user: User) -> None:
    await user.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=user.connection)


async def test_another_servers_connection_is_refused_and_its_transaction_lives_on(
    user: User, mariadb_server: MariadbServer
) -> None:
    """The tables are named with their database, so another database of the same server will do."""
    url = mariadb_server.database()
    async with Bus(url, service="shop") as bus:
        queue = bus.queue("orders", int)
        await queue.send(0)
        await user.begin()
        await queue.send(1, within=user.connection)
        await user.commit()
    mariadb_server.sql(f"DROP DATABASE `{url.rpartition('/')[2]}`")
    await user.run("CREATE TABLE IF NOT EXISTS kept (id int) ENGINE=InnoDB")
    await user.begin()
    await user.run("INSERT INTO kept VALUES (1)")
    outbox = SimpleNamespace(identity=lambda: ("SELECT value FROM `nowhere`.`meta`", "x"), url="mysql://nowhere")
    with pytest.raises(ConfigurationError, match="databases="):
        await write_async(user.connection, [outbox], "shop", [], lambda: None)
    await user.rollback()
    await user.begin()
    await user.run("DROP TABLE kept")


async def test_the_blocking_bus_says_that_the_connection_is_async(shop: Shop, mariadb_server: MariadbServer) -> None:
    connection = await asyncmy.connect(**mariadb_server.address)
    try:
        await connection.begin()
        with pytest.raises(ConfigurationError, match="async"):
            shop.bus.write_within(shop.bus.opened, shop.orders, [1], connection)
    finally:
        await connection.ensure_closed()

"""What a message in a caller's transaction costs: one round trip of the caller's connection, counted on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncmy
import asyncpg
import psycopg
import pymysql
import pytest
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.proxy import Proxy
from tests.unit.transactions.shop import Shop

from easybus import Bus

KINDS = ["asyncpg", "psycopg", "psycopg async", "asyncmy", "pymysql"]
WARM = 8
"""Sends after which each library has prepared what it prepares, and the bus knows the database."""

Call = Callable[..., Awaitable[Any]]


async def calls(shop: Shop, connection: Any, kind: str) -> tuple[Call, Call, Callable[[], Awaitable[Any]]]:
    """`send` and `send_many` on this connection, and its commit."""
    if kind in ("psycopg", "pymysql"):

        async def send(value: int) -> None:
            await asyncio.to_thread(shop.bus.blocking.send, shop.orders, value, within=connection)

        async def send_many(values: list[int]) -> None:
            await asyncio.to_thread(shop.bus.blocking.send_many, shop.orders, values, within=connection)

        return send, send_many, lambda: asyncio.to_thread(connection.commit)
    commit = connection.commit if kind != "asyncpg" else lambda: connection.execute("COMMIT")
    return (
        lambda value: shop.orders.send(value, within=connection),
        lambda values: shop.orders.send_many(values, within=connection),
        commit,
    )


async def connect(kind: str, shop: Shop, server: Any, port: int) -> Any:
    """Through the proxy, with a transaction begun."""
    if kind in ("asyncmy", "pymysql"):
        address = {**server.address, "port": port}
        if kind == "pymysql":
            return await asyncio.to_thread(lambda: pymysql.connect(**address))
        return await asyncmy.connect(**address)
    url = f"postgresql://{shop.database}".replace(f":{server.port}", f":{port}")
    if kind == "psycopg":
        return await asyncio.to_thread(psycopg.connect, url)
    if kind == "psycopg async":
        return await psycopg.AsyncConnection.connect(url)
    connection: Any = await asyncpg.connect(url)
    await connection.execute("BEGIN")
    return connection


async def close(connection: Any, kind: str) -> None:
    if kind in ("psycopg", "pymysql"):
        await asyncio.to_thread(connection.close)
    else:
        await (connection.ensure_closed() if kind == "asyncmy" else connection.close())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(request: pytest.FixtureRequest, kind: str) -> PostgresqlServer | MariadbServer:
    return request.getfixturevalue("mariadb_server" if "my" in kind else "postgresql_server")


@pytest.fixture
async def shop(server: Any) -> AsyncIterator[Shop]:
    url = server.prefix() if isinstance(server, MariadbServer) else server.schema()
    bus = Bus(url, service="shop")
    shop = Shop(bus, url)
    async with bus:
        yield shop


async def test_a_send_adds_one_round_trip_and_send_many_one_in_all(shop: Shop, server: Any, kind: str) -> None:
    async with Proxy(server.port) as proxy:
        connection = await connect(kind, shop, server, proxy.port)
        send, send_many, commit = await calls(shop, connection, kind)
        for _ in range(WARM):
            await send(1)
            await send_many([2, 3])
        before = proxy.round_trips
        await send(4)
        assert proxy.round_trips - before == 1
        before = proxy.round_trips
        await send_many(list(range(5, 45)))
        assert proxy.round_trips - before == 1
        await commit()
        await close(connection, kind)
    assert len(await shop.arrived(3 * WARM + 41)) == 3 * WARM + 41

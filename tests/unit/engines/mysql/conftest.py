"""Engines on tables of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncmy
import pytest
from tests.servers.mariadb import MariadbServer

from easybus.clock import SystemClock
from easybus.engines.mysql import create
from easybus.engines.mysql.engine import MysqlEngine

Opener = Callable[..., Awaitable[MysqlEngine]]


@pytest.fixture
def url(mariadb_server: MariadbServer) -> str:
    return mariadb_server.prefix()


class Client:
    """A user's own connection, with autocommit."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def run(self, statement: str, *values: Any) -> list[Any]:
        async with self.connection.cursor() as cursor:
            await cursor.execute(statement, values or None)
            return list(await cursor.fetchall() or ())


@pytest.fixture
async def client(mariadb_server: MariadbServer) -> AsyncIterator[Client]:
    connection = await asyncmy.connect(**mariadb_server.address, autocommit=True)
    yield Client(connection)
    await connection.ensure_closed()


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Opener]:
    """Opens engines, each closed at the end."""
    engines: list[MysqlEngine] = []

    async def open_one(other: str = "") -> MysqlEngine:
        engine = create(other or url, SystemClock())
        await engine.open()
        engines.append(engine)
        return engine

    yield open_one
    for engine in engines:
        await engine.close()


@pytest.fixture
async def engine(opened: Opener) -> MysqlEngine:
    return await opened()

"""postgresql:// passes what every engine passes, and what is confirmed outlives a killed server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.testing.driver_contract import DriverContract
from easybus.testing.storage_contract import Caller, StorageContract


class User:
    """A user's own connection."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], *, commit: bool) -> list[int]:
        connection = await asyncpg.connect(self.url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            changed: list[int] = []
            try:
                for statement, values in statements:
                    changed.append(int((await connection.execute(statement, *values)).rpartition(" ")[2]))
            except BaseException:
                await transaction.rollback()
                raise
            await (transaction.commit() if commit else transaction.rollback())
            return changed
        finally:
            await connection.close()

    async def ask(self, statement: str) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class Postgresql:
    @pytest.fixture
    def url(self, postgresql_server: PostgresqlServer, request: pytest.FixtureRequest) -> str:
        """64 MiB may take longer than ten seconds, the default, on a busy machine."""
        return postgresql_server.schema() + ("&timeout=50" if "largest" in request.node.name else "")

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)

    @pytest.fixture
    def restart(self, postgresql_server: PostgresqlServer) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(postgresql_server.restart)

    @pytest.fixture
    def caller(self, url: str) -> Caller:
        return User(url.partition("?")[0])


class TestDriver(Postgresql, DriverContract):
    pass


class TestStorages(Postgresql, StorageContract):
    pass

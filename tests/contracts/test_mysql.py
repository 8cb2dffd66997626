"""mysql:// passes what every engine passes, and what is confirmed outlives a killed server. Run on MariaDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

import pymysql
import pytest
from tests.servers.mariadb import MariadbServer

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.testing.driver_contract import DriverContract
from easybus.testing.storage_contract import Caller, StorageContract


class User:
    """A user's own connection."""

    def __init__(self, server: MariadbServer) -> None:
        self._server = server

    async def run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], *, commit: bool) -> list[int]:
        return await asyncio.to_thread(self._run, statements, commit)

    async def ask(self, statement: str) -> Any:
        return await asyncio.to_thread(self._ask, statement)

    def _connect(self) -> Any:
        return closing(pymysql.connect(**self._server.address))

    def _run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], commit: bool) -> list[int]:
        with self._connect() as connection, connection.cursor() as cursor:
            connection.begin()
            changed = [cursor.execute(statement, values) for statement, values in statements]
            (connection.commit if commit else connection.rollback)()
            return changed

    def _ask(self, statement: str) -> Any:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0]


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class Mysql:
    @pytest.fixture
    def url(self, mariadb_server: MariadbServer) -> str:
        return mariadb_server.prefix()

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)

    @pytest.fixture
    def restart(self, mariadb_server: MariadbServer) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(mariadb_server.restart)

    @pytest.fixture
    def caller(self, mariadb_server: MariadbServer) -> Caller:
        return User(mariadb_server)


class TestDriver(Mysql, DriverContract):
    pass


class TestStorages(Mysql, StorageContract):
    pass

"""redis:// passes what every engine passes, on a server whose append-only file is written before it confirms."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.servers.redis import RedisServer

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.testing.driver_contract import DriverContract
from easybus.testing.storage_contract import StorageContract


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class Redis:
    @pytest.fixture
    def url(self, redis_server: RedisServer) -> str:
        return redis_server.url()

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)

    @pytest.fixture
    def restart(self, redis_server: RedisServer) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(redis_server.restart)


class TestDriver(Redis, DriverContract):
    pass


class TestStorages(Redis, StorageContract):
    forgets_by_itself = True

"""nats:// passes what every engine passes, and what is confirmed outlives a killed server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.servers.nats import NatsServer

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.testing.driver_contract import DriverContract


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class TestNats(DriverContract):
    @pytest.fixture
    def url(self, nats_server: NatsServer) -> str:
        return nats_server.prefix()

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)

    @pytest.fixture
    def restart(self, nats_server: NatsServer) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(nats_server.restart)

"""amqp:// passes what every engine passes, on a private RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.servers.rabbitmq import RabbitmqServer

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.testing.driver_contract import DriverFaults, DriverLeases, DriverMessages, DriverTopology


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class Rabbitmq:
    @pytest.fixture
    def url(self, rabbitmq_server: RabbitmqServer, request: pytest.FixtureRequest) -> str:
        """Declarations wait for the disk only where the server is killed."""
        return rabbitmq_server.url(settle=1.2 if "killed" in request.node.name else 0)

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)


class TestMessages(Rabbitmq, DriverMessages):
    pass


class TestTopology(Rabbitmq, DriverTopology):
    pass


class TestLeases(Rabbitmq, DriverLeases):
    pass


class TestFaults(Rabbitmq, DriverFaults):
    @pytest.fixture
    def restart(self, rabbitmq_server: RabbitmqServer) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(rabbitmq_server.restart)

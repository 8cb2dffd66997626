"""An open engine on the private server, and the same data seen by plain commands."""

from collections.abc import AsyncIterator

import pytest
from tests.servers.redis import RedisServer

from easybus.clock import SystemClock
from easybus.engines.redis.engine import RedisEngine
from easybus.engines.registry import create


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url(timeout="1")


@pytest.fixture
async def engine(url: str) -> AsyncIterator[RedisEngine]:
    engine = create(url, SystemClock())
    assert isinstance(engine, RedisEngine)
    await engine.open()
    yield engine
    await engine.close()

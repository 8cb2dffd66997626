"""One private Redis server for the whole test session, started when a test first asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .redis import RedisServer

__all__ = ["redis_process", "redis_server"]


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A running server; up again, whatever the test before has done to it."""
    redis_process.thaw()
    redis_process.start()
    return redis_process

"""Engines on schemas of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus.clock import SystemClock
from easybus.engines.postgresql import create
from easybus.engines.postgresql.engine import PostgresqlEngine

Opener = Callable[..., Awaitable[PostgresqlEngine]]


@pytest.fixture
def url(postgresql_server: PostgresqlServer) -> str:
    return postgresql_server.schema()


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Opener]:
    """Opens engines, each closed at the end."""
    engines: list[PostgresqlEngine] = []

    async def open_one(other: str = "") -> PostgresqlEngine:
        engine = create(other or url, SystemClock())
        await engine.open()
        engines.append(engine)
        return engine

    yield open_one
    for engine in engines:
        await engine.close()


@pytest.fixture
async def engine(opened: Opener) -> PostgresqlEngine:
    return await opened()

"""Engines on files of their own, with both SQLite libraries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from easybus.clock import SystemClock
from easybus.engines.sqlite import create
from easybus.engines.sqlite.engine import SqliteEngine


@pytest.fixture(params=["apsw", "sqlite3"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(tmp_path: Path, library: str) -> str:
    return f"sqlite:///{tmp_path}/bus.db?library={library}"


Opener = Callable[..., Awaitable[SqliteEngine]]


@pytest_asyncio.fixture
async def opened(url: str) -> AsyncIterator[Opener]:
    """Opens engines, each closed at the end."""
    engines: list[SqliteEngine] = []

    async def open_one(other: str = "") -> SqliteEngine:
        engine = create(other or url, SystemClock())
        await engine.open()
        engines.append(engine)
        return engine

    yield open_one
    for engine in engines:
        await engine.close()


@pytest_asyncio.fixture
async def engine(opened: Opener) -> SqliteEngine:
    return await opened()

"""An engine on a fresh prefix of the session's server, and another on the same."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from tests.servers.nats import NatsServer

from easybus.clock import SystemClock
from easybus.engines.contract import Driver, Engine
from easybus.engines.registry import create

Opener = Callable[..., Awaitable[Driver]]


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    return nats_server.prefix()


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """One that is hurt: not the session's."""
    server = NatsServer(sync=True, max_payload=1 << 20)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Opener]:
    """Opens engines, by default on the same prefix; all are closed in the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(at: str = url) -> Driver:
            engine: Engine = create(at, SystemClock())
            await engine.open()
            stack.push_async_callback(engine.close)
            assert engine.driver is not None
            return engine.driver

        yield open_one


@pytest.fixture
async def driver(opened: Opener) -> Driver:
    return await opened()

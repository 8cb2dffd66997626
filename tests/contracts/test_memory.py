"""memory:// passes what every engine passes."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import Engine
from easybus.engines.registry import create
from easybus.message import new_id
from easybus.testing.driver_contract import DriverContract
from easybus.testing.storage_contract import StorageContract


class Memory:
    @pytest.fixture
    def url(self) -> str:
        return f"memory://{new_id()}"

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = create(url, SystemClock())
        await engine.open()
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        async def reopen() -> Engine:
            engine = create(url, SystemClock())
            await engine.open()
            return engine

        return reopen


class TestDriver(Memory, DriverContract):
    pass


class TestStorages(Memory, StorageContract):
    pass

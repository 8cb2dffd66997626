"""The pytest plugin: a fixture that puts buses under test and takes them down again.

    async def test_a_receipt_is_sent(easybus_testing):
        t = await easybus_testing(bus)
        await orders.send(OrderPaid(1))
        await t.drain()

It needs a plugin that runs async tests, such as pytest-asyncio; `easybus_testing_blocking` is for plain ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import pytest

try:
    # In its strict mode, the default, pytest-asyncio runs only async fixtures that are declared with its own decorator.
    from pytest_asyncio import fixture as _async_fixture
except ImportError:
    _async_fixture = pytest.fixture

if TYPE_CHECKING:
    from ..bus import Bus
    from .blocking import BlockingHarness
    from .harness import Harness

__all__ = ["easybus_testing", "easybus_testing_blocking"]


@_async_fixture
async def easybus_testing() -> AsyncIterator[Callable[..., Awaitable[Harness]]]:
    """`t = await easybus_testing(bus, provide={…})`: the bus under test, until the test ends; see `Bus.testing`."""
    async with AsyncExitStack() as stack:

        async def begin(bus: Bus, **options: Any) -> Harness:
            return await stack.enter_async_context(bus.testing(**options))

        yield begin


@pytest.fixture
def easybus_testing_blocking() -> Iterator[Callable[..., BlockingHarness]]:
    """`t = easybus_testing_blocking(bus, provide={…})`, for plain tests, until the test ends."""
    with ExitStack() as stack:

        def begin(bus: Bus, **options: Any) -> BlockingHarness:
            return stack.enter_context(bus.testing(**options).blocking)

        yield begin

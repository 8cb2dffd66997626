"""The listener ends when it is closed, whatever the client library makes of a cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.exceptions import NoPermissionError

from easybus.clock import SystemClock
from easybus.engines.redis.wakes import Wakes


class Swallowing:
    """A client whose first cancellation, while it disconnects, becomes an error of its own."""

    def __init__(self) -> None:
        self.disconnecting = asyncio.Event()
        self.swallowed = 0

    def pubsub(self) -> Swallowing:
        return self

    async def subscribe(self, *channels: str) -> None:
        raise NoPermissionError("no channels")

    async def aclose(self) -> None:
        self.disconnecting.set()
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            self.swallowed += 1
            raise NoPermissionError("swallowed") from None


async def test_a_listener_whose_client_swallows_a_cancellation_is_closed_all_the_same() -> None:
    client: Any = Swallowing()
    wakes = Wakes(client, SystemClock())

    async def nothing() -> tuple[list[int], float]:
        return [], -1.0

    looking = asyncio.create_task(wakes.until_found("jobs", 30.0, nothing))
    await client.disconnecting.wait()
    async with asyncio.timeout(5.0):
        await wakes.close()
    assert client.swallowed >= 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "easybus redis wakes"]
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)

"""An open bus, and a queue of it that nobody handles: what is sent within callers' transactions arrives there."""

from __future__ import annotations

from easybus import Bus, Message
from easybus.bound import BusQueue
from easybus.engines.contract import Ack


class Shop:
    """A bus with the queue `orders`, opened by who made it."""

    def __init__(self, bus: Bus, url: str) -> None:
        self.bus = bus
        self.url = url
        self.orders: BusQueue[int] = bus.queue("orders", int)

    @property
    def database(self) -> str:
        """What comes behind the scheme, without the bus's options."""
        return self.url.partition("?")[0].partition("://")[2]

    async def arrived(self, number: int) -> list[int]:
        """So many messages, or what else is there."""
        found: list[int] = []
        for _ in range(50):
            for delivery in await self.bus.driver.fetch("orders", 100, 0.1, 30.0):
                await self.bus.driver.settle("orders", [Ack(delivery)])
                found.append(int(Message.from_bytes(delivery.body).payload))
            if len(found) >= number:
                break
        return found

    async def nothing_waits(self) -> bool:
        return await self.bus.outboxes[0].find() == [] and (await self.bus.driver.stats("orders")).ready == 0

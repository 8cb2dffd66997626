"""A sender that is killed: it commits messages in its transactions, and dies before or while its relay publishes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import asyncpg

from easybus import Bus, points


async def main(url: str, where: str) -> None:
    async def die(name: str) -> None:
        if name == where:
            os.kill(os.getpid(), signal.SIGKILL)

    bus = Bus(url, service="shop")
    orders = bus.queue("orders", int)
    async with bus:
        points.hook = die
        connection = await asyncpg.connect(url.partition("?")[0])
        for number in range(1000):  # until its own relay, and not the living one's, has one in hand
            async with connection.transaction():
                await orders.send(number, within=connection)
            print(number, flush=True)
            await asyncio.sleep(0)
            if where == "committed":
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0.02)


asyncio.run(main(*sys.argv[1:]))

"""A worker that kills itself at a point, or stalls there: `worker.py URL POINT [stall]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from asyncmy import Connection

from easybus import Bus, points

url, fatal, *how = sys.argv[1:]
bus = Bus(url)
passed = asyncio.Event()


@bus.queue("payments", int).handler(within=Connection, lease=1)
async def write(amount: int, connection: Connection) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("INSERT INTO ledger VALUES (%s)", (amount,))


async def reached(point: str) -> None:
    if point != fatal or passed.is_set():
        return
    if not how:
        os.kill(os.getpid(), signal.SIGKILL)
    passed.set()
    print("stalling", flush=True)
    await asyncio.sleep(0.5)  # stopped from outside meanwhile


async def main() -> None:
    points.hook = reached
    async with bus.handling():
        await passed.wait()
        await asyncio.sleep(2.0)


asyncio.run(main())

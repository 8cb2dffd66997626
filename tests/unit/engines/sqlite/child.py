"""A process of its own on a SQLite file: `child.py URL DEED [NUMBER]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, Claim, DeclareQueue, Publication
from easybus.engines.sqlite import create
from easybus.engines.sqlite.engine import SqliteEngine


async def open_and_close(engine: SqliteEngine, number: int) -> None:
    await engine.driver.declare([DeclareQueue("q")])


async def publish_and_die(engine: SqliteEngine, number: int) -> None:
    results = await engine.driver.publish([Publication(False, "q", b"%d" % at) for at in range(number)])
    assert results == [1] * number
    os.kill(os.getpid(), signal.SIGKILL)


async def write(engine: SqliteEngine, number: int) -> None:
    """Many small transactions of each kind."""
    me = os.getpid()
    for at in range(number):
        assert await engine.driver.publish([Publication(False, "q", b"%d.%d" % (me, at))]) == [1]
        await engine.idempotency.claim([Claim("q", f"{me}.{at}", b"d", 30.0)])


async def echo(engine: SqliteEngine, number: int) -> None:
    """Answer each message on the queue `there` with the time of its arrival, on the queue `back`."""
    print("ready", flush=True)
    for _ in range(number):
        (delivery,) = await engine.driver.fetch("there", 1, 30.0, 30.0)
        arrived = b"%r" % time.time()
        await engine.driver.settle("there", [Ack(delivery)])
        await engine.driver.publish([Publication(False, "back", arrived)])


async def main(url: str, deed: str, number: int) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    await {
        "open": open_and_close,
        "publish-and-die": publish_and_die,
        "write": write,
        "echo": echo,
    }[deed](engine, number)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1))

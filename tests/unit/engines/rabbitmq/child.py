"""A process that publishes or fetches, and kills itself the moment that returned: `child.py URL DEED QUEUE`."""

import asyncio
import os
import signal
import sys

from easybus.clock import SystemClock
from easybus.engines.registry import create
from easybus.testing.driver_base import receive, to_queue


async def main(url: str, deed: str, queue: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    assert engine.driver is not None
    if deed == "publish":
        await engine.driver.publish([to_queue(queue, b"%d" % number) for number in range(100)])
    else:
        await receive(engine.driver, queue, 5, ack=False)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main(*sys.argv[1:]))

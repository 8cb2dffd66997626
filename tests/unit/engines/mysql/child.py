"""Another process: `child.py URL DEED QUEUE-OR-TOPIC`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from easybus.clock import SystemClock
from easybus.engines.contract import Publication
from easybus.engines.mysql import create


async def main(url: str, deed: str, name: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    if deed == "fetch-and-die":
        assert len(await engine.driver.fetch(name, 1, 5.0, 0.5)) == 1
        os.kill(os.getpid(), signal.SIGKILL)
    while await asyncio.to_thread(sys.stdin.readline):  # publish-on-demand
        (reached,) = await engine.driver.publish([Publication(True, name, b"x", "a")])
        print(reached, flush=True)
    await engine.close()


asyncio.run(main(*sys.argv[1:]))

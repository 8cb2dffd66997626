"""A process of its own on a SQLite file, for tests that kill it: `sqlite_child.py URL DEED QUEUE [NUMBER]`."""

import asyncio
import os
import signal
import sys

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, Claim, Claimed, DeadLetter, DeclareQueue, Half, Publication
from easybus.engines.registry import create


def say(line: str) -> None:
    print(line, flush=True)


async def main(url: str, deed: str, queue: str, number: int) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    driver = engine.driver
    if deed == "publish-and-die":
        await driver.declare([DeclareQueue(queue)])
        results = await driver.publish([Publication(False, queue, b"%d" % at) for at in range(number)])
        assert not any(isinstance(result, Exception) for result in results)
    elif deed == "publish-until-killed":
        await driver.declare([DeclareQueue(queue)])
        say("began")
        at = 0
        while True:
            await driver.publish([Publication(False, queue, b"%d/%d" % (at, part)) for part in range(10)])
            say(str(at))
            at += 1
    elif deed == "fetch-and-die":
        held = await driver.fetch(queue, number, 5.0, 1.0)
        say(str(len(held)))
    elif deed == "store-and-die":
        (claimed,) = await engine.idempotency.claim([Claim(queue, "done", b"d", 60.0)])
        assert isinstance(claimed, Claimed)
        assert await engine.idempotency.complete([(claimed.token, 60.0)]) == [True]
        await engine.idempotency.claim([Claim(queue, "held", b"d", 1.0)])
        await engine.dead_letters.store(DeadLetter(queue=queue, body=b"dead", reason="why"))
        await engine.transactions.store(Half(id=queue, service="shop", topic="orders", body=b"half"), 0.0)
    elif deed == "work":
        await driver.declare([DeclareQueue(queue)])
        for at in range(number):
            await driver.publish([Publication(False, queue, b"%d.%d" % (os.getpid(), at))])
            batch = await driver.fetch(queue, 5, 0.0, 60.0)
            for one in batch:
                say(one.body.decode())
            await driver.settle(queue, [Ack(one) for one in batch])
        await engine.close()
        return
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 1))

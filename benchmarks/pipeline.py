"""What the pipeline itself costs: an engine that has every message at hand and answers at once, in no time of its own.

What is counted is processor time from the fetched bytes to the acked message: decoding the envelope and the payload,
the digest, the claim's way, the slot, the handler's call, the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from easybus.clock import SystemClock
from easybus.connection import Publisher
from easybus.engines.contract import Claim, Claimed, Delivery, Finish, Taken
from easybus.engines.memory.driver import MemoryDriver
from easybus.message import Message
from easybus.payloads import Payloads
from easybus.receiving.claim import Intake
from easybus.receiving.hand import Company
from easybus.receiving.invoke import Invoker, Providers
from easybus.receiving.pipeline import Pipeline
from easybus.receiving.receiver import Receiver
from easybus.receiving.settle import Settler
from easybus.receiving.subscription import HandlerOptions, Subscription

from .ours import SLOTS, Order, _run, order


class Instant:
    """A driver whose queue was filled beforehand, fused with keys that nobody else wants."""

    caps = MemoryDriver.caps

    def __init__(self, messages: int) -> None:
        payloads = Payloads((Order,))
        self._deliveries: list[Delivery] = []
        for number in range(messages):
            payload, kind = payloads.encode(order(number))
            body = Message(id=f"{number:036d}", payload=payload, headers={"type": kind}).to_bytes()
            self._deliveries.append(Delivery("orders", body, 1, number))

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        found, self._deliveries = self._deliveries[-limit:], self._deliveries[:-limit]
        if not found:
            await asyncio.sleep(wait)
        return [Taken(one, parse(one)[1], Claimed("1-token", False, 1)) for one in found]

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        return [True] * len(batch)

    async def publish(self, batch: Sequence[Any]) -> list[Any]:
        return [1] * len(batch)


def cost(messages: int, uvloop: bool = False) -> dict[str, float]:
    """Processor time of the pipeline for each message, in microseconds."""
    return _run(_cost(messages), uvloop)


async def _cost(messages: int) -> dict[str, float]:
    clock, logger = SystemClock(), logging.getLogger("benchmark")
    driver: Any = Instant(messages)
    left = messages
    all_handled = asyncio.Event()

    async def handle(_: Order) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_handled.set()

    subscription = Subscription("orders", HandlerOptions(concurrency=SLOTS), Payloads((Order,)))
    subscription.functions[Order] = Invoker(handle, Providers({}))
    keys: Any = object()
    settler = Settler(subscription, Publisher(driver), keys, None, fused=True, clock=clock, logger=logger)
    pipeline = Pipeline(subscription, settler, Company(), exactly_once=None, clock=clock, logger=logger)
    intake = Intake(subscription, driver, keys, fused=True, logger=logger)
    receiver = Receiver(pipeline, intake, settler, replayer=None, clock=clock, logger=logger)
    used = time.process_time()
    receiver.start()
    await all_handled.wait()
    used = time.process_time() - used
    await receiver.stop(1.0)
    return {"pipeline_us": used / messages * 1e6}

"""One queue's processes on the memory engine and a virtual clock, with calls that fail, and a look at their order."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.unit.turns import settle

from easybus.connection import Publisher
from easybus.engines.contract import Claim, Claimed, DeclareQueue, Publication, QueueStats
from easybus.engines.memory import create
from easybus.errors import Unavailable
from easybus.message import Message
from easybus.receiving.claim import Intake
from easybus.receiving.hand import Company
from easybus.receiving.invoke import Invoker, Providers
from easybus.receiving.pipeline import Pipeline
from easybus.receiving.receiver import Receiver
from easybus.receiving.replay import Replayer
from easybus.receiving.settle import Settler
from easybus.receiving.subscription import HandlerOptions, Subscription
from easybus.testing.virtual import VirtualClock

LEASE = 9.0
QUEUE = "jobs"


class Noted:
    """A driver or storage whose calls are noted, and can be made to fail."""

    def __init__(self, target: Any, calls: list[str]) -> None:
        self._target = target
        self._calls = calls
        self.failing: Counter[str] = Counter()
        self.held: dict[str, asyncio.Event] = {}
        """Calls that wait for these."""
        self.down = False

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._target, name)
        if not asyncio.iscoroutinefunction(target):
            return target

        async def call(*args: Any, **kwargs: Any) -> Any:
            kinds = [type(one).__name__ for one in args[1]] if name == "settle" else []
            self._calls.extend(kinds or [name])
            if self.down or self.failing[name] > 0:
                self.failing[name] -= 1
                raise Unavailable(f"{name} fails")
            if name in self.held:
                await self.held[name].wait()
            return await target(*args, **kwargs)

        return call


class Room:
    """A queue, and the processes that handle it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.engine = create("memory://", self.clock)
        self.calls: list[str] = []
        self.driver = Noted(self.engine.driver, self.calls)
        self.keys = Noted(self.engine.idempotency, self.calls)
        self.letters = Noted(self.engine.dead_letters, self.calls)
        self._receivers: list[Receiver] = []

    async def open(self) -> None:
        await self.engine.open()
        await self.engine.driver.declare([DeclareQueue(QUEUE)])

    async def close(self) -> None:
        for receiver in self._receivers:
            stopping = asyncio.ensure_future(receiver.stop(0.0))
            while not stopping.done():
                await asyncio.sleep(0.001)
                await self.advance(0.1)
        await self.engine.close()

    def process(
        self, handle: Callable[..., Any], *, in_queue: bool = False, exactly_once: Any = None, **options: Any
    ) -> Receiver:
        """Start what handles the queue in another process. `in_queue`: its dead letters go to a queue."""
        subscription = Subscription(QUEUE, HandlerOptions(**{"lease": LEASE, **options}))
        subscription.functions[Any] = Invoker(handle, Providers({}))
        logger = logging.getLogger("easybus")
        driver: Any = self.driver
        publisher = Publisher(driver, self.clock)
        keys: Any = self.keys
        letters: Any = self.letters
        common: dict[str, Any] = {"clock": self.clock, "logger": logger}
        settler = Settler(subscription, publisher, keys, None if in_queue else letters, fused=False, **common)
        pipeline = Pipeline(subscription, settler, Company(), exactly_once=exactly_once, **common)
        intake = Intake(subscription, driver, keys, fused=False, logger=logger)
        replayer = Replayer(QUEUE, letters, publisher, **common)
        receiver = Receiver(pipeline, intake, settler, replayer=replayer, **common)
        receiver.start()
        self._receivers.append(receiver)
        return receiver

    # ------------------------------------------------------------------------------------------------- from outside

    async def send(self, id: str, payload: bytes = b"1", **fields: Any) -> None:
        body = Message(id=id, payload=payload, **fields).to_bytes()
        assert await self.engine.driver.publish([Publication(False, QUEUE, body)]) == [1]
        await self.advance(0)

    async def claim(self, id: str, payload: bytes = b"1") -> Any:
        """Another process's claim."""
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        [claim] = await self.engine.idempotency.claim([Claim(QUEUE, id, digest, LEASE)])
        return claim

    async def take_over(self, id: str) -> str:
        """Another process takes the key over, as if its holder had stood still; returns the new token."""
        self.engine.idempotency._keys._queues[QUEUE][id].until = 0.0
        claim = await self.claim(id)
        assert isinstance(claim, Claimed)
        return claim.token

    async def begun(self, id: str, times: int) -> None:
        """So many processes began it, and died of it."""
        for _ in range(times):
            assert isinstance(await self.claim(id), Claimed)
            self.clock.advance_to(self.clock.time() + LEASE)

    async def stats(self) -> tuple[int | None, int | None, int | None]:
        """Ready, in flight, delayed."""
        stats: QueueStats = await self.engine.driver.stats(QUEUE)
        return stats.ready, stats.in_flight, stats.delayed

    async def dead(self) -> list[Any]:
        return await self.engine.dead_letters.find()

    async def state(self, id: str) -> str:
        return await self.engine.idempotency.lookup(QUEUE, id)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, with everything that falls due in them."""
        until = self.clock.time() + seconds
        await settle()
        while (when := self.clock.next_due()) is not None and when <= until:
            self.clock.advance_to(when)
            self.clock.run_due()
            await settle()
        self.clock.advance_to(until)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    await room.open()
    yield room
    await room.close()

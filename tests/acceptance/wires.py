"""A process's own way to everything that outlives it: engines, the clock, the ledger. Cut, nothing goes through."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from easybus.clock import Timer, sleep
from easybus.engines.contract import Delivery, Move, Publication, Settlement, held_up
from easybus.errors import TooLarge, Unavailable
from easybus.testing.virtual import VirtualClock

from .scenarios import Ledger

if TYPE_CHECKING:
    from .simulation import Process


class Died(BaseException):
    """The process died here."""


class Wire:
    """One process's way to a driver or storage."""

    def __init__(self, process: Process, target: Any) -> None:
        self.process = process
        self.target = target

    def __getattr__(self, name: str) -> Any:
        if name in ("take", "finish"):
            raise AttributeError(name)  # only a fused driver has these
        target = getattr(self.target, name)
        if not asyncio.iscoroutinefunction(target):
            return target

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self.process.call(name, lambda: target(*args, **kwargs))

        return call


class WiredOutbox(Wire):
    async def wait(self, seconds: float) -> None:
        await self.process.alive()
        await sleep(self.process.clock, seconds, poll=True)


class WiredDriver(Wire):
    """Keys apart."""

    @property
    def caps(self) -> Any:
        kind, caps = self.process.world.kind, self.target.caps
        if kind in ("copying", "unfenced"):
            caps = dataclasses.replace(caps, atomic_move=False, fenced=kind == "copying")
        return caps if self.process.world.plan.unbroken else dataclasses.replace(caps, unbroken=False)

    def _refused(self, item: Any) -> TooLarge | None:
        most = self.process.world.scenario.largest
        body = item.body if isinstance(item, Publication | Move) else b""
        return None if most is None or len(body) <= most else TooLarge(f"{len(body)} bytes, {most} are taken")

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        return await self.process.fetching("fetch", lambda w: self.target.fetch(queue, limit, w, lease), wait)

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        async def target() -> list[int | Exception | None]:
            failures: list[Exception | None] = []
            for at, item in enumerate(batch):
                failure: Exception | None = self._refused(item)
                if at == 0 and self.process.last_fault == "first fails":
                    failure = Unavailable("the first of the batch fails")
                elif at and self.caps.unbroken and held_up(item, failures[-1]):
                    failure = failures[-1]
                failures.append(failure)
            taken = [item for item, failure in zip(batch, failures, strict=True) if failure is None]
            results = iter(await self.target.publish(taken))
            return [failure or next(results) for failure in failures]

        return await self.process.call("publish", target)

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Any:
        for item in batch:
            if (refused := self._refused(item)) is not None:
                raise refused
        if self.process.world.kind == "unfenced":  # a late ack settles what another holds
            batch = [_unfenced(one) for one in batch]
        return await self.process.call("settle", lambda: self.target.settle(queue, batch))


class WiredFusedDriver(WiredDriver):
    """Keys and messages in one step."""

    async def take(self, queue: str, limit: int, wait: float, lease: float, parse: Any) -> Any:
        return await self.process.fetching("take", lambda w: self.target.take(queue, limit, w, lease, parse), wait)

    async def finish(self, queue: str, batch: Any) -> Any:
        return await self.process.call("finish", lambda: self.target.finish(queue, batch))


class WiredEngine:
    """One process's view of the world's engine."""

    def __init__(self, process: Process, engine: Any) -> None:
        self.url = engine.url
        self._process = process
        self._engine = engine
        fused = process.world.kind in ("fused", "sqlite")
        self.driver = (WiredFusedDriver if fused else WiredDriver)(process, engine.driver)
        self.idempotency = Wire(process, engine.idempotency)
        self.dead_letters = Wire(process, engine.dead_letters)
        self.transactions = Wire(process, engine.transactions)
        self.outbox = None if engine.outbox is None else WiredOutbox(process, engine.outbox)

    def transaction(self, kind: type[Any], lease: float = math.inf) -> Any:
        begun = self._engine.transaction(kind, lease)
        return None if begun is None else self._transaction(begun)

    @contextlib.asynccontextmanager
    async def _transaction(self, begun: Any) -> AsyncGenerator[Any]:
        process = self._process
        raw = await process.surely(begun.__aenter__)
        if process.dead:
            await process.surely(lambda: begun.__aexit__(Died, Died(), None))
            await process.alive()
        try:
            yield raw
        except BaseException as error:  # a dead process's transaction is rolled back by its database
            cause = error
            await process.surely(lambda: begun.__aexit__(type(cause), cause, cause.__traceback__))
            raise
        if process.dead or process.fault("commit") == "fails":
            failed = Unavailable("the commit failed")
            with contextlib.suppress(Unavailable):
                await process.surely(lambda: begun.__aexit__(Unavailable, failed, None))
            await process.alive()
            raise failed
        await process.surely(lambda: begun.__aexit__(None, None, None))
        if process.last_fault == "loses":
            raise Unavailable("the commit's reply is lost")

    async def open(self) -> None:
        await self._process.alive()

    async def close(self) -> None:
        pass


class ProcessClock:
    """The world's clock; a dead process hears nothing of it."""

    def __init__(self, process: Process, clock: VirtualClock) -> None:
        self._process = process
        self._clock = clock

    def time(self) -> float:
        return self._clock.time()

    def call_later(self, delay: float, callback: Callable[[], Any], *, poll: bool = False) -> Timer:
        return self._clock.call_later(delay, lambda: None if self._process.dead else callback(), poll=poll)


class ProcessLedger(Ledger):
    """The world's ledger; a dead process writes nothing in it."""

    def __init__(self, process: Process, ledger: Ledger) -> None:
        self._process = process
        self._ledger = ledger

    def write(self, what: str, id: str) -> None:
        if self._process.dead:
            raise Died
        self._ledger.write(what, id)

    def read(self) -> list[tuple[str, str]]:
        return self._ledger.read()


def _unfenced(settlement: Any) -> Any:
    delivery = settlement.delivery
    latest = msgspec.structs.replace(delivery, attempt=delivery.receipt.attempt)
    return msgspec.structs.replace(settlement, delivery=latest)

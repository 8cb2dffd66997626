"""One driver as the core uses it: publishes go in batches, and a delayed topic send waits in a queue of the core's.

publish → [deferred: wrapped, to DEFERRED_QUEUE with the delay] → batcher → driver.publish

deferred: DEFERRED_QUEUE, due → publish to the topic, confirmed → ack       (any open bus of the engine)
  a death between the last two publishes a second copy under the same id: harmless
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from .batching import Batcher
from .clock import Clock, SystemClock, sleep
from .engines.contract import Ack, DeclareQueue, Delivery, Driver, Nack, Publication
from .errors import BadDelay, EngineError, EnvelopeError, Refused
from .message import DEFERRED, Message, new_id

__all__ = ["DEFERRED_QUEUE", "Publisher"]

DEFERRED_QUEUE = "easybus.deferred"
_PUMP_WAIT = 5.0
_PUMP_LEASE = 30.0
_REFUSED_AGAIN = 60.0


class Publisher:
    """Publishing through one driver: what concurrent tasks publish crosses together."""

    def __init__(self, driver: Driver, clock: Clock | None = None, logger: logging.Logger | None = None) -> None:
        self.driver = driver
        self.clock = clock or SystemClock()
        self._logger = logger or logging.getLogger("easybus")
        self._batcher: Batcher[Publication, int | None] = Batcher(driver.publish)
        self.observer: Callable[[Publication], None] | None = None
        """Told of every publication that is asked for: for tests."""

    def publish(self, publication: Publication) -> asyncio.Future[int | None]:
        """Publish; the future is the number of queues reached, None where it cannot be known.

        Raises, from the future: `Unavailable` (it may or may not be there; publishing the same again is safe) or
        `Refused`.
        """
        try:
            return self._batcher.add(self._checked(publication))
        except BadDelay as error:
            return _failed(error)

    async def publish_unbroken(self, batch: Sequence[Publication]) -> Sequence[int | Exception | None]:
        """Publish in one call, in which an item that is `behind` another is not there without that one: for engines
        that are `unbroken`.

        Raises:
            Refused: an item cannot be asked for; nothing was published.
            EngineError: how much of it is there, nobody knows; what is there has all before it there too.
        """
        return await self.driver.publish([self._checked(publication) for publication in batch])

    def _checked(self, publication: Publication) -> Publication:
        """As it goes to the driver. Raises `BadDelay`."""
        if self.observer is not None:
            self.observer(publication)
        delay, caps = publication.delay, self.driver.caps
        if delay is not None and not 0 <= delay <= caps.max_delay:
            raise BadDelay(f"a delay of {delay} s; from 0 to {caps.max_delay:.0f} s is possible")
        if publication.to_topic and delay and not caps.delays_topics:
            return deferred(publication)
        return publication

    @property
    def busy(self) -> bool:
        """Whether publishes are under way."""
        return self._batcher.busy

    async def prepare(self) -> None:
        """Declare what the core itself needs."""
        if not self.driver.caps.delays_topics:
            await self.driver.declare([DeclareQueue(DEFERRED_QUEUE)])

    async def drained(self) -> None:
        """Wait until every publish has its result."""
        await self._batcher.drained()

    async def pump(self) -> None:
        """Publish deferred topic sends that are due, until cancelled."""
        if self.driver.caps.delays_topics:
            return
        pause = 0.1
        while True:
            try:
                due = await self.driver.fetch(DEFERRED_QUEUE, 100, _PUMP_WAIT, _PUMP_LEASE)
                await self._publish_due(due)
                pause = 0.1
            except EngineError as error:
                self._logger.debug("deferred sends wait: %s", error)
                await sleep(self.clock, pause)
                pause = min(pause * 2, 5.0)

    async def _publish_due(self, due: Sequence[Delivery]) -> None:
        if not due:
            return
        results = await asyncio.gather(*(self._publish_one(delivery) for delivery in due), return_exceptions=True)
        settlements: list[Ack | Nack] = []
        for delivery, result in zip(due, results, strict=True):
            if isinstance(result, Refused | EnvelopeError):
                # Refused for good is still no reason to lose it: the topic may be declared again.
                self._logger.error("a deferred message cannot be published, tried again in 60 s: %s", result)
                settlements.append(Nack(delivery, _REFUSED_AGAIN))
            elif isinstance(result, BaseException):
                settlements.append(Nack(delivery, 1.0))
            else:
                settlements.append(Ack(delivery))
        await self.driver.settle(DEFERRED_QUEUE, settlements)

    async def _publish_one(self, delivery: Delivery) -> None:
        wrapped = Message.from_bytes(delivery.body)
        topic = wrapped.headers[DEFERRED]
        await self._batcher.add(
            Publication(True, topic, wrapped.payload, wrapped.route_key, delay=0.0, dedupe_id=wrapped.id)
        )


def deferred(publication: Publication) -> Publication:
    """A delayed topic send as a delayed send to the queue where such ones wait."""
    wrapped = Message(
        id=publication.dedupe_id or new_id(),
        payload=publication.body,
        route_key=publication.route_key,
        headers={DEFERRED: publication.name},
    )
    return Publication(
        False,
        DEFERRED_QUEUE,
        wrapped.to_bytes(),
        delay=publication.delay,
        dedupe_id=publication.dedupe_id,
        behind=publication.behind,
    )


def _failed(error: Exception) -> asyncio.Future[int | None]:
    future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future

"""One queue's consumers: the server pushes, `fetch` takes.

    delivered → buffer → fetched (a lease runs) → acked | nacked
                  │          └ its lease ends → back to the server
                  └ nobody asks for half a second → consumers cancelled, back to the server

Prefetch is what fetches ask for: never more is taken from the server than `held + asked for`, and twice of that while
all of it is settled again within a tenth of a second, so that the next messages are here when the last ones are acked.
What then waits for half a second goes back. Prefetch is fixed for each consumer, so a larger demand adds a consumer, on
the same channel. RabbitMQ itself has no leases: it gives a message to another when the channel ends. The lease is kept
here, so a delivery that is stale is known to be: `settle` says so. A server that cancels a consumer, or closes the
channel, is asked for another by the fetch that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

from pika import exceptions

from ...errors import EngineError, NotDeclared, Unavailable
from ...message import new_id
from ..contract import Delivery
from .channel import Channel
from .confirms import ATTEMPTS
from .link import Link
from .names import encoded

__all__ = ["Held", "Subscription"]

_LEAST_WAIT = 0.05
"""Seconds that a fetch waits at least: what is there is on its way, not at hand."""
_LARGE = 65_536
"""Bytes in that time that tell of a message that has begun to arrive, and is waited for: `_LATEST` seconds at most."""
_LATEST = 2.0
_ELECTION = 2.0
"""Seconds that one attempt to subscribe may take: a server that has just started forgets those that came too early."""
_STARVED = 0.05
"""Seconds without a message, all of the prefetch being held, after which a fetch adds to it."""
_IDLE = 0.5
_QUICK = 0.1
"""Seconds in which all of the prefetch is settled where twice of it is asked for."""
_LARGEST_PREFETCH = 65_535


class Held:
    """A delivery's receipt."""

    __slots__ = ("came", "tag", "until")

    def __init__(self, tag: int, came: float) -> None:
        self.tag = tag
        self.came = came
        """When, by the loop's clock."""
        self.until = 0.0
        """When its lease ends, by the loop's clock; 0: it is in the buffer."""


class Subscription:
    """What one queue delivers to this process."""

    def __init__(self, link: Link, queue: str) -> None:
        self._link = link
        self._queue = queue
        self._channel: Channel | None = None
        self._consumers: dict[str, int] = {}
        self._asked = 0
        """The most that a fetch has asked for since nothing was subscribed."""
        self._settled, self._since, self._turn = 0, 0.0, math.inf
        """How many were acked since when, and in how many seconds all of the prefetch was acked last."""
        self._subscribing = asyncio.Lock()
        self._unsettled: dict[int, Held] = {}
        self._buffer: deque[Delivery] = deque()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._lapses: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._releasing: asyncio.Task[None] | None = None
        self._closed: Exception | None = None

    # ------------------------------------------------------------------------------------------------------ fetching

    async def fetch(self, limit: int, wait: float, lease: float) -> list[Delivery]:
        """As `Driver.fetch`."""
        loop = asyncio.get_running_loop()
        self._asked = max(self._asked, limit)
        if not self._buffer and limit > self._capacity:
            await self._subscribed(limit, loop.time() + wait)
        elif self._turn <= _QUICK and self._exhausted(limit) and self._capacity < 2 * self._asked:
            held = len(self._unsettled) + sum(self._waiting.values())
            await self._subscribed(2 * self._asked - held, loop.time() + wait)
        ends = loop.time() + max(wait, _LEAST_WAIT)
        received = self._link.received
        while not self._buffer:
            left = ends - loop.time()
            if left <= 0:
                if self._link.received - received < _LARGE or left < -_LATEST:
                    return []
                received, left = self._link.received, _LEAST_WAIT  # a large message is under way
            # Acks may be on their way, and make room: more is asked of the server only if nothing comes for a while.
            await self._wait(limit, min(left, _STARVED) if self._exhausted(limit) else left)
            if not self._buffer and ends > loop.time():
                await self._subscribed(limit, ends)
        return self._take(limit, loop.time(), lease)

    async def _wait(self, limit: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting[woken] = limit
        timer = loop.call_later(seconds, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            del self._waiting[woken]
            if self._buffer:
                self._wake_one()  # it is not for us alone, and we may be leaving

    def _take(self, limit: int, now: float, lease: float) -> list[Delivery]:
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        for delivery in taken:
            delivery.receipt.until = now + lease
        self._watch_leases(now + lease)
        if self._buffer:
            self._wake_one()
            self._watch_idle()
            if self._buffer[0].receipt.came + _IDLE < now:
                self._release_soon()
        return taken

    def _wake_one(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
                return

    # ---------------------------------------------------------------------------------------------------- subscribing

    @property
    def _capacity(self) -> int:
        return sum(self._consumers.values())

    def _exhausted(self, limit: int) -> bool:
        """Whether the server may send less than is asked for, all of the prefetch being held."""
        return len(self._unsettled) + limit + sum(self._waiting.values()) > self._capacity

    async def _subscribed(self, limit: int, ends: float) -> None:
        """Subscribe; while the server is only busy electing a leader for the queue, try again until `ends`."""
        while True:
            try:
                await self._subscribe(limit)
                return
            except Unavailable:
                if not self._link.up or asyncio.get_running_loop().time() + _ELECTION > ends:
                    raise
                await asyncio.sleep(_LEAST_WAIT)

    async def _subscribe(self, limit: int) -> None:
        """See to it that `limit` may come. Raises `NotDeclared`, `Unavailable`, `NotOpen`."""
        if self._closed is not None:
            raise self._closed
        async with self._subscribing:
            missing = len(self._unsettled) + limit + sum(self._waiting.values()) - self._capacity
            missing = min(missing, _LARGEST_PREFETCH)
            if self._buffer or (self._consumers and missing <= 0):
                return
            channel = self._channel
            if channel is None or channel.why is not None:
                channel = await Channel.open(self._link, self._lost)
                channel.raw.add_on_cancel_callback(self._cancelled)
                self._channel = channel
            what = f"fetching from queue {self._queue!r}"
            tag = new_id()
            try:
                await channel.call("basic_qos", what, _ELECTION, prefetch_count=missing)
                # Noted before it is asked for: the server's answer may come in one read with the consumer's end.
                self._consumers[tag] = missing
                await channel.call(
                    "basic_consume",
                    what,
                    _ELECTION,
                    queue=encoded(self._queue, "a queue"),
                    on_message_callback=self._delivered,
                    consumer_tag=tag,
                )
            except BaseException:
                self._consumers.pop(tag, None)
                channel.forget()  # it may consume all the same
                raise

    def _delivered(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        held = Held(method.delivery_tag, asyncio.get_running_loop().time())
        self._unsettled[held.tag] = held
        headers: dict[str, Any] = properties.headers or {}
        attempt = 1 + _count(headers.get("x-delivery-count")) + _count(headers.get(ATTEMPTS))
        self._buffer.append(Delivery(self._queue, body, attempt, held))
        if self._waiting:
            self._wake_one()
        else:
            self._watch_idle()

    def _cancelled(self, frame: Any) -> None:
        """The server ended a consumer: its queue was deleted, or moved. What it delivered is still ours."""
        self._consumers.pop(frame.method.consumer_tag, None)
        self._wake_all()

    def _lost(self, _: Exception) -> None:
        """The channel is closed: the server gives all of it to others."""
        self._unsubscribed()
        self._unsettled.clear()
        self._buffer.clear()
        self._channel = None
        self._wake_all()

    def _unsubscribed(self) -> None:
        self._consumers = {}
        self._asked, self._turn = 0, math.inf

    def _wake_all(self) -> None:
        for waiting in self._waiting:
            _wake(waiting)

    # ------------------------------------------------------------------------------------------------------- settling

    def holds(self, held: Held) -> bool:
        """Whether the delivery is still the caller's."""
        return self._unsettled.get(held.tag) is held

    def extend(self, held: Held, lease: float) -> None:
        """Its lease ends `lease` seconds from now."""
        held.until = asyncio.get_running_loop().time() + lease
        self._watch_leases(held.until)

    def ack(self, done: Iterable[Held]) -> None:
        """Ack what is held; all from the oldest on in one frame."""
        tags = {held.tag for held in done}
        if not tags or self._channel is None:
            return
        last = together = 0
        for tag in self._unsettled:
            if tag not in tags:
                break
            last, together = tag, together + 1
        with contextlib.suppress(exceptions.AMQPError):  # closed under us: then they go to others, and are stale
            if together > 1:
                self._channel.raw.basic_ack(last, multiple=True)
            for tag in tags:
                if together <= 1 or tag > last:
                    self._channel.raw.basic_ack(tag)
        for tag in tags:
            self._unsettled.pop(tag, None)
        self._settled += len(tags)
        if self._consumers and self._settled >= self._capacity:
            now = asyncio.get_running_loop().time()
            self._turn, self._since, self._settled = now - self._since, now, 0

    def back(self, given: Iterable[Held]) -> None:
        """Give these back to the server, to be delivered again now."""
        for held in given:
            if self._unsettled.pop(held.tag, None) is not None and self._channel is not None:
                with contextlib.suppress(exceptions.AMQPError):
                    self._channel.raw.basic_nack(held.tag, requeue=True)

    # --------------------------------------------------------------------------------------------- leases and idleness

    def _watch_leases(self, until: float) -> None:
        if self._lapses is not None and not self._lapses.cancelled():
            if self._lapses.when() <= until:
                return
            self._lapses.cancel()
        self._lapses = asyncio.get_running_loop().call_at(until, self._lapse)

    def _lapse(self) -> None:
        self._lapses = None
        now = asyncio.get_running_loop().time()
        self.back([held for held in self._unsettled.values() if 0 < held.until <= now])
        ends = [held.until for held in self._unsettled.values() if held.until]
        if ends:
            self._watch_leases(min(ends))

    def _watch_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE, self._release_soon)

    def _release_soon(self) -> None:
        self._idle = None
        if self._buffer and not self._waiting and self._releasing is None:
            self._releasing = asyncio.get_running_loop().create_task(self._release(), name="easybus release")

    async def _release(self) -> None:
        """Nobody asks: what is in the buffer goes back, and nothing more is sent here until somebody does."""
        try:
            async with self._subscribing:
                consumers = self._consumers
                self._unsubscribed()
                channel = self._channel
                if channel is not None:
                    with contextlib.suppress(EngineError):
                        for consumer in consumers:
                            await channel.call("basic_cancel", "releasing", consumer_tag=consumer)
                unasked = list(self._buffer)
                self._buffer.clear()
                self.back(delivery.receipt for delivery in unasked)
        finally:
            self._releasing = None

    # --------------------------------------------------------------------------------------------------------- ending

    async def close(self, why: Exception) -> None:
        """End: who waits gets `why`; what is unsettled goes to others when the channel closes."""
        self._closed = why
        for timer in (self._lapses, self._idle):
            if timer is not None:
                timer.cancel()
        if self._releasing is not None:
            self._releasing.cancel()
            await asyncio.gather(self._releasing, return_exceptions=True)
        if self._channel is not None:
            self._channel.forget()
        self._lost(NotDeclared(f"queue {self._queue!r} is fetched from no more"))


def _count(told: object) -> int:
    """What a header counts. Other programs write headers too: what is no count is none, and fails nobody."""
    return told if isinstance(told, int) and told > 0 else 0


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)

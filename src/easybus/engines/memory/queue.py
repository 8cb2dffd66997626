"""One queue.

    put ─→ ready ─→ in flight (a lease) ─→ gone        ack, move
     │       ↑        │ nack, lease over
     └→ delayed ←─────┘                                 due: ready again

`attempt` grows with every lease, so (item, attempt) is a delivery's fence. `delayed` and `leases` are heaps, brought up
to date whenever the queue is looked at; there is no background work. Whoever waits sleeps until its alarm, and is woken
sooner by a new message, or by a time that comes before its alarm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

import msgspec

from ..contract import Delivery, QueueStats

__all__ = ["Item", "MemoryQueue", "Waiter"]

_SPARE = 1024


class Item(msgspec.Struct, gc=False):
    """One message; `until` is when its lease ends, 0.0 while nobody holds it."""

    body: bytes
    attempt: int = 0
    until: float = 0.0


class Waiter:
    """A fetch that waits for messages, on its own event loop."""

    __slots__ = ("alarm", "future", "loop")

    def __init__(self, alarm: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.alarm = alarm

    def wake(self) -> bool:
        """Wake it, from any thread; False: its loop is closed."""
        if self.loop is asyncio._get_running_loop():  # None, where it is another's
            self._set()
            return True
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class MemoryQueue:
    """The messages of one queue. Its user holds the space's lock, and says what time it is."""

    __slots__ = ("_order", "delay", "delayed", "in_flight", "leased", "leases", "name", "ready", "waiters")

    def __init__(self, name: str, delay: float) -> None:
        self.name = name
        self.delay = delay
        self.ready: deque[Item] = deque()
        self.delayed: list[tuple[float, int, Item]] = []
        # One entry a batch: items share their lease's end until one is extended, which then has an entry of its own.
        self.leases: list[tuple[float, int, list[Item]]] = []
        self.leased = 0
        """Items named in `leases`, those settled long ago included."""
        self.in_flight = 0
        self.waiters: dict[Waiter, None] = {}
        self._order = count()

    # ------------------------------------------------------------------------------------------------ in and out

    def put(self, item: Item, now: float, delay: float) -> None:
        """Keep an item, to be seen in `delay` seconds."""
        if delay > 0:
            due = now + delay
            heappush(self.delayed, (due, next(self._order), item))
            self._alarm(due)
            return
        if self.delayed or self.leases:
            self.refresh(now)  # what became due before stands before this one
        self.ready.append(item)
        if self.waiters:
            self.wake(1)

    def take(self, limit: int, now: float, lease: float) -> list[Item]:
        """Lease up to `limit` ready items."""
        ready = self.ready
        if limit >= len(ready):
            items = list(ready)
            ready.clear()
        else:
            items = [ready.popleft() for _ in range(limit)]
        until = now + lease
        for item in items:
            item.attempt += 1
            item.until = until
        self.in_flight += len(items)
        self._lease(until, items)
        return items

    def refresh(self, now: float) -> None:
        """Make ready what is due, and what is past its lease, in the order of those times."""
        delayed, leases = self.delayed, self.leases
        while True:
            due = delayed[0][0] if delayed else inf
            end = leases[0][0] if leases else inf
            if due > now and end > now:
                return
            if due <= end:
                self.ready.append(heappop(delayed)[2])
                continue
            items = heappop(leases)[2]
            self.leased -= len(items)
            for item in items:
                if 0.0 < item.until <= now:
                    self._let_go(item)
                    self.ready.append(item)

    def next_time(self) -> float:
        """When `refresh` may next find something."""
        return min(self.delayed[0][0] if self.delayed else inf, self.leases[0][0] if self.leases else inf)

    # ------------------------------------------------------------------------------------------------ under the fence

    def holds(self, delivery: Delivery, now: float) -> bool:
        """Whether the delivery is still its taker's."""
        item: Item = delivery.receipt
        return item.until > now and item.attempt == delivery.attempt

    def ack(self, delivery: Delivery) -> None:
        """The delivery, which must hold, is gone."""
        item: Item = delivery.receipt
        self._let_go(item)
        item.body = b""

    def nack(self, delivery: Delivery, now: float, delay: float) -> None:
        """The delivery, which must hold, is to be seen again in `delay` seconds."""
        self._let_go(delivery.receipt)
        self.put(delivery.receipt, now, delay)

    def extend(self, delivery: Delivery, until: float) -> None:
        """The lease of the delivery, which must hold, ends at `until`."""
        delivery.receipt.until = until
        self._lease(until, [delivery.receipt])

    def _let_go(self, item: Item) -> None:
        item.until = 0.0
        self.in_flight -= 1

    def _lease(self, until: float, items: list[Item]) -> None:
        heappush(self.leases, (until, next(self._order), items))
        self.leased += len(items)
        if self.leased > 2 * self.in_flight + _SPARE:
            self._forget_settled()
        self._alarm(until)

    def _forget_settled(self) -> None:
        """Leases are long and handlers quick: without this, the settled would pile up until their leases end."""
        kept = [(end, order, [item for item in items if item.until == end]) for end, order, items in self.leases]
        self.leases[:] = [entry for entry in kept if entry[2]]
        heapify(self.leases)
        self.leased = sum(len(items) for _, _, items in self.leases)

    # ------------------------------------------------------------------------------------------------ the whole queue

    def stats(self, now: float) -> QueueStats:
        """Exact counts."""
        self.refresh(now)
        return QueueStats(ready=len(self.ready), in_flight=self.in_flight, delayed=len(self.delayed))

    def purge(self, now: float) -> int:
        """Remove what is not in flight."""
        self.refresh(now)
        removed = len(self.ready) + len(self.delayed)
        self.ready.clear()
        self.delayed.clear()
        return removed

    def dropped(self) -> None:
        """The queue is no more: deliveries are stale, and who waits learns it."""
        for _, _, items in self.leases:
            for item in items:
                item.until = 0.0
        self.wake(len(self.waiters))

    # ------------------------------------------------------------------------------------------------ who waits

    def wake(self, number: int) -> None:
        """Wake so many of those who wait, longest first."""
        while number > 0 and self.waiters:
            waiter = next(iter(self.waiters))
            del self.waiters[waiter]
            number -= waiter.wake()

    def _alarm(self, when: float) -> None:
        """Wake those who would sleep past `when`."""
        if self.waiters:
            for waiter in [waiter for waiter in self.waiters if waiter.alarm > when]:
                del self.waiters[waiter]
                waiter.wake()

"""Queues and topics in the process, the keys beside them: fetch and claim, completion and ack are one step each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

from ...clock import Clock, wait
from ...errors import BadDelay, EasybusError, NotSupported, TooLarge, Unroutable
from ..contract import (
    Ack,
    Binding,
    Change,
    Claim,
    DeclareQueue,
    Delivery,
    Extend,
    Finish,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
    Settlement,
    Taken,
    held_up,
)
from .keys import Key, fresh_tokens
from .queue import Item, MemoryQueue, Waiter
from .space import CAPS, Space, check_delay, check_route_key

__all__ = ["MemoryDriver"]


class MemoryDriver:
    """`Driver` and `FusedDriver` over a space."""

    caps = CAPS

    def __init__(self, enter: Callable[[], Any], clock: Clock, space: Space) -> None:
        self._enter = enter
        self._clock = clock
        self._space = space

    async def declare(self, changes: Sequence[Change]) -> None:
        with self._enter():
            self._space.declare(changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        with self._enter():
            self._space.drop(changes)

    # ------------------------------------------------------------------------------------------------ publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        with self._enter():
            now = self._clock.time()
            results: list[int | Exception | None] = []
            for publication in batch:
                if results and held_up(publication, results[-1]):
                    results.append(results[-1])
                    continue
                try:
                    results.append(self._publish(publication, now))
                except EasybusError as error:
                    results.append(error)
            return results

    def _publish(self, publication: Publication, now: float) -> int:
        body, delay = publication.body, publication.delay
        if len(body) > CAPS.max_body:
            raise _too_large(body)
        if delay is not None:
            check_delay(delay)
        if not publication.to_topic:
            queue = self._space.queue(publication.name)
            queue.put(Item(body), now, queue.delay if delay is None else delay)
            return 1
        if delay:
            raise NotSupported("memory:// routes a topic's messages at once: let a delayed one wait in a queue first")
        key = publication.route_key
        if not key.isascii():
            check_route_key(key)
        names = self._space.topic(publication.name).queues(key)
        for name in names:
            queue = self._space.queues[name]
            queue.put(Item(body), now, queue.delay if delay is None else delay)
        if publication.require and not names:
            raise Unroutable(f"no queue is bound to topic {publication.name!r} for the route key {key!r}")
        return len(names)

    # ------------------------------------------------------------------------------------------------ consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        items = await self._lease(queue, limit, wait, lease)
        return [Delivery(queue, item.body, item.attempt, item) for item in items]

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        items = await self._lease(queue, limit, wait, lease)
        if not items:
            return []
        with self._enter():
            now = self._clock.time()
            keys = self._space.keys
            taken: list[Taken] = []
            for item, token in zip(items, fresh_tokens(len(items)), strict=True):
                delivery = Delivery(queue, item.body, item.attempt, item)
                claim, parsed = parse(delivery)
                taken.append(Taken(delivery, parsed, None if claim is None else keys.claim(claim, token, now)))
            return taken

    async def _lease(self, name: str, limit: int, seconds: float, lease: float) -> list[Item]:
        """Lease what is ready, waiting for the first."""
        deadline = self._clock.time() + seconds
        while True:
            with self._enter():
                now = self._clock.time()
                queue = self._space.queue(name)
                if limit <= 0:
                    return []
                queue.refresh(now)
                if queue.ready:
                    return queue.take(limit, now, lease)
                if deadline <= now:
                    return []
                waiter = Waiter(min(deadline, queue.next_time()))
                queue.waiters[waiter] = None
            await self._sleep(queue, waiter, now)

    async def _sleep(self, queue: MemoryQueue, waiter: Waiter, now: float) -> None:
        seconds = None if waiter.alarm == inf else waiter.alarm - now
        due = queue.next_time()
        # The alarm may be the end of the wait, which a test's clock passes over; what falls due, it must not.
        marker = None if due == inf else self._clock.call_later(due - now, lambda: None)
        try:
            await wait(self._clock, waiter.future, seconds, poll=True)
        except BaseException:
            with self._space.lock:
                if queue.waiters.pop(waiter, waiter) is waiter:
                    queue.wake(1)  # it was woken, and will not come: another is to
            raise
        finally:
            if marker is not None:
                marker.cancel()
        with self._space.lock:
            queue.waiters.pop(waiter, None)

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> list[Settled]:
        with self._enter():
            for settlement in batch:
                _check(settlement)
            now = self._clock.time()
            found = self._space.queues.get(queue)
            return [_settle(found, settlement, now) for settlement in batch]

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        with self._enter():
            now = self._clock.time()
            found = self._space.queues.get(queue)
            keys = self._space.keys
            results: list[bool] = []
            completed: dict[float, list[Key]] = {}
            for one in batch:
                key = keys.leave(one.token, "done", now + one.keep)
                results.append(key is not None)
                if key is not None:
                    completed.setdefault(one.keep, []).append(key)
                    if found is not None and found.holds(one.delivery, now):
                        found.ack(one.delivery)
            for keep, done in completed.items():
                keys.may_forget(now + keep, done)
            return results

    # ------------------------------------------------------------------------------------------------ looking

    async def stats(self, queue: str) -> QueueStats:
        with self._enter():
            return self._space.queue(queue).stats(self._clock.time())

    async def purge(self, queue: str) -> int:
        with self._enter():
            return self._space.queue(queue).purge(self._clock.time())

    async def queues(self) -> list[DeclareQueue]:
        with self._enter():
            return [DeclareQueue(name, queue.delay) for name, queue in sorted(self._space.queues.items())]

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        with self._enter():
            return [(name, list(bindings)) for name, bindings in sorted(self._space.bindings.items())]


def _settle(queue: MemoryQueue | None, settlement: Settlement, now: float) -> Settled:
    delivery = settlement.delivery
    if queue is None or not queue.holds(delivery, now):
        return Settled.STALE
    match settlement:
        case Ack():
            queue.ack(delivery)
        case Nack(delay=delay):
            queue.nack(delivery, now, delay)
        case Extend(lease=lease):
            queue.extend(delivery, now + lease)
        case Move(body=body, delay=delay):
            queue.ack(delivery)
            queue.put(Item(body), now, delay)
    return Settled.DONE


def _check(settlement: Settlement) -> None:
    """Refuse the batch before anything is changed."""
    if isinstance(settlement, Move):
        check_delay(settlement.delay)
        if len(settlement.body) > CAPS.max_body:
            raise _too_large(settlement.body)
    elif isinstance(settlement, Nack):
        check_delay(settlement.delay)
    elif isinstance(settlement, Extend) and not (isfinite(settlement.lease) and settlement.lease > 0):
        raise BadDelay(f"a lease of {settlement.lease} s; more than 0 is allowed")


def _too_large(body: bytes) -> TooLarge:
    return TooLarge(f"a message of {len(body)} bytes; memory:// takes {CAPS.max_body}")

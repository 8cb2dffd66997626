"""Queues and topics in streams.

A delivery's receipt is the row that says who holds it until when: the entry's id, the attempt and the fetch's random
owner. Each settlement acts only while that row stands, so that a late one changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ...errors import Unroutable
from ..contract import (
    Ack,
    Binding,
    Capabilities,
    Change,
    DeclareQueue,
    Delivery,
    Extend,
    Nack,
    Publication,
    QueueStats,
    Settled,
    Settlement,
)
from .failures import refused
from .limits import CAPABILITIES, LIMITS
from .link import Link
from .scripts import Script
from .topology import Topology, declared, declaring, dropping, no_queue, no_topic, to_microseconds

T = TypeVar("T")
_PUBLISH, _FETCH, _SETTLE = Script("publish", lasting=True), Script("fetch"), Script("settle")
_DECLARE, _DROP = Script("declare", lasting=True), Script("drop", lasting=True)
_STATS, _PURGE = Script("stats"), Script("purge")

MOST = 1000
"""Messages in one step: the server does nothing else meanwhile."""
_MOST_BYTES = 8 << 20
_OWNER = 32
"""Bytes; its rows are longer than 64, else the server keeps few of them in a list that it searches from its start."""


class RedisDriver:
    """The driver."""

    def __init__(self, link: Callable[[], Link]) -> None:
        self.caps: Capabilities = CAPABILITIES
        self._link = link

    # --------------------------------------------------------------------------------------------------- topology

    async def declare(self, changes: Sequence[Change]) -> None:
        for change in changes:
            LIMITS.change(change)
        link = self._link()
        declared(await link.run(_DECLARE, link.names.topology, declaring(link.names, changes)), changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        link = self._link()
        await link.run(_DROP, link.names.topology, dropping(link.names, changes))

    async def queues(self) -> list[DeclareQueue]:
        topology = await self._link().refresh()
        return [DeclareQueue(name, delay / 1e6) for name, delay in sorted(topology.queues.items())]

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        topology = await self._link().refresh()
        return [(name, [one for one in topology.bindings if one.topic == name]) for name in sorted(topology.topics)]

    async def stats(self, queue: str) -> QueueStats:
        link = self._link()
        counts = await link.run(_STATS, (link.names.queues, link.names.queue(queue)), (queue,))
        if not counts:
            raise no_queue(queue)
        return QueueStats(*counts)

    async def purge(self, queue: str) -> int:
        link, total, upto, delayed = self._link(), 0, b"", 0
        while True:
            keys = (link.names.queues, link.names.queue(queue))
            reply = await link.run(_PURGE, keys, (queue, upto, delayed))
            if not reply:
                raise no_queue(queue)
            had_delayed = delayed
            removed, upto, delayed = reply
            total += removed
            if not removed and not had_delayed:
                return total

    # ------------------------------------------------------------------------------------------------- publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        link = self._link()
        if link.topology.version is None:
            await link.refresh()
        results: list[int | Exception | None] = []
        while len(results) < len(batch):
            routed = _Routed(link, batch, len(results))
            stale, *failed = await link.run(_PUBLISH, routed.keys, routed.values())
            if stale:
                await link.refresh()
                continue
            for text, at in zip(failed, routed.groups, strict=True):
                if text:
                    for item in at:
                        routed.results[item] = refused(text.decode(), link.url)
            results += routed.results
        return results

    # -------------------------------------------------------------------------------------------------- consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        link = self._link()

        async def take() -> tuple[list[Delivery], float]:
            found, due, _ = await self.own(link, queue, limit, lease)
            return found, due

        return await self.until_found(link, queue, wait, take, lambda found: self.give_back(queue, found))

    async def until_found(
        self,
        link: Link,
        queue: str,
        wait: float,
        take: Callable[[], Coroutine[Any, Any, tuple[list[T], float]]],
        undo: Callable[[list[T]], Coroutine[Any, Any, Any]],
    ) -> list[T]:
        """What `take` finds within `wait` seconds; a caller that is cancelled meanwhile has it undone."""
        return await link.wakes.until_found(
            link.names.queue(queue) + ":w", wait, lambda: link.uncancelled(take(), lambda taken: undo(taken[0]))
        )

    async def own(self, link: Link, queue: str, limit: int, lease: float) -> tuple[list[Delivery], float, int]:
        """Take up to `limit` due messages, and when their leases began, in the server's microseconds; none: the seconds
        until one is due, negative where that is not known."""
        owner = secrets.token_hex(_OWNER)
        keys = (link.names.queues, link.names.queue(queue))
        what, *reply = await link.run(_FETCH, keys, (queue, min(limit, MOST), to_microseconds(lease), owner))
        if what == 0:
            raise no_queue(queue)
        if what == 1:
            return [], reply[0] / 1e6, 0
        return (
            [
                Delivery(queue, body, attempt, f"{entry.decode()}/{attempt}/{owner}")
                for entry, attempt, body in zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
            ],
            0.0,
            reply[0],
        )

    async def give_back(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """What a cancelled fetch had taken is ready again."""
        if deliveries:
            await self.settle(queue, [Nack(delivery) for delivery in deliveries])

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> list[Settled]:
        words: list[tuple[Any, ...]] = []
        for item in batch:
            LIMITS.settlement(item)
            member = item.delivery.receipt
            if isinstance(item, Ack):
                words.append(("a", member))
            elif isinstance(item, Extend):
                words.append(("e", member, to_microseconds(item.lease)))
            elif isinstance(item, Nack):
                words.append(("n", member, to_microseconds(item.delay)))
            else:
                words.append(("m", member, to_microseconds(item.delay), item.body))
        link = self._link()
        results: list[int] = []
        at = 0
        while at < len(words):
            values: list[Any] = []
            end, size = at, 0
            while end < len(words) and end - at < MOST and size < _MOST_BYTES:
                values += words[end]
                size += len(words[end][3]) if len(words[end]) == 4 else 0
                end += 1
            results += await link.run(_SETTLE, (link.names.queue(queue),), values)
            at = end
        return [Settled.DONE if held else Settled.STALE for held in results]


class _Routed:
    """One step's part of a batch, from `start` on: grouped where neighbours go to the same queues."""

    def __init__(self, link: Link, batch: Sequence[Publication], start: int) -> None:
        self.results: list[int | Exception | None] = []
        self.groups: list[list[int]] = []
        """Which of the results hang on which group."""
        self.keys = [link.names.version]
        self._version = link.topology.version
        self._bodies: list[tuple[list[int], list[bytes]]] = []
        self._indexes: dict[str, int] = {}
        last: list[int] | None = None
        copies = size = 0
        for item in batch[start:]:
            if copies >= MOST or size >= _MOST_BYTES:
                break
            try:
                targets = self._targets(link, item)
            except Exception as error:
                self.results.append(error)
                continue
            self.results.append(len(targets) // 2)
            if not targets:
                continue
            if targets != last:
                self.groups.append([])
                self._bodies.append((targets, []))
                last = targets
            self.groups[-1].append(len(self.results) - 1)
            self._bodies[-1][1].append(item.body)
            copies += len(targets) // 2
            size += len(item.body)

    def _targets(self, link: Link, item: Publication) -> list[int]:
        """Index and delay of each queue that it goes to."""
        LIMITS.publication(item)
        topology = link.topology
        targets: list[int] = []
        for queue in _queues(topology, item):
            index = self._indexes.get(queue)
            if index is None:
                index = self._indexes[queue] = len(self.keys)
                self.keys.append(link.names.queue(queue))
            targets.append(index)
            targets.append(topology.queues[queue] if item.delay is None else to_microseconds(item.delay))
        return targets

    def values(self) -> list[Any]:
        """What `publish.lua` is given."""
        values: list[Any] = [self._version]
        for targets, bodies in self._bodies:
            values.append(len(targets) // 2)
            values += targets
            values.append(len(bodies))
            values += bodies
        return values


def _queues(topology: Topology, item: Publication) -> Sequence[str]:
    name = item.name
    if not item.to_topic:
        if name not in topology.queues:
            raise no_queue(name)
        return (name,)
    routes = topology.topics.get(name)
    if routes is None:
        raise no_topic(name)
    reached = routes.queues(item.route_key)
    if not reached and item.require:
        raise Unroutable(f"no queue of the topic {name!r} is bound for {item.route_key!r}")
    return reached

"""The driver: publishing on one connection, declaring and consuming on another.

Two connections, because RabbitMQ stops reading from one that publishes while it is short of memory or disk: acks must
still get through, for they are what frees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...errors import EngineError, NotDeclared, NotSupported, Refused, Unavailable, Unroutable
from ..contract import (
    Ack,
    Binding,
    Change,
    DeclareQueue,
    Delivery,
    Extend,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
    Settlement,
)
from .confirms import RETURNED, Confirms, Parcel
from .consuming import Held, Subscription
from .faults import blamed
from .link import Link
from .names import CAPABILITIES, check_body, check_delay
from .topology import Topology

__all__ = ["RabbitmqDriver"]

_NO_LIST = (
    "AMQP cannot list {}: look at RabbitMQ's management page, or `rabbitmqctl list_{}`; a queue that you name can be "
    "asked for its counts"
)


class RabbitmqDriver:
    """`Driver` on RabbitMQ."""

    caps = CAPABILITIES

    def __init__(self, publishing: Link, consuming: Link, settle: float) -> None:
        """`settle`: seconds that a declaration waits after it has made a queue."""
        self._publishing = publishing
        self._consuming = consuming
        self._confirms = Confirms(publishing)
        self._topology = Topology(consuming, settle)
        self._subscriptions: dict[str, Subscription] = {}

    async def close(self, why: Exception) -> None:
        """End every fetch with `why`."""
        subscriptions, self._subscriptions = self._subscriptions, {}
        await asyncio.gather(*(subscription.close(why) for subscription in subscriptions.values()))

    # ----------------------------------------------------------------------------------------------------- topology

    async def declare(self, changes: Sequence[Change]) -> None:
        await self._topology.declare(changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        await self._topology.drop(changes)
        for change in changes:
            if isinstance(change, DeclareQueue) and (gone := self._subscriptions.pop(change.name, None)) is not None:
                await gone.close(NotDeclared(f"queue {change.name!r} was dropped"))

    async def stats(self, queue: str) -> QueueStats:
        return QueueStats(ready=await self._topology.ready(queue), in_flight=None, delayed=None)

    async def purge(self, queue: str) -> int:
        return await self._topology.purge(queue)

    async def queues(self) -> list[DeclareQueue]:
        raise NotSupported(_NO_LIST.format("queues", "queues"))

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        raise NotSupported(_NO_LIST.format("topics", "exchanges"))

    # --------------------------------------------------------------------------------------------------- publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        return await self._publish(batch, [0] * len(batch))

    async def _publish(self, batch: Sequence[Publication], attempts: Sequence[int]) -> list[int | Exception | None]:
        results: list[int | Exception | None] = [None] * len(batch)
        todo: Sequence[int] = range(len(batch))
        for last in (False, True):
            todo = await self._publish_once(batch, attempts, todo, results, last=last)
            if not todo:
                break
        return results

    async def _publish_once(
        self,
        batch: Sequence[Publication],
        attempts: Sequence[int],
        todo: Sequence[int],
        results: list[int | Exception | None],
        *,
        last: bool,
    ) -> list[int]:
        """Publish those of `todo`; returns the ones that need a second look at the topology first."""
        parcels: list[Parcel] = []
        sent: list[int] = []
        self._publishing.connection  # noqa: B018 - raises at once while it is away
        for at in todo:
            item = batch[at]
            try:
                way = self._topology.known_way(item) or await self._topology.way(item)
            except EngineError as error:
                results[at] = error
            else:
                parcels.append((way, item.body, item.dedupe_id, attempts[at]))
                sent.append(at)
        again: list[int] = []
        for at, outcome, (way, *_) in zip(sent, await self._confirms.send(parcels), parcels, strict=True):
            item = batch[at]
            if outcome is None:
                results[at] = None
            elif outcome == RETURNED and item.to_topic and not item.delay:
                results[at] = self._unroutable(item)
            elif not last and (outcome == RETURNED or isinstance(outcome, NotDeclared)):
                self._topology.forget(item)
                again.append(at)
            elif isinstance(outcome, Refused) and not blamed(outcome, *way, item.body):
                if last:
                    results[at] = Unavailable("another message closed the channel: this one may or may not be there")
                else:
                    again.append(at)
            elif isinstance(outcome, Exception):
                results[at] = outcome
            else:
                results[at] = NotDeclared(f"there is no queue {item.name!r}")
        return again

    @staticmethod
    def _unroutable(item: Publication) -> Exception | int:
        if not item.require:
            return 0
        return Unroutable(f"no queue is bound to topic {item.name!r} for route key {item.route_key!r}")

    # ----------------------------------------------------------------------------------------------------- consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        subscription = self._subscriptions.get(queue)
        if subscription is None:
            self._consuming.connection  # noqa: B018 - raises at once while it is away
            subscription = self._subscriptions[queue] = Subscription(self._consuming, queue)
        return await subscription.fetch(limit, wait, lease)

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> list[Settled]:
        for item in batch:
            if isinstance(item, Nack | Move):
                check_delay(item.delay)
            if isinstance(item, Move):
                check_body(item.body)
        subscription = self._subscriptions.get(queue)
        if subscription is None:
            return [Settled.STALE] * len(batch)
        results = [Settled.DONE] * len(batch)
        acked: list[Held] = []
        moves: list[int] = []
        for at, item in enumerate(batch):
            held: Held = item.delivery.receipt
            if not subscription.holds(held):
                results[at] = Settled.STALE
            elif isinstance(item, Ack):
                acked.append(held)
            elif isinstance(item, Extend):
                subscription.extend(held, item.lease)
            elif isinstance(item, Nack) and not item.delay:
                subscription.back([held])
            else:
                moves.append(at)
        # Before anything is waited for: they would lapse meanwhile.
        subscription.ack(held for held in acked if subscription.holds(held))
        if moves:
            copied = await self._copy(queue, [batch[at] for at in moves])
            for at, done in zip(moves, copied, strict=True):
                if not done or not subscription.holds(batch[at].delivery.receipt):
                    results[at] = Settled.UNKNOWN  # its lease brings it back, or has done so
            subscription.ack(batch[at].delivery.receipt for at in moves if results[at] is Settled.DONE)
        return results

    async def _copy(self, queue: str, items: Sequence[Settlement]) -> list[bool]:
        """Publish what these bring back later; whether each is confirmed."""
        copies: list[Publication] = []
        attempts: list[int] = []
        for item in items:
            if isinstance(item, Move):
                copies.append(Publication(False, queue, item.body, delay=item.delay, dedupe_id=item.dedupe_id))
                attempts.append(0)
            elif isinstance(item, Nack):
                copies.append(Publication(False, queue, item.delivery.body, delay=item.delay))
                attempts.append(item.delivery.attempt)
        try:
            published = await self._publish(copies, attempts)
        except Unavailable:
            return [False] * len(copies)
        return [not isinstance(outcome, Exception) for outcome in published]

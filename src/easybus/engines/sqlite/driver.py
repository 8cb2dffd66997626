"""Queues and topics in tables.

A message is ready when `visible_at` is past, in flight while a fetch owns it (`owner` is that fetch's random number,
`visible_at` the end of its lease), else delayed. Each settlement acts under (id, attempt, owner): `owner` is fresh for
every fetch, so what was delivered again in the meantime is left alone, even where a row's id has been used again.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from ...clock import Clock
from ...errors import Unroutable
from .. import contract
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
    held_up,
)
from .connect import Connection, insert
from .guest import refuse_in_transaction
from .limits import CAPABILITIES, LIMITS
from .stamps import from_microseconds, stamp_at, to_microseconds
from .topology import no_queue, no_topic
from .waking import until_found
from .writer import WRITE, Writer

Receipt: TypeAlias = tuple[int, int]
"""The row's id, and the owner that it was delivered to."""

_INTO = 'INSERT INTO "easybus_message" (queue_id, visible_at, body)'
_NEXT_DUE = 'SELECT visible_at FROM "easybus_message" WHERE queue_id = ? ORDER BY visible_at LIMIT 1'
_DUE = (
    'SELECT id, attempt, body FROM "easybus_message" WHERE queue_id = ? AND visible_at <= ? '
    "ORDER BY visible_at, id LIMIT ?"
)
_OWN = (
    'UPDATE "easybus_message" SET visible_at = ?, attempt = attempt + 1, owner = ? '
    "WHERE id IN (SELECT value FROM json_each(?))"
)
_STILL_OWNED = (  # those of these rows that are still their owner's, in one row
    'SELECT json_group_array(id) FROM "easybus_message" WHERE id IN (SELECT value FROM json_each(?)) AND owner = ?'
)
_ACK = 'DELETE FROM "easybus_message" WHERE id IN (SELECT value FROM json_each(?)) AND owner = ?'
_NACK = (
    'UPDATE "easybus_message" SET visible_at = ?, owner = 0 WHERE id = ? AND attempt = ? AND owner = ? AND queue_id = ?'
)
_EXTEND = 'UPDATE "easybus_message" SET visible_at = ? WHERE id = ? AND attempt = ? AND owner = ? AND queue_id = ?'
_MOVE = (  # the retry takes the delivery's place in one step
    'UPDATE "easybus_message" SET visible_at = ?, body = ?, attempt = 0, owner = 0 '
    "WHERE id = ? AND attempt = ? AND owner = ? AND queue_id = ?"
)
_STATS = (
    "SELECT count(*) FILTER (WHERE visible_at <= now), count(*) FILTER (WHERE visible_at > now AND owner <> 0), "
    "count(*) FILTER (WHERE visible_at > now AND owner = 0) "
    'FROM (SELECT ? AS now) JOIN "easybus_message" WHERE queue_id = ?'
)
_LAST = 'SELECT coalesce(max(id), 0) FROM "easybus_message"'
_PURGE = (  # what is not in flight, a part at a time, nothing newer than when the purge began
    'DELETE FROM "easybus_message" WHERE id IN (SELECT id FROM "easybus_message" WHERE queue_id = ? AND id <= ? '
    "AND (owner = 0 OR visible_at <= ?) LIMIT 5000)"
)


class SqliteDriver:
    """The driver. Several processes on one host may work on one file."""

    caps = CAPABILITIES

    def __init__(self, clock: Clock, writer: Callable[[], Writer]) -> None:
        self.clock = clock
        self.writer = writer

    def now(self) -> int:
        """The host's clock, in microseconds; read inside the transaction, so that later commits are later."""
        return stamp_at(self.clock.time())

    async def declare(self, changes: Sequence[Change]) -> None:
        for change in changes:
            LIMITS.change(change)
        writer = self.writer()
        # What is there is only read: a bus may open while its own caller holds the file in a transaction.
        await writer.call(
            lambda connection: writer.topology.declare(connection, changes),
            durable=True,
            peek=lambda connection: None if writer.topology.has(connection, changes) else WRITE,
        )

    async def drop(self, changes: Sequence[Change]) -> None:
        writer = self.writer()
        for change in changes:
            if isinstance(change, DeclareQueue):
                await self._purge(change.name, missing_is_empty=True)
        await writer.call(lambda connection: writer.topology.drop(connection, changes), durable=True)

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        writer = self.writer()
        refuse_in_transaction(writer)
        refused: dict[int, Exception] = {}
        for at, item in enumerate(batch):
            try:
                LIMITS.publication(item)
            except Exception as error:
                refused[at] = error
        return await writer.call(lambda connection: self._publish(writer, connection, batch, refused), durable=True)

    def _publish(
        self, writer: Writer, connection: Connection, batch: Sequence[Publication], refused: dict[int, Exception]
    ) -> list[int | Exception | None]:
        topology, touched = writer.topology, writer.touched
        topology.refresh(connection)
        queues, topics, now = topology.queues, topology.topics, self.now()
        rows: list[tuple[int, int, bytes]] = []
        results: list[int | Exception | None] = []
        for at, item in enumerate(batch):
            if refused and at in refused:
                results.append(refused[at])
                continue
            if results and held_up(item, results[-1]):
                results.append(results[-1])
                continue
            name = item.name
            if item.to_topic:
                routes = topics.get(name)
                if routes is None:
                    results.append(no_topic(name))
                    continue
                reached = routes.queues(item.route_key)
                if not reached and item.require:
                    results.append(Unroutable(f"no queue of the topic {name!r} is bound for {item.route_key!r}"))
                    continue
            elif name in queues:
                reached = (name,)
            else:
                results.append(no_queue(name))
                continue
            for queue in reached:
                queue_id, wait = queues[queue]
                if item.delay is not None:
                    wait = to_microseconds(item.delay)
                rows.append((queue_id, now + wait, item.body))
            touched.update(reached)  # woken for a delayed one too: the next due time changed
            results.append(len(reached))
        if rows:
            insert(connection, _INTO, rows)
        return results

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        writer = self.writer()

        def attempt() -> Coroutine[Any, Any, tuple[list[Delivery], float]]:
            return writer.take(
                lambda connection: (self.own(writer, connection, queue, limit, lease), 0.0),
                peek=lambda connection: self.look(writer, connection, queue),
                undo=lambda result: self.give_back(writer, queue, result[0]),
            )

        return await until_found(writer.watchers, self.clock, queue, wait, attempt)

    def look(self, writer: Writer, connection: Connection, queue: str) -> Any:
        """`WRITE` if a message is due, else nothing and when the next one is."""
        found = connection.rows(_NEXT_DUE, (writer.topology.queue(connection, queue),))
        if not found:
            return [], 0.0
        return WRITE if found[0][0] <= self.now() else ([], from_microseconds(found[0][0]))

    def own(self, writer: Writer, connection: Connection, queue: str, limit: int, lease: float) -> list[Delivery]:
        """Take up to `limit` due messages, in the writer's transaction."""
        now = self.now()
        rows = connection.rows(_DUE, (writer.topology.queue(connection, queue), now, limit))
        if not rows:
            return []
        owner = int.from_bytes(os.urandom(8), "big") >> 1 or 1
        connection.run(_OWN, (now + to_microseconds(lease), owner, json.dumps([row[0] for row in rows])))
        return [Delivery(queue, body, attempt + 1, (row, owner)) for row, attempt, body in rows]

    def give_back(self, writer: Writer, queue: str, deliveries: Sequence[Delivery]) -> None:
        """What a cancelled fetch had taken is ready again."""
        nacks = [Nack(delivery) for delivery in deliveries]
        if nacks:
            writer.later(lambda connection: self._settle(writer, connection, queue, nacks))

    async def settle(self, queue: str, batch: Sequence[contract.Settlement]) -> list[Settled]:
        durable = False
        for item in batch:
            LIMITS.settlement(item)
            durable = durable or isinstance(item, Move)
        writer = self.writer()
        return await writer.call(lambda connection: self._settle(writer, connection, queue, batch), durable=durable)

    def _settle(
        self, writer: Writer, connection: Connection, queue: str, batch: Sequence[contract.Settlement]
    ) -> list[Settled]:
        now = self.now()
        acks = [item.delivery for item in batch if isinstance(item, Ack)]
        gone = acknowledge(connection, acks) if acks else set[Receipt]()
        results: list[Settled] = []
        queue_id: int | None = None
        for item in batch:
            delivery = item.delivery
            if isinstance(item, Ack):  # a second ack of the same delivery in one batch is stale
                done = delivery.receipt in gone
                gone.discard(delivery.receipt)
                results.append(Settled.DONE if done else Settled.STALE)
                continue
            if queue_id is None:
                writer.topology.refresh(connection)
                queue_id = writer.topology.queues.get(queue, (-1, 0))[0]
            row, owner = delivery.receipt
            fence = (row, delivery.attempt, owner, queue_id)
            if isinstance(item, Extend):
                changed = connection.run(_EXTEND, (now + to_microseconds(item.lease), *fence))
            else:
                due = now + to_microseconds(item.delay)
                if isinstance(item, Move):
                    changed = connection.run(_MOVE, (due, item.body, *fence))
                else:
                    changed = connection.run(_NACK, (due, *fence))
                writer.touched.add(queue)
            results.append(Settled.DONE if changed else Settled.STALE)
        return results

    async def stats(self, queue: str) -> QueueStats:
        writer = self.writer()

        def count(connection: Connection) -> QueueStats:
            queue_id = writer.topology.queue(connection, queue)
            return QueueStats(*connection.rows(_STATS, (self.now(), queue_id))[0])

        return await writer.read(count)

    async def purge(self, queue: str) -> int:
        return await self._purge(queue, missing_is_empty=False)

    async def _purge(self, queue: str, *, missing_is_empty: bool) -> int:
        writer, total = self.writer(), 0
        last = await writer.read(lambda connection: connection.rows(_LAST)[0][0])

        def part(connection: Connection) -> int:
            writer.topology.refresh(connection)
            found = writer.topology.queues.get(queue)
            if found is None:
                if missing_is_empty:
                    return 0
                raise no_queue(queue)
            return connection.run(_PURGE, (found[0], last, self.now()))

        while removed := await writer.call(part, durable=True):
            total += removed
        return total

    async def queues(self) -> list[DeclareQueue]:
        writer = self.writer()

        def listed(connection: Connection) -> list[DeclareQueue]:
            writer.topology.refresh(connection)
            return [DeclareQueue(name, delay / 1e6) for name, (_, delay) in sorted(writer.topology.queues.items())]

        return await writer.read(listed)

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        topology = self.writer().topology

        def listed(connection: Connection) -> list[tuple[str, list[Binding]]]:
            topology.refresh(connection)
            found: dict[str, list[Binding]] = {name: [] for name in sorted(topology.topics)}
            for binding in topology.bindings:
                found.setdefault(binding.topic, []).append(binding)
            return list(found.items())

        return await self.writer().read(listed)


def acknowledge(connection: Connection, deliveries: Sequence[Delivery]) -> set[Receipt]:
    """Delete deliveries, each under its fence; returns the receipts of those that were still their holders'."""
    gone: set[Receipt] = set()
    for owner, named in _by_owner(deliveries):
        owned = connection.rows(_STILL_OWNED, (named, owner))[0][0]
        connection.run(_ACK, (named, owner))
        gone.update((row, owner) for row in json.loads(owned))
    return gone


def remove(connection: Connection, deliveries: Sequence[Delivery]) -> None:
    """As `acknowledge`, where nobody asks which."""
    for owner, named in _by_owner(deliveries):
        connection.run(_ACK, (named, owner))


def _by_owner(deliveries: Sequence[Delivery]) -> list[tuple[int, str]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for delivery in deliveries:
        row, owner = delivery.receipt
        rows[owner].append(row)
    return [(owner, json.dumps(ids)) for owner, ids in rows.items()]

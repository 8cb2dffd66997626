"""Queues and topics in tables.

A message is ready when `visible_at` is past, in flight while a fetch owns it (`visible_at` is the end of its lease),
else delayed. `owner` is the fetch's random number plus the row's id: fresh for every delivery, and of no other row. So
settlements act under (id, owner), in two lists that need no pairing. The attempt would not do for a fence: a lazily
committed fetch that a dying server forgets gives an attempt out twice, never an owner.

Publishes and moves are as durable as the server commits; fetches, extensions, nacks and acks are committed lazily
(`_LAZY`): losing one delivers again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias, cast

from ...clock import Clock
from ...errors import Unavailable, Unroutable
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
from ..fronts import Fronts
from .connections import Connection
from .limits import CAPABILITIES, LIMITS
from .names import escape
from .session import Session
from .topology import Snapshot, no_queue, no_topic
from .waking import until_found

Receipt: TypeAlias = tuple[int, int]
"""The row's id, and the owner that it was delivered to."""

_LAZY = (  # in a WHERE: this statement's own transaction is not waited for on the disk
    "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"
)

_INSERT = (  # nothing, where what the rows were routed by is no longer what is declared
    "INSERT INTO {message} (queue_id, visible_at, body) SELECT queue_id, now() + make_interval(secs => delay), body "
    "FROM unnest($2::bigint[], $3::float8[], $4::bytea[]) AS given(queue_id, delay, body) "
    "WHERE (SELECT value FROM {meta} WHERE name = 'bindings') = $1"
)
_FETCH = (  # each row to one fetch only, under an owner of its own; the lease begins now
    "WITH due AS MATERIALIZED (SELECT ctid AS place, visible_at FROM {message} WHERE queue_id = $1 "
    f"AND visible_at <= now() AND visible_at >= coalesce($5, '-infinity'::timestamptz) AND {_LAZY} "
    "ORDER BY visible_at, id LIMIT $2 FOR UPDATE SKIP LOCKED), "
    "taken AS (UPDATE {message} AS message SET visible_at = now() + make_interval(secs => $3), attempt = attempt + 1, "
    "owner = $4 + message.id FROM due WHERE message.ctid = due.place "
    "RETURNING due.visible_at AS due_at, message.id, attempt, body) "
    "SELECT id, attempt, body, due_at FROM taken ORDER BY due_at, id"
)
_NEXT_DUE = (  # the queue's id as it is now, and the seconds until its next row is due
    "SELECT id, (SELECT extract(epoch FROM visible_at - now())::float8 FROM {message} WHERE queue_id = queue.id "
    "ORDER BY visible_at LIMIT 1) FROM {queue} AS queue WHERE name = $1"
)
_ACK = (  # gone, each only under its owner; returns those that were
    f"DELETE FROM {{message}} WHERE id = ANY ($1::bigint[]) AND owner = ANY ($2::bigint[]) AND {_LAZY} "
    "RETURNING id, owner"
)
_POSTPONE = (  # extended where it is kept, else given back
    "UPDATE {message} AS message SET visible_at = now() + make_interval(secs => delay), "
    "owner = CASE WHEN keep THEN message.owner ELSE 0 END "
    "FROM unnest($1::bigint[], $2::bigint[], $3::float8[], $4::bool[]) AS given(id, owner, delay, keep) "
    f"WHERE message.id = ANY ($1) AND message.id = given.id AND message.owner = given.owner AND {_LAZY} "
    "RETURNING message.id, given.owner"
)
_MOVE = (  # the retry takes the delivery's place in one step
    "UPDATE {message} AS message SET visible_at = now() + make_interval(secs => delay), body = given.body, "
    "attempt = 0, owner = 0 "
    "FROM unnest($1::bigint[], $2::bigint[], $3::float8[], $4::bytea[]) AS given(id, owner, delay, body) "
    "WHERE message.id = ANY ($1) AND message.id = given.id AND message.owner = given.owner "
    "RETURNING message.id, given.owner"
)
_STATS = (
    "SELECT count(*) FILTER (WHERE visible_at <= now()), count(*) FILTER (WHERE visible_at > now() AND owner <> 0), "
    "count(*) FILTER (WHERE visible_at > now() AND owner = 0) FROM {message} WHERE queue_id = $1"
)
_LAST = "SELECT coalesce(max(id), 0) FROM {message}"
_PURGE = (  # what is not in flight, a part at a time, nothing newer than when the purge began
    "DELETE FROM {message} WHERE id = ANY (ARRAY(SELECT id FROM {message} WHERE queue_id = $1 AND id <= $2 "
    "AND (owner = 0 OR visible_at <= now()) LIMIT 5000 FOR UPDATE SKIP LOCKED))"
)

_TRIES = 20
_PART = 32 << 20  # bytes in one statement


class PostgresqlDriver:
    """The driver. Any number of processes on any number of hosts may work on one database."""

    caps = CAPABILITIES

    def __init__(self, clock: Clock, session: Session) -> None:
        self._clock = clock
        self._session = session
        self._fronts: Fronts[datetime] = Fronts()

    async def declare(self, changes: Sequence[Change]) -> None:
        for change in changes:
            LIMITS.change(change)
        await self._session.topology.declare(self._session.connections, changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, DeclareQueue):
                await self._purge(change.name, missing_is_empty=True)
        await self._session.topology.drop(self._session.connections, changes)

    # ------------------------------------------------------------------------------------------------ publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        results: list[int | Exception | None] = []
        for part in _parts(batch):
            results += await self._publish(part, results[-1] if results else None)
        return results

    async def _publish(self, batch: Sequence[Publication], before: object) -> list[int | Exception | None]:
        session = self._session
        snapshot = await session.topology.known(session.connections)
        for _ in range(_TRIES):
            route = _Route(snapshot, batch, before)
            last = snapshot
            if route.queues and await self._insert(snapshot, route):  # so the snapshot was the last
                session.waker.touch(route.queues)
                return route.results
            snapshot = await session.topology.current(session.connections)
            if snapshot is last and not route.queues:
                return route.results
        raise Unavailable("queues and bindings changed faster than they could be read")

    async def _insert(self, snapshot: Snapshot, route: _Route) -> bool:
        statement = self._session.names(_INSERT)
        given = (snapshot.version, route.queues, route.delays, route.bodies)
        done: str = await self._session.connections.run(lambda connection: connection.execute(statement, *given))
        return not done.endswith(" 0")

    # ------------------------------------------------------------------------------------------------- consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        session = self._session

        async def attempt() -> tuple[list[Delivery], float | None, int]:
            number = await self.number(queue)

            async def work(connection: Connection) -> tuple[list[Delivery], float | None, int]:
                found = await self.own(connection, queue, number, limit, lease)
                return (found, None, number) if found else ([], *await self.next_due(connection, queue))

            return await session.connections.run(work, undo=lambda result: self.give_back(queue, result[0]))

        return await until_found(session.waker.watchers, self._clock, wait, await self.number(queue), attempt)

    async def number(self, queue: str) -> int:
        """The id of a queue, as far as is known here. Raises `NotDeclared`."""
        session = self._session
        snapshot = await session.topology.known(session.connections)
        if queue not in snapshot.queues:
            snapshot = await session.topology.current(session.connections)
        if queue not in snapshot.queues:
            raise no_queue(queue)
        return snapshot.queues[queue][0]

    async def own(self, connection: Connection, queue: str, number: int, limit: int, lease: float) -> list[Delivery]:
        """Take up to `limit` due messages."""
        owner = int.from_bytes(os.urandom(8), "big") >> 2
        statement, since = self._session.names(_FETCH), self._fronts.since(number)
        rows: list[Any] = await connection.fetch(statement, number, limit, lease, owner, since)
        if since is not None and not rows:
            since = None
            rows = await connection.fetch(statement, number, limit, lease, owner, since)
        self._fronts.reached(number, rows[-1][3] if len(rows) == limit else None, since)
        return [Delivery(queue, row[2], row[1], (row[0], owner + row[0])) for row in rows]

    async def extend(self, connection: Connection, deliveries: Sequence[Delivery], lease: float) -> None:
        """Their leases begin anew."""
        await self._settle(connection, [Extend(delivery, lease) for delivery in deliveries])

    async def next_due(self, connection: Connection, queue: str) -> tuple[float | None, int]:
        """In how many seconds the queue's next message is due, and the queue's id. Raises `NotDeclared`."""
        found = await connection.fetchrow(self._session.names(_NEXT_DUE), escape(queue))
        if found is None:
            self._session.topology.forget()
            raise no_queue(queue)
        number: int = found[0]
        snapshot = self._session.topology.last
        if snapshot is None or snapshot.queues.get(queue, (0, 0.0))[0] != number:
            self._session.topology.forget()  # dropped and declared again elsewhere
        return found[1], number

    def give_back(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """What a cancelled fetch had taken is ready again."""
        if deliveries:
            self._session.later(self.settle(queue, [Nack(delivery) for delivery in deliveries]))

    # ------------------------------------------------------------------------------------------------- settling

    async def settle(self, queue: str, batch: Sequence[contract.Settlement]) -> list[Settled]:
        for item in batch:
            LIMITS.settlement(item)
        done = await self._session.connections.run(lambda connection: self._settle(connection, batch))
        results: list[Settled] = []
        for item in batch:  # a second settlement of the same delivery in one batch is stale
            settled = item.delivery.receipt in done
            done.discard(item.delivery.receipt)
            results.append(Settled.DONE if settled else Settled.STALE)
        if any(isinstance(item, (Nack, Move)) for item in batch):
            snapshot = self._session.topology.last
            if snapshot is not None and queue in snapshot.queues:
                self._session.waker.touch([snapshot.queues[queue][0]])
        return results

    async def _settle(self, connection: Connection, batch: Sequence[contract.Settlement]) -> set[Receipt]:
        names = self._session.names
        done: set[Receipt] = set()
        acks = [item.delivery for item in batch if isinstance(item, Ack)]
        if acks:
            done.update((row[0], row[1]) for row in await connection.fetch(names(_ACK), *fences(acks)))
        postponed = [item for item in batch if isinstance(item, (Nack, Extend))]
        if postponed:
            delays = [item.lease if isinstance(item, Extend) else item.delay for item in postponed]
            keep = [isinstance(item, Extend) for item in postponed]
            given = (*fences([item.delivery for item in postponed]), delays, keep)
            done.update((row[0], row[1]) for row in await connection.fetch(names(_POSTPONE), *given))
        moves = [item for item in batch if isinstance(item, Move)]
        if moves:
            contents = ([item.delay for item in moves], [item.body for item in moves])
            given = (*fences([item.delivery for item in moves]), *contents)
            done.update((row[0], row[1]) for row in await connection.fetch(names(_MOVE), *given))
        return done

    # -------------------------------------------------------------------------------------------------- looking

    async def stats(self, queue: str) -> QueueStats:
        session = self._session
        snapshot = await session.topology.current(session.connections)
        if queue not in snapshot.queues:
            raise no_queue(queue)
        number = snapshot.queues[queue][0]
        row = await session.connections.run(lambda connection: connection.fetchrow(session.names(_STATS), number))
        return QueueStats(*row)

    async def purge(self, queue: str) -> int:
        return await self._purge(queue, missing_is_empty=False)

    async def _purge(self, queue: str, *, missing_is_empty: bool) -> int:
        session, total = self._session, 0
        names, connections = session.names, session.connections
        snapshot = await session.topology.current(connections)
        if queue not in snapshot.queues:
            if missing_is_empty:
                return 0
            raise no_queue(queue)
        number = snapshot.queues[queue][0]
        last = await connections.run(lambda connection: connection.fetchval(names(_LAST)))
        while True:
            done: str = await connections.run(lambda connection: connection.execute(names(_PURGE), number, last))
            removed = int(done.rpartition(" ")[2])
            total += removed
            if not removed:
                return total

    async def queues(self) -> list[DeclareQueue]:
        snapshot = await self._session.topology.current(self._session.connections)
        return [DeclareQueue(name, delay) for name, (_, delay) in sorted(snapshot.queues.items())]

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        snapshot = await self._session.topology.current(self._session.connections)
        found: dict[str, list[Binding]] = {name: [] for name in sorted(snapshot.topics)}
        for binding in snapshot.bindings:
            found.setdefault(binding.topic, []).append(binding)
        return list(found.items())


class _Route:
    """Where a batch goes by one snapshot: the rows to insert, and each item's result."""

    def __init__(self, snapshot: Snapshot, batch: Sequence[Publication], before: object) -> None:
        """`before`: the result of what came before this batch."""
        self.queues: list[int] = []
        self.delays: list[float] = []
        self.bodies: list[bytes] = []
        self.results: list[int | Exception | None] = []
        for item in batch:
            last = self.results[-1] if self.results else before
            if held_up(item, last):
                self.results.append(cast("Exception", last))
                continue
            try:
                LIMITS.publication(item)
                reached = _reached(snapshot, item)
            except Exception as error:
                self.results.append(error)
                continue
            for queue in reached:
                number, delay = snapshot.queues[queue]
                self.queues.append(number)
                self.delays.append(delay if item.delay is None else item.delay)
                self.bodies.append(item.body)
            self.results.append(len(reached))


def _reached(snapshot: Snapshot, item: Publication) -> Sequence[str]:
    if not item.to_topic:
        if item.name not in snapshot.queues:
            raise no_queue(item.name)
        return (item.name,)
    routes = snapshot.routes.get(item.name)
    if routes is None:
        raise no_topic(item.name)
    reached = routes.queues(item.route_key)
    if not reached and item.require:
        raise Unroutable(f"no queue of the topic {item.name!r} is bound for {item.route_key!r}")
    return reached


def _parts(batch: Sequence[Publication]) -> Iterator[Sequence[Publication]]:
    """The batch in its order, in parts that one statement can carry."""
    begin = size = 0
    for at, item in enumerate(batch):
        size += len(item.body)
        if size > _PART and at > begin:
            yield batch[begin:at]
            begin, size = at, len(item.body)
    yield batch[begin:]


def fences(deliveries: Sequence[Delivery]) -> tuple[list[int], list[int]]:
    """Ids and owners."""
    return [delivery.receipt[0] for delivery in deliveries], [delivery.receipt[1] for delivery in deliveries]

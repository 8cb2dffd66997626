"""Queues and topics in tables.

A message is ready when `visible_at` is past, in flight while a fetch owns it (`owner` is that fetch's random number,
`visible_at` the end of its lease), else delayed. Each settlement acts under (id, attempt, owner).

    fetch: read which rows are due → lock these, passing over those that others hold → lease them → commit
    publish: read the bindings' version under a shared lock → insert, or fail where it is not the one routed by → commit

Every commit is as durable as the server is configured to be; MySQL has no lazier one for a single transaction.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from ...clock import Clock
from ...errors import Unavailable, Unroutable
from .. import contract
from ..contract import (
    Binding,
    Capabilities,
    Change,
    DeclareQueue,
    Delivery,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
    held_up,
)
from ..fronts import Fronts
from ..limits import Limits
from .failures import STALE, code
from .limits import limits
from .link import BEGIN, CLOCK, COMMIT, ROLLBACK, Link, Rows, Step
from .names import held, micros
from .picking import parts
from .session import Session
from .settling import settle
from .topology import Snapshot, no_queue, no_topic
from .waking import until_found

_KNOW = (  # no declaration is committed between this and the end of the transaction
    "SELECT CAST(value AS UNSIGNED), {now} INTO @easybus, @easybus_now FROM {meta} WHERE name = 'bindings' "
    "LOCK IN SHARE MODE"
)
_INSERT = "INSERT INTO {message} (queue_id, visible_at, body) VALUES %s"
_ROW = "(%s, @easybus_now + %s, %s)"
_GUARDED = (  # refused (`STALE`), and all with it, where the rows were routed by another version
    "(IF(@easybus = %s, %s, NULL), @easybus_now + %s, %s)"
)
_FETCH = (  # read first: a lock alone meets some rows of a send that is being committed, and passes over others
    "SELECT message.id, message.attempt + 1, message.body, message.visible_at FROM (SELECT id FROM {message} "
    "FORCE INDEX (due) WHERE queue_id = %s AND visible_at <= {now} AND visible_at >= %s ORDER BY visible_at, id "
    "LIMIT %s) AS seen STRAIGHT_JOIN {message} AS message FORCE INDEX (PRIMARY) ON message.id = seen.id "
    "WHERE message.queue_id = %s AND message.visible_at <= {now} LIMIT %s FOR UPDATE SKIP LOCKED"
)
_LEASE = "UPDATE {message} SET visible_at = @easybus_now + %s, attempt = attempt + 1, owner = %s WHERE %s"
_NEXT_DUE = (  # the queue's id as it is now, and the microseconds until its next row is due
    "SELECT id, (SELECT visible_at - {now} FROM {message} FORCE INDEX (due) WHERE queue_id = queue.id "
    "ORDER BY visible_at, id LIMIT 1) FROM {queue} AS queue WHERE name = %s"
)
_STATS = (
    "SELECT COUNT(CASE WHEN visible_at <= {now} THEN 1 END), COUNT(CASE WHEN visible_at > {now} AND owner <> 0 THEN 1 "
    "END), COUNT(CASE WHEN visible_at > {now} AND owner = 0 THEN 1 END) FROM {message} FORCE INDEX (due) "
    "WHERE queue_id = %s"
)
_LAST = "SELECT COALESCE(MAX(id), 0) FROM {message}"
_PURGEABLE = (  # what is not in flight, a part at a time, nothing newer than when the purge began
    "SELECT id FROM {message} FORCE INDEX (due) WHERE queue_id = %s AND id <= %s "
    "AND (owner = 0 OR visible_at <= {now}) LIMIT 5000 FOR UPDATE SKIP LOCKED"
)
_PURGE = "DELETE FROM {message} WHERE id IN %s"

_TRIES = 20
_FURTHER = 20
"""Times what is asked for that is looked at, where less was found last: others may hold what comes first."""
_IN_ORDER = operator.itemgetter(3, 0)
_ROW_SIZE = 64
"""Bytes that a row takes besides its body."""


class Lot(NamedTuple):
    """Messages that a transaction has locked."""

    deliveries: list[Delivery]
    leases: list[Step]
    """What takes them."""
    due: tuple[float | None, int]
    """See `next_due`; of no interest where there are deliveries."""
    reached: int | None
    """The last one's due time, if there are as many as were asked for."""
    since: int | None
    """The due time from which on they were looked for; None: all."""


class MysqlDriver:
    """The driver. Any number of processes on any number of hosts may work on one database."""

    def __init__(self, clock: Clock, session: Session) -> None:
        self._clock = clock
        self._session = session
        self._fronts: Fronts[int] = Fronts()
        self._short: set[int] = set()
        """The queues in which less was found last than was asked for."""

    @property
    def caps(self) -> Capabilities:
        """As the server said when it was last opened."""
        return self._session.caps

    async def declare(self, changes: Sequence[Change]) -> None:
        for change in changes:
            limits(self.caps).change(change)
        await self._session.topology.declare(self._session.connections, changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, DeclareQueue):
                await self._purge(change.name, missing_is_empty=True)
        await self._session.topology.drop(self._session.connections, changes)

    # ------------------------------------------------------------------------------------------------ publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        results: list[int | Exception | None] = []
        for part in _parts(batch, self.caps.max_body):
            results += await self._publish(part, results[-1] if results else None)
        return results

    async def _publish(self, batch: Sequence[Publication], before: object) -> list[int | Exception | None]:
        session = self._session
        snapshot = await session.topology.known(session.connections)
        for _ in range(_TRIES):
            route = _Route(snapshot, batch, limits(self.caps), before)
            last = snapshot
            if route.rows and await self._insert(snapshot, route):  # so the snapshot was the last
                session.watchers.wake(route.queues)
                return route.results
            snapshot = await session.topology.current(session.connections)
            if snapshot is last and not route.rows:
                return route.results
        raise Unavailable("queues and bindings changed faster than they could be read")

    async def _insert(self, snapshot: Snapshot, route: _Route) -> bool:
        (queue, delay, message), *others = route.rows
        steps: list[Step] = [BEGIN, (_KNOW,), (_INSERT, Rows(_GUARDED, [(snapshot.version, queue, delay, message)]))]
        steps += [(_INSERT, Rows(_ROW, part)) for part in _by_size(others, self.caps.max_body)]

        async def work(link: Link) -> bool:
            try:
                await link.run(*steps, COMMIT)
            except Exception as error:
                if code(error) != STALE:
                    raise
                await link.run(ROLLBACK)
                return False
            return True

        return await self._session.connections.run(work)

    # ------------------------------------------------------------------------------------------------- consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        session = self._session

        async def attempt() -> tuple[list[Delivery], float | None, int]:
            number = await self.number(queue)

            async def work(link: Link) -> tuple[list[Delivery], float | None, int]:
                lot = await self.lock(link, queue, number, limit, lease)
                if lot.deliveries:
                    await link.run(CLOCK, *lot.leases, COMMIT)
                    self.leased(number, lot)
                return lot.deliveries, *lot.due

            return await session.connections.run(work, undo=lambda result: self.give_back(queue, result[0]))

        return await until_found(session.watchers, self._clock, wait, await self.number(queue), attempt)

    async def number(self, queue: str) -> int:
        """The id of a queue, as far as is known here. Raises `NotDeclared`."""
        session = self._session
        snapshot = await session.topology.known(session.connections)
        if queue not in snapshot.queues:
            snapshot = await session.topology.current(session.connections)
        if queue not in snapshot.queues:
            raise no_queue(queue)
        return snapshot.queues[queue][0]

    async def lock(self, link: Link, queue: str, number: int, limit: int, lease: float) -> Lot:
        """Begin a transaction, in which up to `limit` due messages are locked. Where there are none, it is ended."""
        due, since = (None, number), self._fronts.since(number)
        rows = await self._pick(link, number, since or 0, limit)
        if since is not None and not rows:
            since = None
            rows = await self._pick(link, number, 0, limit)
        if not rows:
            due = await self.next_due(link, queue)
            if due[0] is not None and due[0] <= 0:  # committed just now, or behind what others hold
                rows = await self._pick(link, number, 0, limit)
                if not rows:
                    await link.run(COMMIT)
            if not rows:
                return Lot([], [], due, None, None)
        rows.sort(key=_IN_ORDER)
        owner = int.from_bytes(os.urandom(8), "big") >> 1 or 1
        found = [Delivery(queue, row[2], row[1], (row[0], owner)) for row in rows]
        leased = [(_LEASE, micros(lease), owner, part.where) for part in parts(sorted((row[0],) for row in rows))]
        return Lot(found, leased, (None, number), rows[-1][3] if len(rows) == limit else None, since)

    async def _pick(self, link: Link, number: int, since: int, limit: int) -> list[Any]:
        reach = limit * _FURTHER if number in self._short else limit
        step = (_FETCH, number, since, reach, number, limit)
        rows = (await link.run(*((step,) if link.in_transaction else (BEGIN, step))))[-1].rows
        if len(rows) < limit:
            self._short.add(number)
        else:
            self._short.discard(number)
        return list(rows)

    def leased(self, number: int, lot: Lot) -> None:
        """Its transaction is committed: the next fetch may begin behind it."""
        self._fronts.reached(number, lot.reached, lot.since)

    async def next_due(self, link: Link, queue: str) -> tuple[float | None, int]:
        """In how many seconds the queue's next message is due, and the queue's id; ends the transaction.

        Raises `NotDeclared`.
        """
        _, found = await link.run(COMMIT, (_NEXT_DUE, held(queue)))
        if not found.rows:
            self._session.topology.forget()
            raise no_queue(queue)
        number, due = found.rows[0]
        snapshot = self._session.topology.last
        if snapshot is None or snapshot.queues.get(queue, (0, 0.0))[0] != number:
            self._session.topology.forget()  # dropped and declared again elsewhere
        return None if due is None else due / 1e6, number

    def give_back(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """What a cancelled fetch had taken is ready again."""
        if deliveries:
            self._session.later(self.settle(queue, [Nack(delivery) for delivery in deliveries]))

    # ------------------------------------------------------------------------------------------------- settling

    async def settle(self, queue: str, batch: Sequence[contract.Settlement]) -> list[Settled]:
        allowed = limits(self.caps)
        for item in batch:
            allowed.settlement(item)
        results = await self._session.connections.run(lambda link: settle(link, batch))
        if any(isinstance(item, (Nack, Move)) for item in batch):
            snapshot = self._session.topology.last
            if snapshot is not None and queue in snapshot.queues:
                self._session.watchers.wake([snapshot.queues[queue][0]])
        return [Settled.DONE if done else Settled.STALE for done in results]

    # -------------------------------------------------------------------------------------------------- looking

    async def stats(self, queue: str) -> QueueStats:
        session = self._session
        snapshot = await session.topology.current(session.connections)
        if queue not in snapshot.queues:
            raise no_queue(queue)
        number = snapshot.queues[queue][0]
        found = await session.connections.run(lambda link: link.one(_STATS, number))
        return QueueStats(*found.rows[0])

    async def purge(self, queue: str) -> int:
        return await self._purge(queue, missing_is_empty=False)

    async def _purge(self, queue: str, *, missing_is_empty: bool) -> int:
        session, total = self._session, 0
        snapshot = await session.topology.current(session.connections)
        if queue not in snapshot.queues:
            if missing_is_empty:
                return 0
            raise no_queue(queue)
        number = snapshot.queues[queue][0]
        last = await session.connections.run(lambda link: link.value(_LAST))

        async def part(link: Link) -> int:
            found = (await link.run(BEGIN, (_PURGEABLE, number, last)))[1].rows
            if not found:
                await link.run(COMMIT)
                return 0
            return (await link.run((_PURGE, [row[0] for row in found]), COMMIT))[0].changed

        while removed := await session.connections.run(part):
            total += removed
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

    def __init__(self, snapshot: Snapshot, batch: Sequence[Publication], allowed: Limits, before: object) -> None:
        """`before`: the result of what came before this batch."""
        self.rows: list[tuple[int, int, bytes]] = []
        """Queue, delay in microseconds, body."""
        self.results: list[int | Exception | None] = []
        for item in batch:
            last = self.results[-1] if self.results else before
            if held_up(item, last):
                self.results.append(cast("Exception", last))
                continue
            try:
                allowed.publication(item)
                reached = _reached(snapshot, item)
            except Exception as error:
                self.results.append(error)
                continue
            for queue in reached:
                number, delay = snapshot.queues[queue]
                self.rows.append((number, micros(delay if item.delay is None else item.delay), item.body))
            self.results.append(len(reached))

    @property
    def queues(self) -> list[int]:
        """The queues that are reached."""
        return [row[0] for row in self.rows]


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


def _parts(batch: Sequence[Publication], largest: int) -> Iterator[Sequence[Publication]]:
    """The batch in its order, in parts that one transaction carries."""
    begin = size = 0
    for at, item in enumerate(batch):
        size += len(item.body)
        if size > largest and at > begin:
            yield batch[begin:at]
            begin, size = at, len(item.body)
    yield batch[begin:]


def _by_size(rows: list[tuple[int, int, bytes]], largest: int) -> Iterator[list[tuple[int, int, bytes]]]:
    """Rows in their order, in parts that one statement carries."""
    begin = size = 0
    for at, row in enumerate(rows):
        size += len(row[2]) + _ROW_SIZE
        if size > largest and at > begin:
            yield rows[begin:at]
            begin, size = at, len(row[2])
    if begin < len(rows):
        yield rows[begin:]

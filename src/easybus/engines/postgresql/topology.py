"""Queues, topics and bindings: read once for each version of theirs, changed under the version row's lock.

Every change raises the version in its own transaction. A publish carries the version that it was routed by, and
inserts nothing where that is no longer the last: it sees what any `declare` has returned, in any process.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DeclaredOtherwise, NotDeclared
from ...routing import Routes
from ..contract import Binding, Change, DeclareQueue, DeclareTopic
from .connections import Connection, Connections
from .names import Names, escape, unescape

_VERSION = "SELECT value FROM {meta} WHERE name = 'bindings'"
_LOCK_VERSION = "SELECT value FROM {meta} WHERE name = 'bindings' FOR UPDATE"  # one declaration at a time
_RAISE_VERSION = "UPDATE {meta} SET value = (value::bigint + 1)::text WHERE name = 'bindings'"
_QUEUES = "SELECT name, id, delay FROM {queue}"
_TOPICS = "SELECT name, id FROM {topic}"
_BINDINGS = (
    "SELECT topic.name, queue.name, pattern FROM {binding} AS binding JOIN {topic} AS topic ON topic.id = topic_id "
    "JOIN {queue} AS queue ON queue.id = queue_id ORDER BY binding.id"
)
_ADD_QUEUE = "INSERT INTO {queue} (name, delay) VALUES ($1, $2) RETURNING id"
_ADD_TOPIC = "INSERT INTO {topic} (name) VALUES ($1) RETURNING id"
_ADD_BINDING = "INSERT INTO {binding} (topic_id, queue_id, pattern) VALUES ($1, $2, $3)"
_DROP_BINDING = "DELETE FROM {binding} WHERE topic_id = $1 AND queue_id = $2 AND pattern = $3"
_DROP_TOPIC = "WITH unbound AS (DELETE FROM {binding} WHERE topic_id = $1) DELETE FROM {topic} WHERE id = $1"
_DROP_QUEUE = "WITH unbound AS (DELETE FROM {binding} WHERE queue_id = $1) DELETE FROM {queue} WHERE id = $1"
_STILL = "LOCK TABLE {message} IN SHARE ROW EXCLUSIVE MODE"  # publishes under way end, later ones see the new version
_DROP_MESSAGES = "DELETE FROM {message} WHERE queue_id = $1"


class Snapshot:
    """What was declared at one version."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.queues: dict[str, tuple[int, float]] = {}
        """Name → id, delay in seconds."""
        self.topics: dict[str, int] = {}
        """Name → id."""
        self.bindings: dict[Binding, None] = {}
        self.routes: dict[str, Routes] = {}
        """Topic → its bindings."""

    def has(self, change: Change) -> bool:
        """Whether it is declared already. Raises `DeclaredOtherwise`."""
        if isinstance(change, Binding):
            return change in self.bindings
        if isinstance(change, DeclareTopic):
            return change.name in self.topics
        found = self.queues.get(change.name)
        if found is not None and found[1] != change.delay:
            raise DeclaredOtherwise(
                f"the queue {change.name!r} exists with a delay of {found[1]:g} s, not {change.delay:g} s; "
                "declare it so, or drop it first (its messages go with it)"
            )
        return found is not None


class Topology:
    """What is declared, as of the version that was last read."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._last: Snapshot | None = None

    @property
    def last(self) -> Snapshot | None:
        """The snapshot at hand, if there is one."""
        return self._last

    def forget(self) -> None:
        """Read again at the next use."""
        self._last = None

    async def known(self, connections: Connections) -> Snapshot:
        """The snapshot at hand, however old: whoever uses it finds out whether it is the last."""
        return self._last or await connections.run(self._reload)

    async def current(self, connections: Connections) -> Snapshot:
        """What is declared now."""
        return await connections.run(self._current)

    async def _current(self, connection: Connection) -> Snapshot:
        last = self._last
        if last is not None and await connection.fetchval(self._names(_VERSION)) == last.version:
            return last
        return await self._reload(connection)

    async def _reload(self, connection: Connection) -> Snapshot:
        self._last = await self._read(connection)
        return self._last

    async def _read(self, connection: Connection) -> Snapshot:
        """Read all. The version first: what is newer than it is read again, never taken for old."""
        names = self._names
        found = Snapshot(await connection.fetchval(names(_VERSION)))
        for name, number, delay in await connection.fetch(names(_QUEUES)):
            found.queues[unescape(name)] = (number, delay)
        for name, number in await connection.fetch(names(_TOPICS)):
            found.topics[unescape(name)] = number
        pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in found.topics}
        for row in await connection.fetch(names(_BINDINGS)):
            topic, queue, pattern = (unescape(text) for text in row)
            if topic in pairs and queue in found.queues:  # else declared since: the version has been raised
                found.bindings[Binding(topic, queue, pattern)] = None
                pairs[topic].append((queue, pattern))
        found.routes = {topic: Routes(bound) for topic, bound in pairs.items()}
        return found

    async def declare(self, connections: Connections, changes: Sequence[Change]) -> None:
        """Make these exist, all or none."""
        if any(isinstance(change, Binding) for change in changes):
            changes = sorted(changes, key=lambda change: isinstance(change, Binding))
        snapshot = await self.current(connections)
        if all(snapshot.has(change) for change in changes):
            return
        await connections.run(lambda connection: self._declare(connection, changes))

    async def _declare(self, connection: Connection, changes: Sequence[Change]) -> None:
        names = self._names
        try:
            async with connection.transaction():
                await connection.execute(names(_LOCK_VERSION))
                snapshot = await self._read(connection)  # nobody else's: others must not see what is not committed
                for change in changes:
                    if snapshot.has(change):
                        continue
                    if isinstance(change, DeclareQueue):
                        number = await connection.fetchval(names(_ADD_QUEUE), escape(change.name), change.delay)
                        snapshot.queues[change.name] = (number, change.delay)
                    elif isinstance(change, DeclareTopic):
                        snapshot.topics[change.name] = await connection.fetchval(names(_ADD_TOPIC), escape(change.name))
                    else:
                        ids = (_id(snapshot, change.topic), _queue(snapshot, change.queue))
                        await connection.execute(names(_ADD_BINDING), *ids, escape(change.route_key))
                        snapshot.bindings[change] = None
                await connection.execute(names(_RAISE_VERSION))
        finally:
            self.forget()

    async def drop(self, connections: Connections, changes: Sequence[Change]) -> None:
        """Make these not exist."""
        await connections.run(lambda connection: self._drop(connection, changes))

    async def _drop(self, connection: Connection, changes: Sequence[Change]) -> None:
        names = self._names
        try:
            async with connection.transaction():
                await connection.execute(names(_LOCK_VERSION))
                snapshot = await self._read(connection)
                for change in changes:
                    if isinstance(change, DeclareQueue):
                        if change.name in snapshot.queues:
                            number = snapshot.queues[change.name][0]
                            await connection.execute(names(_STILL))
                            await connection.execute(names(_DROP_MESSAGES), number)
                            await connection.execute(names(_DROP_QUEUE), number)
                    elif isinstance(change, DeclareTopic):
                        if change.name in snapshot.topics:
                            await connection.execute(names(_DROP_TOPIC), snapshot.topics[change.name])
                    elif change in snapshot.bindings:
                        ids = (snapshot.topics[change.topic], snapshot.queues[change.queue][0])
                        await connection.execute(names(_DROP_BINDING), *ids, escape(change.route_key))
                await connection.execute(names(_RAISE_VERSION))
        finally:
            self.forget()


def _id(snapshot: Snapshot, topic: str) -> int:
    if topic not in snapshot.topics:
        raise no_topic(topic)
    return snapshot.topics[topic]


def _queue(snapshot: Snapshot, queue: str) -> int:
    if queue not in snapshot.queues:
        raise no_queue(queue)
    return snapshot.queues[queue][0]


def no_queue(name: str) -> NotDeclared:
    """The error for a queue that is not there."""
    return NotDeclared(f"there is no queue {name!r}: declare it first")


def no_topic(name: str) -> NotDeclared:
    """The error for a topic that is not there."""
    return NotDeclared(f"there is no topic {name!r}: declare it first")

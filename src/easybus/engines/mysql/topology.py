"""Queues, topics and bindings: read once for each version of theirs, changed under the version row's lock.

Every change raises the version in its own transaction. A publish locks the version for reading, and inserts nothing
where it is not the one that the rows were routed by: it sees what any `declare` has returned, in any process, and
nothing is published into a queue that has been dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DeclaredOtherwise, NotDeclared
from ...routing import Routes
from ..contract import Binding, Change, DeclareQueue, DeclareTopic
from .connections import Connections
from .link import BEGIN, COMMIT, Link, Step
from .names import held, read

_VERSION = "SELECT value FROM {meta} WHERE name = 'bindings'"
_LOCK_VERSION = f"{_VERSION} FOR UPDATE"  # one declaration at a time, after the publishes under way
_RAISE_VERSION = "UPDATE {meta} SET value = CAST(value AS UNSIGNED) + 1 WHERE name = 'bindings'"
_QUEUES = "SELECT name, id, delay FROM {queue}"
_TOPICS = "SELECT name, id FROM {topic}"
_BINDINGS = (
    "SELECT topic.name, queue.name, pattern FROM {binding} AS binding JOIN {topic} AS topic ON topic.id = topic_id "
    "JOIN {queue} AS queue ON queue.id = queue_id ORDER BY binding.id"
)
_ADD_QUEUE = "INSERT INTO {queue} (name, delay) VALUES (%s, %s)"
_ADD_TOPIC = "INSERT INTO {topic} (name) VALUES (%s)"
_ADD_BINDING = "INSERT INTO {binding} (topic_id, queue_id, pattern) VALUES (%s, %s, %s)"
_DROP_BINDING = "DELETE FROM {binding} WHERE topic_id = %s AND queue_id = %s AND pattern = %s"
_UNBIND_TOPIC = "DELETE FROM {binding} WHERE topic_id = %s"
_DROP_TOPIC = "DELETE FROM {topic} WHERE id = %s"
_UNBIND_QUEUE = "DELETE FROM {binding} WHERE queue_id = %s"
_DROP_QUEUE = "DELETE FROM {queue} WHERE id = %s"
_DROP_MESSAGES = "DELETE FROM {message} WHERE queue_id = %s"


class Snapshot:
    """What was declared at one version."""

    def __init__(self, version: int) -> None:
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

    def __init__(self) -> None:
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

    async def _current(self, link: Link) -> Snapshot:
        last = self._last
        if last is not None and int(await link.value(_VERSION)) == last.version:
            return last
        return await self._reload(link)

    async def _reload(self, link: Link) -> Snapshot:
        self._last = await self._read(link)
        return self._last

    async def _read(self, link: Link) -> Snapshot:
        """Read all. The version first: what is newer than it is read again, never taken for old."""
        version, queues, topics, bindings = await link.run((_VERSION,), (_QUEUES,), (_TOPICS,), (_BINDINGS,))
        found = Snapshot(int(version.rows[0][0]))
        for name, number, delay in queues.rows:
            found.queues[read(name)] = (number, delay)
        for name, number in topics.rows:
            found.topics[read(name)] = number
        pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in found.topics}
        for row in bindings.rows:
            topic, queue, pattern = (read(text) for text in row)
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
        await connections.run(lambda link: self._declare(link, changes))

    async def _declare(self, link: Link, changes: Sequence[Change]) -> None:
        try:
            await link.run(BEGIN, (_LOCK_VERSION,))
            snapshot = await self._read(link)  # nobody else's: others must not see what is not committed
            for change in changes:
                if snapshot.has(change):
                    continue
                if isinstance(change, DeclareQueue):
                    added = await link.one(_ADD_QUEUE, held(change.name), change.delay)
                    snapshot.queues[change.name] = (added.id, change.delay)
                elif isinstance(change, DeclareTopic):
                    snapshot.topics[change.name] = (await link.one(_ADD_TOPIC, held(change.name))).id
                else:
                    ids = (_id(snapshot, change.topic), _queue(snapshot, change.queue))
                    await link.one(_ADD_BINDING, *ids, held(change.route_key))
                    snapshot.bindings[change] = None
            await link.run((_RAISE_VERSION,), COMMIT)
        finally:
            self.forget()

    async def drop(self, connections: Connections, changes: Sequence[Change]) -> None:
        """Make these not exist."""
        await connections.run(lambda link: self._drop(link, changes))

    async def _drop(self, link: Link, changes: Sequence[Change]) -> None:
        try:
            await link.run(BEGIN, (_LOCK_VERSION,))
            snapshot = await self._read(link)
            steps = [step for change in changes for step in _dropping(snapshot, change)]
            await link.run(*steps, (_RAISE_VERSION,), COMMIT)
        finally:
            self.forget()


def _dropping(snapshot: Snapshot, change: Change) -> list[Step]:
    if isinstance(change, DeclareQueue):
        if change.name not in snapshot.queues:
            return []
        number = snapshot.queues[change.name][0]
        return [(_DROP_MESSAGES, number), (_UNBIND_QUEUE, number), (_DROP_QUEUE, number)]
    if isinstance(change, DeclareTopic):
        if change.name not in snapshot.topics:
            return []
        number = snapshot.topics[change.name]
        return [(_UNBIND_TOPIC, number), (_DROP_TOPIC, number)]
    if change not in snapshot.bindings:
        return []
    ids = (snapshot.topics[change.topic], snapshot.queues[change.queue][0])
    return [(_DROP_BINDING, *ids, held(change.route_key))]


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

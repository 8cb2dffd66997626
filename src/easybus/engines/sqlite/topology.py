"""Queues, topics and bindings: read once for each version of theirs, changed in the writer's transaction.

Every change raises the version row in the same transaction, and every publish reads that row in its own: a publish
sees what any `declare` has returned, in any process.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DeclaredOtherwise, NotDeclared
from ...routing import Routes
from ..contract import Binding, Change, DeclareQueue, DeclareTopic
from .connect import Connection
from .stamps import to_microseconds

_VERSION = "SELECT value FROM \"easybus_meta\" WHERE name = 'bindings'"
_RAISE_VERSION = "UPDATE \"easybus_meta\" SET value = value + 1 WHERE name = 'bindings'"
_QUEUES = 'SELECT name, id, delay FROM "easybus_queue" ORDER BY name'
_TOPICS = 'SELECT name FROM "easybus_topic" ORDER BY name'
_BINDINGS = (
    'SELECT topic.name, queue.name, pattern FROM "easybus_binding" AS binding '
    'JOIN "easybus_topic" AS topic ON topic.id = topic_id JOIN "easybus_queue" AS queue ON queue.id = queue_id '
    "ORDER BY binding.id"
)
_ADD_QUEUE = 'INSERT INTO "easybus_queue" (name, delay) VALUES (?, ?)'
_ADD_TOPIC = 'INSERT INTO "easybus_topic" (name) VALUES (?) ON CONFLICT DO NOTHING'
_ADD_BINDING = (  # adds nothing where the topic or the queue is not there: the caller has looked
    'INSERT INTO "easybus_binding" (topic_id, queue_id, pattern) SELECT topic.id, queue.id, ? '
    'FROM "easybus_topic" AS topic, "easybus_queue" AS queue WHERE topic.name = ? AND queue.name = ? '
    "ON CONFLICT DO NOTHING"
)
_DROP_BINDING = (
    'DELETE FROM "easybus_binding" WHERE topic_id = (SELECT id FROM "easybus_topic" WHERE name = ?) '
    'AND queue_id = (SELECT id FROM "easybus_queue" WHERE name = ?) AND pattern = ?'
)
_DROP_TOPIC_BINDINGS = 'DELETE FROM "easybus_binding" WHERE topic_id = (SELECT id FROM "easybus_topic" WHERE name = ?)'
_DROP_TOPIC = 'DELETE FROM "easybus_topic" WHERE name = ?'
_DROP_QUEUE_BINDINGS = 'DELETE FROM "easybus_binding" WHERE queue_id = ?'
_DROP_QUEUE_MESSAGES = 'DELETE FROM "easybus_message" WHERE queue_id = ?'
_DROP_QUEUE = 'DELETE FROM "easybus_queue" WHERE id = ?'


class Topology:
    """What is declared, as of the version that was last read. Used on the writer's thread only."""

    def __init__(self) -> None:
        self._version: int | None = None
        self.queues: dict[str, tuple[int, int]] = {}
        """Name → id, delay in microseconds."""
        self.topics: dict[str, Routes] = {}
        self.bindings: list[Binding] = []

    def forget(self) -> None:
        """Read all again at the next use."""
        self._version = None

    def refresh(self, connection: Connection) -> None:
        """Bring this up to the database's version."""
        version: int = connection.rows(_VERSION)[0][0]
        if version == self._version:
            return
        self.queues = {name: (number, delay) for name, number, delay in connection.rows(_QUEUES)}
        self.bindings = [Binding(*row) for row in connection.rows(_BINDINGS)]
        routes: dict[str, list[tuple[str, str]]] = {name: [] for (name,) in connection.rows(_TOPICS)}
        for binding in self.bindings:
            routes.setdefault(binding.topic, []).append((binding.queue, binding.route_key))
        self.topics = {name: Routes(pairs) for name, pairs in routes.items()}
        self._version = version

    def queue(self, connection: Connection, name: str) -> int:
        """The id of a queue. Raises `NotDeclared`."""
        self.refresh(connection)
        found = self.queues.get(name)
        if found is None:
            raise no_queue(name)
        return found[0]

    def has(self, connection: Connection, changes: Sequence[Change]) -> bool:
        """Whether all of these exist as they are."""
        self.refresh(connection)
        for change in changes:
            if isinstance(change, DeclareQueue):
                there = self.queues.get(change.name, (0, None))[1] == to_microseconds(change.delay)
            elif isinstance(change, DeclareTopic):
                there = change.name in self.topics
            else:
                there = change in self.bindings
            if not there:
                return False
        return True

    def declare(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Make these exist, all or none."""
        self.refresh(connection)
        changed = 0
        for change in sorted(changes, key=lambda change: isinstance(change, Binding)):
            if isinstance(change, DeclareQueue):
                changed += self._declare_queue(connection, change)
            elif isinstance(change, DeclareTopic):
                changed += connection.run(_ADD_TOPIC, (change.name,))
                self.topics.setdefault(change.name, Routes())
            else:
                if change.topic not in self.topics:
                    raise no_topic(change.topic)
                if change.queue not in self.queues:
                    raise no_queue(change.queue)
                changed += connection.run(_ADD_BINDING, (change.route_key, change.topic, change.queue))
        if changed:
            connection.run(_RAISE_VERSION)
            self.forget()

    def _declare_queue(self, connection: Connection, change: DeclareQueue) -> int:
        delay = to_microseconds(change.delay)
        found = self.queues.get(change.name)
        if found is not None and found[1] != delay:
            raise DeclaredOtherwise(
                f"the queue {change.name!r} exists with a delay of {found[1] / 1e6:g} s, not {change.delay:g} s; "
                "declare it so, or drop it first (its messages go with it)"
            )
        if found is None:
            connection.run(_ADD_QUEUE, (change.name, delay))
            self.queues[change.name] = (0, delay)  # the id is read when the version has been raised
        return found is None

    def drop(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Make these not exist."""
        self.refresh(connection)
        for change in changes:
            if isinstance(change, DeclareQueue):
                found = self.queues.get(change.name)
                if found is not None:
                    for statement in (_DROP_QUEUE_BINDINGS, _DROP_QUEUE_MESSAGES, _DROP_QUEUE):
                        connection.run(statement, (found[0],))
            elif isinstance(change, DeclareTopic):
                connection.run(_DROP_TOPIC_BINDINGS, (change.name,))
                connection.run(_DROP_TOPIC, (change.name,))
            else:
                connection.run(_DROP_BINDING, (change.topic, change.queue, change.route_key))
        connection.run(_RAISE_VERSION)
        self.forget()


def no_queue(name: str) -> NotDeclared:
    """The error for a queue that is not there."""
    return NotDeclared(f"there is no queue {name!r}: declare it first")


def no_topic(name: str) -> NotDeclared:
    """The error for a topic that is not there."""
    return NotDeclared(f"there is no topic {name!r}: declare it first")

"""What lies behind one `memory://` URL: the queues, topics, keys, dead letters and halves, under one lock.

The lock is there for `memory://name`, which buses on several threads' loops may share; it is never held over an await.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from threading import RLock

from ...errors import BadDelay, BadName, DeclaredOtherwise, NotDeclared
from ...routing import Routes
from ..contract import Binding, Capabilities, Change, DeclareQueue, DeclareTopic
from .dead_letters import Letters
from .keys import Keys
from .queue import MemoryQueue
from .transactions import Halves

__all__ = ["CAPS", "Space", "check_delay", "check_name"]

CAPS = Capabilities(
    engine="memory",
    durable=False,
    shared=False,
    max_body=16 * 1024 * 1024,
    max_name=255,
    delays_topics=False,
    atomic_move=True,
    fenced=True,
    ordered=True,
    unbroken=True,
    counts=True,
    counts_routes=True,
    lists_queues=True,
)


class Space:
    """The data; it outlives the engines that are opened on it."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: dict[str, dict[Binding, None]] = {}
        """Topic → its bindings, in the order of binding."""
        self.routes: dict[str, Routes] = {}
        """Topic → its bindings, ready to be asked."""
        self.keys = Keys()
        self.letters = Letters()
        self.halves = Halves()

    def queue(self, name: str) -> MemoryQueue:
        """The queue of this name, or `NotDeclared`."""
        queue = self.queues.get(name)
        if queue is None:
            check_name("queue", name)
            raise NotDeclared(f"there is no queue {name!r}: declare it first")
        return queue

    def topic(self, name: str) -> Routes:
        """The routes of the topic of this name, or `NotDeclared`."""
        routes = self.routes.get(name)
        if routes is None:
            check_name("topic", name)
            raise NotDeclared(f"there is no topic {name!r}: declare it first")
        return routes

    def declare(self, changes: Sequence[Change]) -> None:
        """All of these, or an error and none."""
        queues: dict[str, float] = {}
        topics: dict[str, None] = {}
        for change in changes:
            if isinstance(change, DeclareQueue):
                check_name("queue", change.name)
                check_delay(change.delay)
                standing = self.queues.get(change.name)
                delay = queues.setdefault(change.name, change.delay if standing is None else standing.delay)
                if delay != change.delay:
                    raise DeclaredOtherwise(
                        f"queue {change.name!r} has a delay of {delay} s, not {change.delay} s: drop it first"
                    )
            elif isinstance(change, DeclareTopic):
                check_name("topic", change.name)
                topics[change.name] = None
        bound: dict[Binding, None] = {}
        for change in changes:
            if isinstance(change, Binding):
                if change.topic not in topics:
                    self.topic(change.topic)
                if change.queue not in queues:
                    self.queue(change.queue)
                check_route_key(change.route_key)
                bound[change] = None

        for name, delay in queues.items():
            if name not in self.queues:
                self.queues[name] = MemoryQueue(name, delay)
        for name in topics:
            if self.bindings.setdefault(name, {}) == {}:
                self._rebind(name)
        for binding in bound:
            self.bindings[binding.topic][binding] = None
            self._rebind(binding.topic)

    def drop(self, changes: Sequence[Change]) -> None:
        """All of these that are there."""
        for change in changes:
            if isinstance(change, Binding):
                if self.bindings.get(change.topic, {}).pop(change, change) is None:
                    self._rebind(change.topic)
            elif isinstance(change, DeclareTopic):
                self.bindings.pop(change.name, None)
                self.routes.pop(change.name, None)
            else:
                queue = self.queues.pop(change.name, None)
                if queue is not None:
                    self._unbind(change.name)
                    queue.dropped()

    def _unbind(self, queue: str) -> None:
        for topic, bindings in self.bindings.items():
            gone = [binding for binding in bindings if binding.queue == queue]
            for binding in gone:
                del bindings[binding]
            if gone:
                self._rebind(topic)

    def _rebind(self, topic: str) -> None:
        self.routes[topic] = Routes((binding.queue, binding.route_key) for binding in self.bindings[topic])


def check_name(what: str, name: str) -> None:
    """`BadName`, unless this engine can hold the name."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise BadName(f"the {what} {name!r} holds half a surrogate pair, which has no UTF-8") from None
    if not 0 < length <= CAPS.max_name:
        raise BadName(f"the {what} {name!r} has {length} bytes in UTF-8; 1 to {CAPS.max_name} are allowed")


def check_route_key(key: str) -> None:
    """`BadName`, unless the key or pattern has UTF-8."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise BadName(f"the route key {key!r} holds half a surrogate pair, which has no UTF-8") from None


def check_delay(delay: float) -> None:
    """`BadDelay`, unless it is 0 to the longest."""
    if not (isfinite(delay) and 0 <= delay <= CAPS.max_delay):
        raise BadDelay(f"a delay of {delay} s; 0 to {CAPS.max_delay:.0f} s are allowed")

"""What is declared, as of the version that was last read. Every publish says which version it was routed by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import DeclaredOtherwise, EngineError, NotDeclared
from ...routing import Routes
from ..contract import Binding, Change, DeclareQueue, DeclareTopic
from .names import Names, fresh_version


class Topology:
    """Queues, topics and bindings."""

    def __init__(self) -> None:
        self.version: bytes | None = None
        """None: not read yet."""
        self.queues: dict[str, int] = {}
        """Name → delay in microseconds."""
        self.topics: dict[str, Routes] = {}
        self.bindings: list[Binding] = []

    def read(self, reply: list[Any]) -> None:
        """Take over what the server says."""
        version, queues, topics = reply
        self.queues = {name.decode(): int(delay) for name, delay in zip(queues[::2], queues[1::2], strict=True)}
        self.topics, self.bindings = {}, []
        for name, bindings in zip(topics[::2], topics[1::2], strict=True):
            bound = sorted(_decoded(binding) for binding in bindings)
            self.topics[name.decode()] = Routes(bound)
            self.bindings += [Binding(name.decode(), queue, pattern) for queue, pattern in bound]
        self.version = version


def declaring(names: Names, changes: Sequence[Change]) -> list[str | int]:
    """What `declare.lua` is given: queues and topics first."""
    values: list[str | int] = [fresh_version()]
    for change in sorted(changes, key=lambda change: isinstance(change, Binding)):
        if isinstance(change, DeclareQueue):
            values += ["q", change.name, to_microseconds(change.delay), names.queue(change.name)]
        elif isinstance(change, DeclareTopic):
            values += ["t", change.name, "", ""]
        else:
            values += ["b", change.topic, change.queue, _encoded(change.queue, change.route_key)]
    return values


def dropping(names: Names, changes: Sequence[Change]) -> list[str]:
    """What `drop.lua` is given."""
    values = [fresh_version()]
    for change in changes:
        if isinstance(change, DeclareQueue):
            values += ["q", change.name, _encoded(change.name, ""), names.queue(change.name)]
        elif isinstance(change, DeclareTopic):
            values += ["t", change.name, "", ""]
        else:
            values += ["b", change.topic, "", _encoded(change.queue, change.route_key)]
    return values


def declared(reply: list[bytes], changes: Sequence[Change]) -> None:
    """Raise what `declare.lua` found."""
    what, *rest = (part.decode() for part in reply)
    if what == "ok":
        return
    raise _refusal(what, rest, changes)


def _refusal(what: str, rest: list[str], changes: Sequence[Change]) -> EngineError:
    if what == "no topic":
        return no_topic(rest[0])
    if what == "no queue":
        return no_queue(rest[0])
    name, delay = rest[0], int(rest[1]) / 1e6
    wanted = next(
        (change.delay for change in changes if isinstance(change, DeclareQueue) and change.name == name), delay
    )
    return DeclaredOtherwise(
        f"the queue {name!r} exists with a delay of {delay:g} s, not {wanted:g} s; "
        "declare it so, or drop it first (its messages go with it)"
    )


def no_queue(name: str) -> NotDeclared:
    """The error for a queue that is not there."""
    return NotDeclared(f"there is no queue {name!r}: declare it first")


def no_topic(name: str) -> NotDeclared:
    """The error for a topic that is not there."""
    return NotDeclared(f"there is no topic {name!r}: declare it first")


def to_microseconds(seconds: float) -> int:
    """Seconds as microseconds, rounded up, so that nothing is early; never beyond what a score holds exactly."""
    return min(math.ceil(min(seconds, 1e9) * 1e6), 1_000_000_000_000_000)


def _encoded(queue: str, pattern: str) -> str:
    return f"{len(queue.encode())}:{queue}{pattern}"


def _decoded(binding: bytes) -> tuple[str, str]:
    size, _, rest = binding.partition(b":")
    return rest[: int(size)].decode(), rest[int(size) :].decode()

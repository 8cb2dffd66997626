"""Handlers as declarations: which function takes what from which queue. Importing a router does nothing.

One router may serve many buses; `bus.include(router)` gives its handlers to a bus.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from .errors import ConfigurationError
from .message import Message
from .receiving.retry import Retrying
from .receiving.subscription import HandlerOptions
from .sending.checkback import CheckPolicy
from .topic import Queue, Topic

__all__ = ["CommittedSettings", "Decorator", "HandlerSettings", "Router"]

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")
P = ParamSpec("P")


class HandlerSettings(TypedDict, total=False):
    """How a queue is handled; what is left out is the bus's default, or `HandlerOptions`'. Times in seconds."""

    concurrency: int
    """Messages of this queue at work at once in one process; default 10."""
    timeout: float | None
    """The longest that the handler may run; default no limit."""
    lease: float
    """How long a dead process's messages wait for another; default 60."""
    retry: Retrying
    """A policy, or a mapping from exception class to policy; default 8 attempts over about an hour."""
    dedupe: timedelta | None
    """How long a handled message is remembered; default one day. None: no deduplication."""
    already_handled: Callable[..., bool | None] | Callable[..., Awaitable[bool | None]]
    """Asked when a message was begun before: did its effect take place?"""
    within: Any
    """A transaction's type, such as `sqlite3.Connection`: the handler works in it, exactly once to that database."""
    unmatched: Literal["dead", "ignore"]
    """What becomes of a type that no function of the queue handles; default dead letter."""
    max_starts: int
    """Starts alone, without an outcome, before a message is a dead letter; default 3."""


class CommittedSettings(TypedDict, total=False):
    """When the halves of a topic are asked about; see `CheckPolicy`."""

    timeout: float
    retry_delay: Callable[[int], float]
    max_checks: int
    rarely: float


@dataclass(frozen=True, slots=True)
class HandlerDefinition:
    """One decorated function."""

    function: Callable[..., Any]
    target: Topic[Any] | Queue[Any]
    queue: str
    type: Any
    route_key: str
    settings: Mapping[str, Any]
    names: Mapping[str, Any]
    """What annotations of a function that was made inside another may mean: the names around it."""


class Decorator(Generic[T]):
    """Registers a function that takes a `T`, or the `Message`, first; the function stays as it is."""

    def __init__(self, register: Callable[[Callable[..., Any], Mapping[str, Any]], None]) -> None:
        self._register = register

    @overload
    def __call__(self, function: Callable[Concatenate[Message, P], R]) -> Callable[Concatenate[Message, P], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._register(function, _names_around(function))
        return function


class Router:
    """A collection of handlers, and of answers to `committed`."""

    def __init__(self) -> None:
        self.handlers: list[HandlerDefinition] = []
        self.answers: dict[str, tuple[Callable[..., Any], CheckPolicy]] = {}
        self.targets: dict[tuple[str, str], Topic[Any] | Queue[Any]] = {}

    @overload
    def handler(
        self, target: Topic[T], queue: str, /, *, route_key: str = "#", **settings: Unpack[HandlerSettings]
    ) -> Decorator[T]: ...
    @overload
    def handler(
        self, target: Topic[Any], queue: str, type: type[U], /, *, route_key: str = "#",
        **settings: Unpack[HandlerSettings],
    ) -> Decorator[U]: ...  # fmt: skip
    @overload
    def handler(self, target: Queue[T], /, **settings: Unpack[HandlerSettings]) -> Decorator[T]: ...
    @overload
    def handler(self, target: Queue[Any], type: type[U], /, **settings: Unpack[HandlerSettings]) -> Decorator[U]: ...
    def handler(
        self,
        target: Topic[Any] | Queue[Any],
        queue: Any = None,
        type: Any = None,
        /,
        *,
        route_key: str = "#",
        **settings: Any,
    ) -> Decorator[Any]:
        """Handle a topic's messages in a queue of its own: `handler(orders, "receipts", OrderPaid)`, or a queue's:
        `handler(emails, Email)`. No type: every type that has no function of its own.

        `route_key`: an AMQP topic pattern; `*` is one word, `#` any number. Functions that share a queue share its
        settings. Raises `ConfigurationError` for what cannot be.
        """
        self._adding()
        if isinstance(target, Queue):
            name, kind = target.name, queue
            if route_key != "#":
                raise ConfigurationError(f"queue {target.name!r} has no route keys: leave route_key= out")
        else:
            name, kind = queue, type
            if not isinstance(name, str) or not name:
                raise ConfigurationError(
                    f"which queue? Write .handler({target.name}, 'a-queue') with the name of the queue that is to "
                    f"collect the topic's messages, not {name!r}"
                )
        if kind is not None and kind not in target.payloads.types:
            known = ", ".join(getattr(one, "__name__", str(one)) for one in target.payloads.types)
            raise ConfigurationError(f"{getattr(kind, '__name__', kind)} is none of the types of {target!r}: {known}")
        unknown = set(settings) - {option.name for option in fields(HandlerOptions)}
        if unknown:
            raise TypeError(f"handler() has no option {', '.join(sorted(unknown))}")
        HandlerOptions(**settings)  # said here, where the line is, not at start
        self._know(target)

        def register(function: Callable[..., Any], names: Mapping[str, Any]) -> None:
            self.handlers.append(HandlerDefinition(function, target, name, kind, route_key, dict(settings), names))

        return Decorator(register)

    def committed(self, topic: Topic[T], /, **settings: Unpack[CommittedSettings]) -> Decorator[T]:
        """Answers, after a crash, whether the local work of a message took place: True, False (it did not, and never
        will), or None: not known yet."""
        policy = CheckPolicy(**settings)
        self._know(topic)

        def register(function: Callable[..., Any], _: Mapping[str, Any]) -> None:
            if topic.name in self.answers:
                raise ConfigurationError(f"two functions answer for topic {topic.name!r}; one is enough")
            self.answers[topic.name] = (function, policy)

        return Decorator(register)

    def include(self, *routers: Router) -> None:
        """Take over these routers' handlers and answers, as they are now."""
        self._adding()
        for router in routers:
            for target in router.targets.values():
                self._know(target)
            self.handlers.extend(router.handlers)
            for topic, answer in router.answers.items():
                if topic in self.answers:
                    raise ConfigurationError(f"two functions answer for topic {topic!r}; one is enough")
                self.answers[topic] = answer

    def _adding(self) -> None:
        """Before handlers are added: whether they still can be."""

    def _know(self, target: Topic[Any] | Queue[Any]) -> None:
        known = self.targets.setdefault(target.key, target)
        if isinstance(known, Queue) and isinstance(target, Queue) and known.delay != target.delay:
            raise ConfigurationError(
                f"queue {target.name!r} is given a delay of {target.delay} s here and of {known.delay} s elsewhere"
            )


def _names_around(function: Callable[..., Any]) -> Mapping[str, Any]:
    if "<locals>" not in getattr(function, "__qualname__", ""):
        return {}
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("easybus."):
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}

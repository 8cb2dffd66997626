"""Topics and queues as values: a name and payload types. No bus, no I/O: a service can publish them as its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

from .errors import ConfigurationError
from .message import Message
from .payloads import Payloads

__all__ = ["Queue", "QueueOptions", "Topic", "TopicOptions"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
H = TypeVar("H")


class TopicOptions(TypedDict, total=False):
    """What a topic can be told beside its types."""

    names: Mapping[Any, str]
    """What a type is called on the wire, where it is not its class name."""
    type_of: Callable[[Message], type[Any] | None]
    """Tells the type of a message that carries no header `type`: one of another library."""
    upgrade: Mapping[Any, Callable[[Any], Any]]
    """Old type → function that lifts its values to one of the topic's types."""
    declare: bool
    """False: another service owns it; if it is missing, opening the bus is an error. Default True."""


class QueueOptions(TopicOptions, total=False):
    """What a queue can be told beside its types."""

    delay: float
    """Seconds that a send without a delay of its own waits. Default 0."""


class _Declared(Generic[T]):
    """What topics and queues have in common."""

    def __init__(self, name: str, types: tuple[Any, ...], options: TopicOptions) -> None:
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(self).__name__.lower()
            raise ConfigurationError(f"a {kind}'s name is a text that is not empty, not {name!r}")
        allowed = QueueOptions if isinstance(self, Queue) else TopicOptions
        unknown = set(options) - set(allowed.__annotations__)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        self.name = name
        self.key = (type(self).__name__.lower(), name)
        """What tells it from every other topic and queue."""
        self.declare = options.get("declare", True)
        self.payloads = Payloads(
            types, names=options.get("names"), type_of=options.get("type_of"), upgrade=options.get("upgrade")
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Topic(_Declared[T]):
    """Where events go: every queue bound to it gets a copy. `Topic("orders", OrderPaid, OrderRefunded)`.

    Raises:
        ConfigurationError: no name, or a type that cannot be a payload.
    """

    # fmt: off
    @overload
    def __init__(self: Topic[Any], name: str, /, **options: Unpack[TopicOptions]) -> None: ...
    @overload
    def __init__(self: Topic[A], name: str, a: type[A], /, **options: Unpack[TopicOptions]) -> None: ...
    @overload
    def __init__(self: Topic[A | B], name: str, a: type[A], b: type[B], /, **options: Unpack[TopicOptions]) -> None: ...
    @overload
    def __init__(self: Topic[A | B | C], name: str, a: type[A], b: type[B], c: type[C], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Topic[A | B | C | D], name: str, a: type[A], b: type[B], c: type[C], d: type[D], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Topic[A | B | C | D | E], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Topic[A | B | C | D | E | F], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Topic[A | B | C | D | E | F | G], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], g: type[G], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Topic[A | B | C | D | E | F | G | H], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], g: type[G], h: type[H], /, **options: Unpack[TopicOptions]) -> None: ...  # noqa: E501
    # fmt: on
    def __init__(self, name: str, /, *types: Any, **options: Any) -> None:
        super().__init__(name, types, TopicOptions(**options))


class Queue(_Declared[T]):
    """Where commands go: each message is handled once, by one handler. `Queue("emails", Email, delay=5)`.

    Raises:
        ConfigurationError: no name, a type that cannot be a payload, or a negative delay.
    """

    # fmt: off
    @overload
    def __init__(self: Queue[Any], name: str, /, **options: Unpack[QueueOptions]) -> None: ...
    @overload
    def __init__(self: Queue[A], name: str, a: type[A], /, **options: Unpack[QueueOptions]) -> None: ...
    @overload
    def __init__(self: Queue[A | B], name: str, a: type[A], b: type[B], /, **options: Unpack[QueueOptions]) -> None: ...
    @overload
    def __init__(self: Queue[A | B | C], name: str, a: type[A], b: type[B], c: type[C], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Queue[A | B | C | D], name: str, a: type[A], b: type[B], c: type[C], d: type[D], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Queue[A | B | C | D | E], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Queue[A | B | C | D | E | F], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Queue[A | B | C | D | E | F | G], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], g: type[G], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    @overload
    def __init__(self: Queue[A | B | C | D | E | F | G | H], name: str, a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], f: type[F], g: type[G], h: type[H], /, **options: Unpack[QueueOptions]) -> None: ...  # noqa: E501
    # fmt: on
    def __init__(self, name: str, /, *types: Any, **options: Any) -> None:
        super().__init__(name, types, TopicOptions(**options))
        delay = options.get("delay", 0.0)
        if not 0 <= delay < float("inf"):
            raise ConfigurationError(f"queue {name!r}: delay={delay}; it is a number of seconds, 0 or more")
        self.delay = float(delay)

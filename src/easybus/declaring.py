"""What a bus is told before it is opened: its topics and queues, and what handlers may ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from .bound import BusQueue, BusTopic
from .errors import ConfigurationError
from .receiving.invoke import Provided
from .router import Router
from .topic import Queue, Topic

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["Declaring"]

T = TypeVar("T")


class Declaring(Router):
    """The declaring half of a `Bus`."""

    def __init__(self) -> None:
        super().__init__()
        self.provided: dict[Any, Provided] = {}

    @overload
    def topic(self, name: str, /, **options: Any) -> BusTopic[Any]: ...
    @overload
    def topic(self, name: str, type: type[T], /, **options: Any) -> BusTopic[T]: ...
    @overload
    def topic(self, name: str, /, *types: type[Any], **options: Any) -> BusTopic[Any]: ...
    def topic(self, name: str, /, *types: Any, **options: Any) -> BusTopic[Any]:
        """Declare a topic and bind it to this bus, in one line; see `Topic`."""
        contract: Topic[Any] = Topic(name, *types, **options)
        return self.bind(contract)

    @overload
    def queue(self, name: str, /, **options: Any) -> BusQueue[Any]: ...
    @overload
    def queue(self, name: str, type: type[T], /, **options: Any) -> BusQueue[T]: ...
    @overload
    def queue(self, name: str, /, *types: type[Any], **options: Any) -> BusQueue[Any]: ...
    def queue(self, name: str, /, *types: Any, **options: Any) -> BusQueue[Any]:
        """Declare a queue and bind it to this bus, in one line; see `Queue`."""
        contract: Queue[Any] = Queue(name, *types, **options)
        return self.bind(contract)

    @overload
    def bind(self, contract: Topic[T], /) -> BusTopic[T]: ...
    @overload
    def bind(self, contract: Queue[T], /) -> BusQueue[T]: ...
    def bind(self, contract: Topic[T] | Queue[T], /) -> BusTopic[T] | BusQueue[T]:
        """A contract's topic or queue, on this bus."""
        self._know(contract)
        bus = cast("Bus", self)
        return BusQueue(bus, contract) if isinstance(contract, Queue) else BusTopic(bus, contract)

    def provide(
        self, type: type[T], factory: Callable[..., Any], *, per: Literal["process", "message"] = "process"
    ) -> None:
        """Handlers may ask for a `type`, by annotation. `factory` is called once a process, or once a message; what
        it returns (or yields, as a generator or context manager) is the value."""
        if per not in ("process", "message"):
            raise ConfigurationError(f"per={per!r}; it is 'process' or 'message'")
        if not callable(factory):
            raise ConfigurationError(f"provide({type.__name__}, ...) takes a function that makes one, not {factory!r}")
        self.provided[type] = Provided(factory, per)

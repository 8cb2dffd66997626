"""A topic or queue on a bus: sending to it, and handling it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from .errors import ConfigurationError
from .message import Message
from .outgoing import Outgoing, SendOptions
from .router import CommittedSettings, Decorator, HandlerSettings
from .topic import Queue, Topic

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["BusQueue", "BusTopic", "contract_of"]

T = TypeVar("T")
U = TypeVar("U")


class _Bound(Generic[T]):
    def __init__(self, bus: Bus, contract: Topic[T] | Queue[T]) -> None:
        self._bus = bus
        self.name = contract.name

    async def send(
        self, value: T | Message, *, within: object = None, require: bool | None = None, **options: Unpack[SendOptions]
    ) -> Message:
        """Send one value; when this returns, it is confirmed, as durable as the engine is configured to be.

        A `Message`, such as one of `SendError.failed`, is sent as it is, and has its own id, route key and headers.

        `within`: the message rides in the caller's database transaction: it is published if, and only if, that
        commits. `require`: no queue bound for this route key is an error instead of a message that is kept nowhere (the
        default in tests).

        Raises:
            PayloadError: the value fits none of the types; nothing was sent.
            Refused: the engine will not take it (too large, a bad name or delay).
            SendError: not confirmed; `.failed` holds the message, and sending that again is safe.
            Unroutable: `require`, and no queue is bound.
            NotOpen, ConfigurationError: the bus is not open here, or `within` is no transaction of a known database.
        """
        return await self._bus.send(self._contract, value, within=within, require=require, **options)

    async def send_many(
        self, values: Iterable[T | Outgoing[T] | Message], *, within: object = None, require: bool | None = None
    ) -> list[Message]:
        """Send values, in their order; `Outgoing` gives one its own options, and a `Message` is sent as it is.

        Raises:
            SendError: some are not confirmed: those of `.failed`. Sending them again keeps their ids.
        """
        return await self._bus.send_many(self._contract, values, within=within, require=require)

    @property
    def _contract(self) -> Any:
        raise NotImplementedError


class BusTopic(_Bound[T]):
    """A topic on a bus."""

    def __init__(self, bus: Bus, contract: Topic[T]) -> None:
        super().__init__(bus, contract)
        self.contract = contract

    @property
    def _contract(self) -> Topic[T]:
        return self.contract

    def transaction(
        self, value: T, *, route_key: str = "", delay: float | None = None, id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[Message]:  # fmt: skip
        """Local work that is no database transaction: published if the block succeeds, discarded by `Rollback`, and
        asked about (see `committed`) after any other exception, and when the process dies.

        Raises:
            ConfigurationError: nobody answers `committed` for this topic; nothing was stored.
            SendError: on entering: the work has not begun. On leaving: the work is done, and the message is neither
                surely published nor surely kept.
        """
        return self._bus.transaction(self.contract, value, route_key=route_key, delay=delay, id=id, headers=headers)

    @overload
    def handler(self, queue: str, /, *, route_key: str = "#", **settings: Unpack[HandlerSettings]) -> Decorator[T]: ...
    @overload
    def handler(
        self, queue: str, type: type[U], /, *, route_key: str = "#", **settings: Unpack[HandlerSettings]
    ) -> Decorator[U]: ...
    def handler(self, queue: str, type: Any = None, /, *, route_key: str = "#", **settings: Any) -> Decorator[Any]:
        """Handle this topic's messages in the queue of this name; see `Router.handler`."""
        return self._bus.handler(self.contract, queue, type, route_key=route_key, **settings)

    @overload
    def committed(self, function: Any, /) -> Any: ...
    @overload
    def committed(self, /, **settings: Unpack[CommittedSettings]) -> Decorator[T]: ...
    def committed(self, function: Any = None, /, **settings: Any) -> Any:
        """Answers, after a crash, whether a message's local work took place; see `Router.committed`."""
        decorator: Any = self._bus.committed(self.contract, **settings)
        return decorator if function is None else decorator(function)

    def __repr__(self) -> str:
        return f"BusTopic({self.name!r})"


class BusQueue(_Bound[T]):
    """A queue on a bus."""

    def __init__(self, bus: Bus, contract: Queue[T]) -> None:
        super().__init__(bus, contract)
        self.contract = contract

    @property
    def _contract(self) -> Queue[T]:
        return self.contract

    @overload
    def handler(self, function: Any, /) -> Any: ...
    @overload
    def handler(self, type: type[U], /, **settings: Unpack[HandlerSettings]) -> Decorator[U]: ...
    @overload
    def handler(self, /, **settings: Unpack[HandlerSettings]) -> Decorator[T]: ...
    def handler(self, type: Any = None, /, **settings: Any) -> Any:
        """Handle this queue's messages; see `Router.handler`. Without parentheses: with the defaults."""
        register: Any = self._bus.handler
        if inspect.isroutine(type):
            return register(self.contract)(type)
        return register(self.contract, type, **settings)

    def __repr__(self) -> str:
        return f"BusQueue({self.name!r})"


def contract_of(target: Any) -> Topic[Any] | Queue[Any]:
    """The topic or queue that a send is meant for.

    Raises:
        ConfigurationError: it is none.
    """
    if isinstance(target, (Topic, Queue)):  # a union would be made anew for each call
        return target  # pyright: ignore[reportUnknownVariableType]
    if isinstance(target, BusTopic | BusQueue):
        return target.contract  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    raise ConfigurationError(f"send to a topic or a queue, such as bus.topic('orders', Order), not to {target!r}")

"""Calling a user's function: what its parameters are is found out once, at start.

The first positional parameter is the payload (or the `Message`, if annotated so); the others are found by annotation:
`Message`, a provided type (the `Bus` is one), or the handler's transaction. An async function is awaited, a sync one
runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import ConfigurationError
from ..message import Message
from .threads import Threads

__all__ = ["Call", "Invoker", "Middleware", "Provided", "Providers", "call_with_message"]

CallNext: TypeAlias = Callable[[Message], Awaitable[None]]
Middleware: TypeAlias = Callable[[Message, CallNext], Awaitable[None]]
Call: TypeAlias = Callable[[Message, Any, Any], Awaitable[Any]]
"""(message, payload, transaction or None) → what the user's function returned."""

_MESSAGE, _PAYLOAD, _TRANSACTION, _PROVIDED = "message", "payload", "transaction", "provided"


@dataclass(frozen=True, slots=True)
class Provided:
    """Where values of a type come from."""

    factory: Callable[..., Any]
    per: Literal["process", "message"]
    owned: bool = True
    """Whether what it makes is entered, and closed in the end; else it is its owner's."""


class Providers:
    """The types that handlers may ask for."""

    def __init__(self, provided: Mapping[Any, Provided]) -> None:
        self._provided = dict(provided)
        self._process: dict[Any, Any] = {}
        self._stack = AsyncExitStack()
        self._making = asyncio.Lock()

    def __contains__(self, kind: Any) -> bool:
        return kind in self._provided

    def per_message(self, kind: Any) -> bool:
        """Whether each message gets one of its own."""
        return self._provided[kind].per == "message"

    def names(self) -> str:
        """What is provided, to be shown."""
        return ", ".join(sorted(_name(kind) for kind in self._provided)) or "nothing"

    async def get(self, kind: Any, stack: AsyncExitStack) -> Any:
        """A value: the process's one, or a fresh one that `stack` closes."""
        provided = self._provided[kind]
        if not provided.owned:
            return provided.factory()
        if provided.per == "message":
            return await _enter(provided.factory, stack)
        async with self._making:
            if kind not in self._process:
                self._process[kind] = await _enter(provided.factory, self._stack)
        return self._process[kind]

    async def close(self) -> None:
        """Close what was made for the process, in reverse order."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._process.clear()
        await stack.aclose()


async def _enter(factory: Callable[..., Any], stack: AsyncExitStack) -> Any:
    """A factory's value; generators and context managers are left when the stack closes, other values as they are."""
    if inspect.isasyncgenfunction(factory):
        made: Any = contextlib.asynccontextmanager(typing.cast("Callable[[], AsyncGenerator[Any, None]]", factory))()
    elif inspect.isgeneratorfunction(factory):
        made = contextlib.contextmanager(typing.cast("Callable[[], Generator[Any, None, None]]", factory))()
    else:
        made = factory()
    value: Any = made
    if inspect.isawaitable(made) and not hasattr(made, "__aenter__"):  # a pool's loan is both, and has an end
        value = await made
    if hasattr(value, "__aenter__"):
        return await stack.enter_async_context(value)
    if hasattr(value, "__enter__"):
        return stack.enter_context(value)
    return value


class Invoker:
    """One handler function, its parameters resolved."""

    def __init__(
        self,
        function: Callable[..., Any],
        providers: Providers,
        *,
        within: Any = None,
        middleware: tuple[Middleware, ...] = (),
        names: Mapping[str, Any] | None = None,
        threads: Threads | None = None,
    ) -> None:
        """`names`: what annotations may mean beside the function's globals; `threads`: where it runs if it is plain.
        Raises `ConfigurationError` for a parameter that nothing provides."""
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"handler {self.name} is a generator, whose body would never run: it may not yield"
            )
        self.sync = not _is_async(function)
        self._providers = providers
        first, rest = _parameters(function, self.name, providers, within, names)
        self._first = first
        self._rest = rest
        self._middleware = middleware
        self._in_thread = (threads or Threads()).run
        self.threads = 0
        """Calls under way in threads: these cannot be cancelled."""
        direct = not middleware and not self.sync
        plain = not rest and first == _PAYLOAD and direct
        given = all(source != _PROVIDED for _, _, source in rest) and direct
        self.call: Call = self._call_plain if plain else self._call_given if given else self._call

    def _call_plain(self, message: Message, payload: Any, transaction: Any) -> Awaitable[Any]:
        return self.function(payload)

    async def _call_given(self, message: Message, payload: Any, transaction: Any) -> Any:
        """With what is there: nothing is made for this call, and nothing is left to be closed after it."""
        named = {name: message if source == _MESSAGE else transaction for name, _, source in self._rest}
        return await self.function(message if self._first == _MESSAGE else payload, **named)

    async def _call(self, message: Message, payload: Any, transaction: Any) -> Any:
        result: Any = None

        async def last(message: Message) -> None:
            nonlocal result
            result = await self._call_function(message, payload, transaction)

        call: CallNext = last
        for layer in reversed(self._middleware):
            call = _wrapped(layer, call)
        await call(message)
        return result

    async def _call_function(self, message: Message, payload: Any, transaction: Any) -> Any:
        async with AsyncExitStack() as stack:
            named: dict[str, Any] = {}
            for name, kind, source in self._rest:
                if source == _MESSAGE:
                    named[name] = message
                elif source == _TRANSACTION:
                    named[name] = transaction
                else:
                    named[name] = await self._providers.get(kind, stack)
            first = message if self._first == _MESSAGE else payload
            if not self.sync:
                return await self.function(first, **named)
            self.threads += 1
            try:
                result = await self._in_thread(self.function, first, **named)
                # A coroutine function in plain wrapping: what is not awaited never took place.
                return await result if inspect.isawaitable(result) else result
            finally:
                self.threads -= 1


async def call_with_message(
    function: Callable[..., Any], message: Message, payload: Callable[[], Any], threads: Threads
) -> Any:
    """Call `committed` or `already_handled`: with the payload, or with the `Message` where it is annotated so."""
    wants = getattr(function, "__easybus_wants__", None) or wants_message(function)
    value = message if wants == _MESSAGE else payload()
    if _is_async(function):
        return await function(value)
    answer = await threads.run(function, value)
    return await answer if inspect.isawaitable(answer) else answer


def wants_message(function: Callable[..., Any]) -> str:
    """Whether a function's first parameter is the `message` or the `payload`."""
    first = next(iter(inspect.signature(function).parameters), None)
    hints = _hints(function)
    return _MESSAGE if first is not None and hints.get(first) is Message else _PAYLOAD


def _wrapped(layer: Middleware, call_next: CallNext) -> CallNext:
    async def call(message: Message) -> None:
        await layer(message, call_next)

    return call


def _parameters(
    function: Callable[..., Any], name: str, providers: Providers, within: Any, names: Mapping[str, Any] | None
) -> tuple[str, list[tuple[str, Any, str]]]:
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ConfigurationError(f"handler {name} takes no payload: its first parameter is the payload or the Message")
    hints = _hints(function, names)
    first = _MESSAGE if hints.get(parameters[0].name) is Message else _PAYLOAD
    rest: list[tuple[str, Any, str]] = []
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        kind = hints.get(parameter.name, inspect.Parameter.empty)
        if kind is Message:
            rest.append((parameter.name, kind, _MESSAGE))
        elif within is not None and (kind is within or _is_base(kind, within)):
            rest.append((parameter.name, kind, _TRANSACTION))
        elif kind is not inspect.Parameter.empty and kind in providers:
            rest.append((parameter.name, kind, _PROVIDED))
        elif parameter.default is inspect.Parameter.empty:
            shown = "has no annotation" if kind is inspect.Parameter.empty else f"is a {_name(kind)}"
            raise ConfigurationError(
                f"handler {name}: parameter {parameter.name!r} {shown}, and nothing provides it. Provided: Message, "
                f"{providers.names()}. To provide one: bus.provide({_name(kind)}, factory)"
            )
    return first, rest


def _is_base(kind: Any, within: Any) -> bool:
    """A sessionmaker makes a class of its own, and handlers name the one that it derives from."""
    return isinstance(kind, type) and isinstance(within, type) and kind is not object and issubclass(within, kind)


def _hints(function: Callable[..., Any], names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004
    try:
        return typing.get_type_hints(target, localns=dict(names) if names else None)
    except NameError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(
            f"{name}: the annotation {error.name!r} is not known in its module; import it there, outside TYPE_CHECKING"
        ) from error
    except Exception:
        return dict(getattr(target, "__annotations__", {}))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)

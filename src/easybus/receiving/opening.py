"""Handlers' transactions on the user's own sessions: opened, begun and ended by the bus.

made (provided per message, or by a sessionmaker) → begun → the bus's database? → handler → DONE → commit → closed

What the library does by itself runs on the event loop where it is async, and else in threads, one step after another;
where a connection belongs to a thread, all of it in that one, the handler too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeAlias, cast

from .. import transactions
from ..errors import ConfigurationError
from ..transactions import HandlerTransaction, Opener, Target
from .invoke import Invoker, Providers
from .threads import Threads

__all__ = ["Opening", "is_opened_by_bus"]

Make: TypeAlias = Callable[[AsyncExitStack], Awaitable[tuple[Any, Any]]]
"""Makes a session or connection, which the stack closes, and its transaction."""

_ONE_WRITER = ("sqlite3",)
_ROLLBACK = 10.0
"""Seconds that undoing may take; after them the connection is closed, which undoes too."""


def is_opened_by_bus(within: Any, providers: Providers) -> bool:
    """Whether `within` is the user's own: a sessionmaker, or a type that is provided."""
    return not isinstance(within, type) or within in providers


class Opening:
    """Where a queue's handlers get their transactions from."""

    def __init__(
        self,
        within: Any,
        providers: Providers,
        outbox: Target | None,
        *,
        failing: Callable[[str], str] | None = None,
        lease: float,
        writer: asyncio.Lock,
        threads: Threads,
    ) -> None:
        """`failing`: see `CommittingEngine`. `lease`: seconds after which a transaction that does nothing is ended by a
        server that can. `writer`: held meanwhile, where a database has one writer at a time.

        Raises `ConfigurationError`: `within` is nothing that could be opened, or is not fresh for each message.
        """
        self._threads = threads
        opener = transactions.opener(within)
        if opener is not None:
            self.kind, self.name, self._make = opener.kind, opener.name, self._of_a_thread(opener)
        else:
            self.kind, self._make = self._of_sessions(within, providers)
            self.name = self.kind.__name__
        self._outbox = outbox
        self._failing = failing
        self._lease = lease
        self._writer = writer
        self._open: dict[int, HandlerTransaction] = {}

    def _of_sessions(self, within: Any, providers: Providers) -> tuple[type[Any], Make]:
        """What handlers are given, and how it is made. Raises `ConfigurationError`."""
        made: Any = within if isinstance(within, type) else getattr(within, "class_", None)
        if not isinstance(made, type):
            raise ConfigurationError(
                f"within={within!r}: it is a connection's or session's class, a sessionmaker, or Django's "
                "transaction.atomic; for any other factory write bus.provide(AsyncSession, factory, per='message') and "
                "within=AsyncSession"
            )
        if made is within and not providers.per_message(within):
            name = within.__name__
            raise ConfigurationError(
                f"within={name}: the one that is provided is shared by all handlers, and a transaction is one "
                f"message's; write bus.provide({name}, factory, per='message')"
            )
        factory: Callable[[AsyncExitStack], Awaitable[Any]] = (
            self._from(within) if made is not within else lambda stack: providers.get(within, stack)
        )

        async def make(stack: AsyncExitStack) -> tuple[Any, Any]:
            session = await factory(stack)
            return session, transactions.find(session)

        return made, make

    def _from(self, factory: Callable[[], Any]) -> Callable[[AsyncExitStack], Awaitable[Any]]:
        async def make(stack: AsyncExitStack) -> Any:
            made = factory()
            if hasattr(made, "__aenter__"):
                return await stack.enter_async_context(made)
            stack.push_async_callback(self._threads.run, made.close)
            return made

        return make

    def _of_a_thread(self, opener: Opener) -> Make:
        async def make(stack: AsyncExitStack) -> tuple[Any, Any]:
            await stack.enter_async_context(self._threads.kept())
            return await self._threads.run(opener.open)

        return make

    async def check(self, invokers: Sequence[Invoker]) -> None:
        """Open one, and undo it.

        Raises:
            ConfigurationError: its database is not the bus's, or one of these functions cannot use it.
        """
        with contextlib.suppress(_Looked):
            async with self.begin() as made:
                caller = self._open[id(made)]
                for invoker in invokers:
                    _check_kind(invoker, caller, self.name)
                raise _Looked

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncGenerator[Any]:
        """A session in a transaction: committed at the end, undone after an error.

        Raises:
            ConfigurationError: its database is not the bus's.
            Unavailable: the commit's outcome is unknown.
        """
        async with AsyncExitStack() as stack:
            made, found = await self._make(stack)
            if not hasattr(found, "start"):
                raise ConfigurationError(f"within={self.name}: the bus cannot begin and end one of these")
            caller = cast("HandlerTransaction", found)
            if caller.library in _ONE_WRITER:
                await stack.enter_async_context(self._writer)
            try:
                outbox = self._check_library(caller)
                await self._step(caller, caller.start, self._lease)
                await self._check_database(caller, outbox)
                self._open[id(made)] = caller
                yield made
                await self._step(caller, caller.commit)
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is what counts
                    async with asyncio.timeout(_ROLLBACK):
                        await self._step(caller, caller.rollback)
                raise
            finally:
                self._open.pop(id(made), None)

    async def complete(self, made: Any, statement: str, parameters: Sequence[Any]) -> int:
        """Run the last statement of this transaction; returns how many rows it changed."""
        caller = self._open[id(made)]
        changed: int
        with_commit = getattr(caller, "complete_with_commit", None)  # of a `CompletingWithCommit`
        if self._failing is not None and with_commit is not None:
            changed = await self._step(caller, with_commit, statement, parameters, self._failing(statement))
        else:
            changed = await self._step(caller, caller.complete, statement, parameters)
        return changed

    def _check_library(self, caller: HandlerTransaction) -> Target:
        """What may not even be begun: a file that another library has open."""
        if self._outbox is None:
            raise self._elsewhere()
        transactions.check_library(caller, self._outbox)
        if caller.closed:
            transactions.check_open(caller)
        return self._outbox

    async def _check_database(self, caller: HandlerTransaction, outbox: Target) -> None:
        transactions.check_open(caller)
        statement, value = outbox.identity()
        if await self._step(caller, caller.identity, statement) != value:
            raise self._elsewhere()

    def _elsewhere(self) -> ConfigurationError:
        return ConfigurationError(
            f"within={self.name}: its database is not the bus's storage, so DONE could not be written in the "
            "same transaction; write Bus(url, storage='URL of that database'), in a test bus.testing(storage=...)"
        )

    async def _step(self, caller: HandlerTransaction, call: Callable[..., Any], *given: Any) -> Any:
        return await call(*given) if caller.is_async else await self._threads.run(call, *given)


class _Looked(Exception):
    """Nothing is wrong: undo."""


def _check_kind(invoker: Invoker, caller: HandlerTransaction, name: str) -> None:
    if invoker.sync is caller.is_async:
        own, other = ("a plain function", "async") if invoker.sync else ("async", "plain")
        raise ConfigurationError(
            f"handler {invoker.name} is {own}, and within={name} is not: give it the {other} kind's counterpart, "
            f"or {'write it with async def' if invoker.sync else 'write it without async, to run in a thread'}"
        )

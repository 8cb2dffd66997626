"""The bus: the only wiring. It puts topics, handlers, engines and storages together.

Bus ─ open ──→ Opened    engines, publisher, relays, checker        (async with bus)
    └ handle → Running   a receiver for each queue                  (async with bus.handling(), await bus.run())
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from .blocking import BlockingBus
from .bound import contract_of
from .clock import Clock, SystemClock
from .declaring import Declaring
from .engines.contract import (
    DeadLetterStorage,
    Driver,
    IdempotencyStorage,
    OutboxStorage,
    Publication,
    TransactionStorage,
)
from .errors import ConfigurationError, NotOpen, NotSupported, SendError, Unavailable, Unroutable
from .message import Message
from .opened import Opened, undeclared
from .outgoing import SendOptions, message_of, publication_of, publications_of
from .receiving.invoke import Middleware, Provided
from .receiving.retry import DEFAULT, Retrying
from .receiving.threads import Threads
from .running import Running, Signals
from .sending.outbox import write as write_outbox
from .sending.outbox import write_async as write_outbox_async
from .topic import Queue, Topic

if TYPE_CHECKING:
    from .checking import Report
    from .testing.harness import Harness

__all__ = ["Bus"]

T = TypeVar("T")


class Bus(Declaring):
    """One service's bus."""

    def __init__(
        self,
        url: str | None = None,
        *,
        service: str = "main",
        storage: str | None = None,
        dedupe: timedelta | None = timedelta(days=1),
        dead_letters: Literal["storage", "queue"] = "storage",
        retry: Retrying = DEFAULT,
        middleware: Sequence[Middleware] = (),
        databases: Sequence[str] = (),
    ) -> None:
        """Nothing is connected before the bus is opened.

        Args:
            url: the engine, such as `sqlite:///shop.db`; None: the environment's EASYBUS_URL, read on opening.
            service: the service's name. What is kept for later (halves, the outbox) is answered and relayed by buses
                of the same service only.
            storage: the URL of the engine that keeps keys, dead letters and halves; None: the same.
            dedupe: how long a handled message is remembered; None: no deduplication.
            dead_letters: kept in the storage, or, where an engine has none, in a queue `<queue>.dead`.
            retry: the policy of handlers that have none of their own.
            middleware: functions `(message, call_next)` around every handler function, the first one outermost.
            databases: URLs of further databases whose outbox this bus relays.
        """
        super().__init__()
        self.provided[Bus] = Provided(lambda: self, "process", owned=False)  # handlers in routers send by it
        if not service:
            raise ConfigurationError("service= is empty; it is a name such as 'shop'")
        if dead_letters not in ("storage", "queue"):
            raise ConfigurationError(f"dead_letters={dead_letters!r}; it is 'storage' or 'queue'")
        self.service = service
        self.dedupe = dedupe
        self.retry = retry
        self.middleware = tuple(middleware)
        self.databases = tuple(databases)
        self.dead_letters_go = dead_letters
        self.unrouted: Counter[tuple[str, str]] = Counter()
        """Topic sends that no queue matched, by topic and route key."""
        self.threads: Callable[[], Threads] = Threads
        """Makes the threads that plain functions run in, while the bus is open."""
        self._url = url
        self._storage_url = storage
        self._clock: Clock = SystemClock()
        self._logger = logging.getLogger("easybus")
        self._opened: Opened | None = None
        self._running: Running | None = None
        self._blocking = BlockingBus(self)  # at once: threads that use it first together share it
        self.under_test = False  # then other services' topics are made too, and what reaches no queue is an error

    # ------------------------------------------------------------------------------------------- opening, running

    @property
    def url(self) -> str:
        """The engine's URL, from the environment if none was given.

        Raises:
            ConfigurationError: there is none.
        """
        url = self._url or os.environ.get("EASYBUS_URL")
        if not url:
            raise ConfigurationError("the bus has no URL: write Bus('sqlite:///shop.db'), or set EASYBUS_URL")
        return url

    @property
    def storage_url(self) -> str | None:
        """The storage's URL; None: the engine's own."""
        return self._storage_url

    @property
    def is_open(self) -> bool:
        """Whether the bus is open, on some loop."""
        return self._opened is not None

    async def __aenter__(self) -> Bus:
        """Open: send, relay, recover. Handling is `bus.handling()` or `bus.run()`.

        Raises:
            ConfigurationError: no such engine, or one that cannot do what is asked.
            EngineError: it cannot be reached, or refuses.
        """
        if self._opened is not None:
            raise NotOpen("the bus is open already: use it inside its one `async with bus:`")
        opened = Opened(self, self.url, self._storage_url, self._clock, self._logger)
        opened.check()
        await opened.open()
        self._opened = opened
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop handling, finish what is under way, disconnect."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @contextlib.asynccontextmanager
    async def handling(
        self, *, only: Iterable[str] = (), concurrency: int | None = None, grace: float | None = 30.0
    ) -> AsyncGenerator[Bus, None]:
        """Open, and handle messages too.

        Args:
            only: names of queues; none: all that have handlers.
            concurrency: instead of each handler's own.
            grace: seconds that handlers may still run when this ends; then they are cancelled, and their messages go
                back. None: however long they take.
        """
        if self._running is not None:
            raise NotOpen("the bus handles already")
        async with contextlib.AsyncExitStack() as stack:
            if self._opened is None:
                await stack.enter_async_context(self)
            opened = self._here()
            running = Running(self, opened, only=tuple(only), concurrency=concurrency)
            stack.push_async_callback(running.close)
            await running.start()
            self._running = running
            try:
                yield self
            finally:
                self._running = None
                await running.stop(grace)

    async def run(
        self, *, only: Iterable[str] = (), concurrency: int | None = None, grace: float | None = 30.0
    ) -> None:
        """Handle messages until SIGTERM or SIGINT; see `handling`. A second signal ends the grace time at once."""
        signals = Signals(self._logger)
        try:
            async with self.handling(only=only, concurrency=concurrency, grace=grace):
                await signals.wait(self._running)
        finally:
            signals.close()

    async def check(self, *, rate: float | None = None, connect: bool = True) -> Report:
        """What every sender and handler is promised by this configuration, and what contradicts it.

        Args:
            rate: messages a second that each queue is to take: tells how many rows remembering them makes.
            connect: open the engines, which makes their tables, and look at what is there and how it is set.

        Raises:
            ConfigurationError: there is no such engine, or it holds no queues.
        """
        from .checking import examine  # `import easybus` does without it

        return await examine(self, rate=rate, connect=connect)

    @property
    def blocking(self) -> BlockingBus:
        """The same calls without await: for Django, Flask, scripts, and handlers that are plain functions."""
        return self._blocking

    def testing(
        self, *, provide: Mapping[Any, Callable[..., Any]] | None = None, storage: str | None = None
    ) -> Harness:
        """This bus, on memory and a virtual clock: `async with bus.testing() as t:`; see `easybus.testing`."""
        from .testing.harness import Harness

        return Harness(self, provide=provide or {}, storage=storage)

    def pretend(self, *, url: str, clock: Clock, provide: Mapping[Any, Provided]) -> Callable[[], None]:
        """For tests: this engine, clock and provided values, and dead letters where they can be looked at, until the
        returned function is called."""
        pretended: dict[str, Any] = {
            "_url": url, "_storage_url": None, "_clock": clock, "provided": dict(provide), "databases": (),
            "under_test": True, "dead_letters_go": "storage",
        }  # fmt: skip
        kept = {name: getattr(self, name) for name in pretended}
        vars(self).update(pretended)
        return lambda: vars(self).update(kept)

    @property
    def opened(self) -> Opened:
        """The parts of the open bus, on whichever loop. Raises `NotOpen`."""
        if self._opened is None:
            raise NotOpen("the bus is not open: write `async with bus:` around this")
        return self._opened

    @property
    def opened_or_none(self) -> Opened | None:
        """The parts of the open bus, if it is open."""
        return self._opened

    def forget(self) -> Opened | None:
        """In a forked child: be not open. The parent's parts are returned, to be kept and left alone."""
        opened, self._opened, self._running = self._opened, None, None
        return opened

    @property
    def running(self) -> Running | None:
        """The receivers, while the bus handles."""
        return self._running

    # -------------------------------------------------------------------------------------------------- sending

    async def send(
        self, target: Any, value: Any, *, within: object = None, require: bool | None = None,
        **options: Unpack[SendOptions],
    ) -> Message:  # fmt: skip
        """Send one value to a topic or queue; see `BusTopic.send`."""
        contract, opened = contract_of(target), self._here()
        if contract.key not in opened.declared:
            await self._declare(opened, contract, within)
        if require:
            self._check_require()
        now, otherwise = self._clock.time(), self.under_test and contract.declare
        message, publication = publication_of(contract, value, options, now, require, otherwise=otherwise)
        if within is not None:
            await write_outbox_async(within, opened.outboxes, self.service, [publication], opened.wake_relays)
            return message
        opened.refuse_inside_transaction()
        try:
            reached = await opened.publisher.publish(publication)
        except Unavailable as error:
            raise SendError(f"message {message.id} is not confirmed: {error}", [message]) from error
        except Unroutable as error:
            error.failed = error.failed or [message]
            raise
        if reached == 0:
            self._say_unrouted(contract.name, message.route_key)
        return message

    async def send_many(
        self, target: Any, values: Iterable[Any], *, within: object = None, require: bool | None = None
    ) -> list[Message]:
        """Send values to a topic or queue, in their order; see `BusTopic.send_many`."""
        contract, opened = contract_of(target), self._here()
        if contract.key not in opened.declared:
            await self._declare(opened, contract, within)
        messages, publications = self._publications(contract, values, require)
        if within is not None:
            await write_outbox_async(within, opened.outboxes, self.service, publications, opened.wake_relays)
            return messages
        opened.refuse_inside_transaction()
        futures = [opened.publisher.publish(publication) for publication in publications]
        results = await asyncio.gather(*futures, return_exceptions=True)
        failed = [message for message, one in zip(messages, results, strict=True) if isinstance(one, BaseException)]
        if failed:
            first = next(one for one in results if isinstance(one, BaseException))
            raise SendError(f"{len(failed)} of {len(messages)} messages are not confirmed: {first}", failed) from first
        for message, reached in zip(messages, results, strict=True):
            if reached == 0:
                self._say_unrouted(contract.name, message.route_key)
        return messages

    def transaction(
        self, target: Any, value: Any, *, delay: float | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Message]:
        """Local work that is no database transaction; see `BusTopic.transaction`."""
        contract, opened = contract_of(target), self._here()
        if opened.checkback is None:
            raise NotSupported(
                f"{opened.storage.url} keeps no halves: give the bus a storage: Bus(url, storage='sqlite:///shop.db')"
            )
        opened.refuse_inside_transaction(halves=True)
        return opened.checkback.transaction(contract.name, message_of(contract, value, SendOptions(**options)), delay)

    def write_within(
        self, opened: Opened, target: Any, values: Sequence[Any], within: object, require: bool | None = None
    ) -> list[Message]:
        """Write messages into a caller's transaction, on the caller's thread."""
        contract = contract_of(target)
        if contract.key not in opened.declared:
            raise undeclared(contract)
        messages, publications = self._publications(contract, values, require)
        write_outbox(within, opened.outboxes, self.service, publications, opened.wake_relays)
        return messages

    def _publications(
        self, contract: Topic[Any] | Queue[Any], values: Iterable[Any], require: bool | None
    ) -> tuple[list[Message], list[Publication]]:
        if require:
            self._check_require()
        now, otherwise = self._clock.time(), self.under_test and contract.declare
        return publications_of(contract, values, now, require, otherwise=otherwise)

    def _check_require(self) -> None:
        if self._opened is not None and not self._opened.driver.caps.counts_routes:
            raise NotSupported("this engine cannot know whether a queue is bound: leave require= out")

    def _say_unrouted(self, topic: str, route_key: str) -> None:
        self.unrouted[topic, route_key] += 1
        if self.unrouted[topic, route_key] == 1:
            self._logger.warning("no queue is bound to topic %r for route key %r: the message is kept nowhere; "
                                 "require=True makes this an error", topic, route_key)  # fmt: skip

    # ------------------------------------------------------------------------------------- what operators work on

    @property
    def driver(self) -> Driver:
        """The open engine's queues and topics."""
        return self._here(plain=True).driver

    @property
    def idempotency(self) -> IdempotencyStorage | None:
        """The open storage's keys."""
        return self._here(plain=True).storage.idempotency

    @property
    def dead_letters(self) -> DeadLetterStorage | None:
        """The open storage's dead letters; marking one wakes this process's handlers."""
        letters: Any = self._here(plain=True).letters
        return letters  # type: ignore[no-any-return]

    @property
    def transactions(self) -> TransactionStorage | None:
        """The open storage's halves."""
        return self._here(plain=True).storage.transactions

    @property
    def outboxes(self) -> list[OutboxStorage]:
        """The outboxes that this open bus relays."""
        return self._here(plain=True).outboxes

    # ------------------------------------------------------------------------------------------------------ inside

    def _adding(self) -> None:
        if self._running is not None:
            raise ConfigurationError(
                "the bus handles already, and a handler that is added now would never run: add it before "
                "bus.handling() or bus.run()"
            )

    async def _declare(self, opened: Opened, contract: Topic[Any] | Queue[Any], within: object) -> None:
        if within is not None or opened.inside_transaction:
            raise undeclared(contract)
        self._know(contract)
        await opened.declare()

    def _here(self, *, plain: bool = False) -> Opened:
        """`plain`: also where no loop runs, as in `bus.blocking.call(bus.dead_letters.count())`."""
        opened = self._opened
        if opened is None:
            raise NotOpen(
                "the bus is not open: write `async with bus:` around this, or bus.blocking where there is no loop"
            )
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if opened.loop is not loop and not (plain and loop is None):
            raise NotOpen(
                "the bus was opened on another event loop (each asyncio.run has its own): open it where it is used, or "
                "use bus.blocking from threads"
            )
        return opened

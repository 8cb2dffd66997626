"""What exists while a bus is open: its engines, and the loops that run whether it handles messages or not.

pump      deferred topic sends that are due
relays    committed outbox rows, of the storage and of every database given
checker   halves that were left behind, where somebody answers for their topics
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from .cancelling import ended
from .clock import Clock
from .connection import Publisher
from .engines import registry
from .engines.contract import (
    Binding,
    Change,
    DeadLetterStorage,
    DeclareQueue,
    DeclareTopic,
    Driver,
    Engine,
    ExclusiveEngine,
    FusedDriver,
    OutboxStorage,
)
from .errors import ConfigurationError, NotDeclared, NotSupported
from .message import Message
from .outages import Outages
from .receiving.invoke import call_with_message
from .receiving.threads import Threads
from .sending.checkback import Checkback
from .sending.relay import Relay
from .topic import Queue, Topic

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["Letters", "Opened", "undeclared"]


class Letters:
    """A dead letter storage that tells this process's handlers at once what was marked for retry."""

    def __init__(self, storage: DeadLetterStorage, wake: Callable[[str], None]) -> None:
        self._storage = storage
        self._wake = wake

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        marked = await self._storage.mark_for_retry(queue, keys)
        self._wake(queue)
        return marked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class Opened:
    """An open bus's parts, on the loop that opened it."""

    def __init__(self, bus: Bus, url: str, storage_url: str | None, clock: Clock, logger: logging.Logger) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.logger = logger
        self._bus = bus
        self.engine: Engine = registry.create(url, clock)
        same = storage_url is None or storage_url == url
        self.storage: Engine = self.engine if same else registry.create(storage_url or url, clock)
        self.databases: list[Engine] = [registry.create(database, clock) for database in bus.databases]
        if self.engine.driver is None:
            raise ConfigurationError(f"{self.engine.url} holds no queues; it can be a storage: Bus(url, storage=...)")
        self.driver: Driver = self.engine.driver
        self._exclusive = _exclusive(self.engine)
        self._exclusive_storage = _exclusive(self.storage)
        self.fused = same and isinstance(self.driver, FusedDriver)
        self.publisher = Publisher(self.driver, clock, logger)
        self.outages = Outages(logger)
        self.wake_replays: Callable[[str], None] = lambda _: None
        self.letters = None if self.storage.dead_letters is None else Letters(
            self.storage.dead_letters, self._marked
        )  # fmt: skip
        self.checkback: Checkback | None = None
        self.relays: list[Relay] = []
        self.declared: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._declaring = asyncio.Lock()
        self.threads: Threads = bus.threads()
        self.pid = os.getpid()

    def check(self) -> None:
        """What cannot work is said before anything is connected. Raises `NotSupported`."""
        for problem in self.problems():
            raise NotSupported(problem)

    def problems(self) -> Iterator[str]:
        """What is asked of the storage, and it cannot do: what it is, and the line to write."""
        url, bus = self.storage.url, self._bus
        if bus.handlers and bus.dead_letters_go == "storage" and self.storage.dead_letters is None:
            yield (
                f"{url} keeps no dead letters; write Bus(url, storage='sqlite:///shop.db'), or keep "
                "them in queues: Bus(url, dead_letters='queue')"
            )
        wants_keys = any(handler.settings.get("dedupe", bus.dedupe) is not None for handler in bus.handlers)
        if wants_keys and self.storage.idempotency is None:
            yield (
                f"{url} keeps no keys, so copies cannot be recognised; write Bus(url, "
                "storage='sqlite:///shop.db'), or handle each copy: Bus(url, dedupe=None)"
            )
        if bus.answers and self.storage.transactions is None:
            yield (
                f"{url} keeps no halves, so no transaction can be asked about; "
                "give the bus a storage that does: Bus(url, storage='sqlite:///shop.db')"
            )

    @property
    def inside_transaction(self) -> bool:
        """Whether the running code lies inside a handler's transaction that a plain send would wait for."""
        for engine in self._exclusive:  # noqa: SIM110 - asked at every send, and a generator costs as much as an id
            if engine.inside_transaction:
                return True
        return False

    def refuse_inside_transaction(self, *, halves: bool = False) -> None:
        """Raises `ConfigurationError` where a send (`halves`: the storing of a half) would wait for the end of the
        caller's own transaction, and so for itself."""
        if self.inside_transaction or (halves and any(engine.inside_transaction for engine in self._exclusive_storage)):
            raise ConfigurationError(
                "a plain send inside a transaction on the same database would wait for its end, and so for itself; let "
                "it ride in the transaction: await topic.send(value, within=connection)"
            )

    @property
    def outboxes(self) -> list[OutboxStorage]:
        """Where callers' transactions may write messages, and where relays look."""
        return [engine.outbox for engine in (self.storage, *self.databases) if engine.outbox is not None]

    async def open(self) -> None:
        """Connect, declare, and start the loops; nothing stays behind if one of them fails."""
        try:
            for engine in dict.fromkeys([self.engine, self.storage, *self.databases]):
                await engine.open()
                self._stack.push_async_callback(engine.close)
            await self.publisher.prepare()
            await self.declare()
            self._start_loops()
        except BaseException:
            await self.close()
            raise

    def _start_loops(self) -> None:
        bus = self._bus
        for outbox in self.outboxes:
            self.relays.append(
                Relay(
                    service=bus.service,
                    outbox=outbox,
                    publisher=self.publisher,
                    clock=self.clock,
                    logger=self.logger,
                    outages=self.outages,
                )
            )
        if self.storage.transactions is not None:
            self.checkback = Checkback(
                service=bus.service,
                storage=self.storage.transactions,
                publisher=self.publisher,
                clock=self.clock,
                logger=self.logger,
                outages=self.outages,
            )
            for topic, (function, policy) in bus.answers.items():
                target = bus.targets["topic", topic]
                self.checkback.answer(topic, _answer(function, target, self.threads), policy)
        loops = [("pump", self.publisher.pump), *((f"relay {n}", relay.run) for n, relay in enumerate(self.relays))]
        if self.checkback is not None:
            loops.append(("checker", self.checkback.run))
        self._tasks = [self.loop.create_task(run(), name=f"easybus {name}") for name, run in loops]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.logger.critical("%s ended, which it never should", task.get_name(), exc_info=task.exception())

    async def close(self) -> None:
        """Finish what is under way, and disconnect."""
        await ended(*self._tasks)
        self._tasks = []
        with contextlib.suppress(Exception):
            await self.publisher.drained()
        if self.checkback is not None:
            await self.checkback.drained()
        await self.threads.close()
        await self._stack.aclose()

    def _marked(self, queue: str) -> None:
        self.wake_replays(queue)

    def wake_relays(self) -> None:
        """Rows may have been committed; from any thread."""
        for relay in self.relays:
            relay.wake()

    @property
    def busy(self) -> bool:
        """Whether anything that was sent is on its way."""
        checking = self.checkback is not None and self.checkback.busy
        return self.publisher.busy or checking or any(relay.busy for relay in self.relays)

    # --------------------------------------------------------------------------------------------------- topology

    async def declare(self) -> None:
        """Make the bus's topics, queues and bindings exist, as they are now known.

        Raises:
            NotDeclared: a topic or queue with `declare=False` is missing.
        """
        async with self._declaring:
            changes: list[Change] = []
            known: set[tuple[str, str]] = set()
            for key, target in self._bus.targets.items():
                known.add(key)
                if key in self.declared:
                    continue
                if not (target.declare or self._bus.under_test):
                    await self._require(target)
                elif isinstance(target, Queue):
                    changes.append(DeclareQueue(target.name, target.delay))
                else:
                    changes.append(DeclareTopic(target.name))
            bindings: list[Change] = []
            for handler in self._bus.handlers:
                key = ("handler", f"{handler.queue}\0{handler.target.name}\0{handler.route_key}")
                if key in self.declared or isinstance(handler.target, Queue):
                    continue
                known.add(key)
                if ("queue", handler.queue) not in self._bus.targets:
                    changes.append(DeclareQueue(handler.queue))
                bindings.append(Binding(handler.target.name, handler.queue, handler.route_key))
            if self._bus.dead_letters_go == "queue":
                changes.extend(DeclareQueue(f"{queue}.dead") for queue in {one.queue for one in self._bus.handlers})
            if changes or bindings:
                await self.driver.declare([*dict.fromkeys(changes), *dict.fromkeys(bindings)])
            self.declared |= known

    async def _require(self, target: Topic[Any] | Queue[Any]) -> None:
        if not self.driver.caps.lists_queues:
            return
        if isinstance(target, Queue):
            kind, names = "queue", [queue.name for queue in await self.driver.queues()]
        else:
            kind, names = "topic", [topic for topic, _ in await self.driver.topics()]
        if target.name not in names:
            raise NotDeclared(
                f"{kind} {target.name!r} is another service's (declare=False), and it does not exist yet; there are: "
                f"{', '.join(names) or 'none'}"
            )


def _answer(
    function: Callable[..., Any], target: Topic[Any] | Queue[Any], threads: Threads
) -> Callable[[Message], Any]:
    async def answer(message: Message) -> bool | None:
        result: bool | None = await call_with_message(
            function, message, lambda: target.payloads.decode(message)[1], threads
        )
        return result

    return answer


def _exclusive(engine: Engine) -> list[ExclusiveEngine]:
    return [engine] if isinstance(engine, ExclusiveEngine) else []


def undeclared(contract: Topic[Any] | Queue[Any]) -> ConfigurationError:
    """The error for a first send inside a transaction: declaring writes to the database that the transaction holds."""
    return ConfigurationError(
        f"{contract!r} is not declared yet, and cannot be from inside a transaction; make it known before the bus is "
        f"opened: bus.bind({contract!r})"
    )

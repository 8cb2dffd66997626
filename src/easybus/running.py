"""Handling: a receiver for each queue, what handlers are provided with, and the end by signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .cancelling import ended
from .clock import sleep
from .engines.contract import CommittingEngine, FinishingDriver, IdempotencyStorage
from .errors import ConfigurationError, EngineError, NotSupported
from .opened import Opened
from .receiving.claim import Intake
from .receiving.hand import Company
from .receiving.invoke import Invoker, Providers
from .receiving.opening import Opening, is_opened_by_bus
from .receiving.pipeline import Pipeline
from .receiving.receiver import Receiver
from .receiving.replay import Replayer
from .receiving.settle import Settler
from .receiving.subscription import HandlerOptions, Subscription
from .receiving.within import ExactlyOnce
from .router import HandlerDefinition
from .transactions import SQLITE

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["Running", "Signals", "by_queue", "options_of"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PURGE_EVERY = 60.0
_PURGE_AT_ONCE = 1000


class Running:
    """A bus's receivers, from start to stop."""

    def __init__(self, bus: Bus, opened: Opened, *, only: tuple[str, ...], concurrency: int | None) -> None:
        """Raises `ConfigurationError`: no such queue, parameters that nothing provides, settings that contradict."""
        self._bus = bus
        self._opened = opened
        self._providers = Providers(bus.provided)
        self._company = Company()
        self._writer = asyncio.Lock()
        self._openings: list[tuple[Opening, list[Invoker]]] = []
        queues = by_queue(bus.handlers)
        unknown = [name for name in only if name not in queues]
        if unknown:
            raise ConfigurationError(
                f"no handler for queue {', '.join(map(repr, unknown))}; there are handlers for "
                f"{', '.join(map(repr, queues)) or 'none'}"
            )
        self.receivers = {
            queue: self._receiver(queue, definitions, concurrency)
            for queue, definitions in queues.items()
            if not only or queue in only
        }
        self.failures: Callable[[Any, BaseException], None] | None = None
        self._purging: asyncio.Task[None] | None = None

    def _receiver(self, queue: str, definitions: list[HandlerDefinition], concurrency: int | None) -> Receiver:
        opened, clock, logger = self._opened, self._opened.clock, self._opened.logger
        subscription, opening = self._subscription(queue, definitions, concurrency)
        options = subscription.options
        keys = opened.storage.idempotency if options.dedupe is not None else None
        letters = opened.storage.dead_letters if self._bus.dead_letters_go == "storage" else None
        fused = opened.fused
        settler = Settler(subscription, opened.publisher, keys, letters, fused=fused, clock=clock, logger=logger)
        exactly_once = None if keys is None else self._exactly_once(queue, options, keys, opening)
        pipeline = Pipeline(
            subscription,
            settler,
            self._company,
            exactly_once=exactly_once,
            clock=clock,
            logger=logger,
            failed=lambda message, error: self.failures(message, error) if self.failures is not None else None,
            threads=opened.threads,
        )
        replayer = None
        if letters is not None:
            replayer = Replayer(queue, letters, opened.publisher, clock=clock, logger=logger)
        intake = Intake(subscription, opened.driver, keys, fused=fused, logger=logger)
        return Receiver(
            pipeline, intake, settler, replayer=replayer, clock=clock, logger=logger, outages=opened.outages
        )

    def _exactly_once(
        self, queue: str, options: HandlerOptions, keys: IdempotencyStorage, opening: Opening | None
    ) -> ExactlyOnce | None:
        storage, kind, driver = self._opened.storage, options.within, self._opened.driver
        if kind is None:
            return None
        finishing = driver if self._opened.fused and isinstance(driver, FinishingDriver) else None
        if opening is not None:
            return ExactlyOnce(opening.begin, keys, options.keep, opening.complete, finishing)
        if storage.transaction(kind) is None:
            name = getattr(kind, "__name__", kind)
            raise NotSupported(
                f"queue {queue!r}: {storage.url} has no transaction that is a {name}; a session of your own is opened "
                f"where you provide it: bus.provide({name}, factory, per='message')"
            )

        def begin() -> Any:
            return storage.transaction(kind, options.lease)

        return ExactlyOnce(begin, keys, options.keep, driver=finishing)

    def _subscription(
        self, queue: str, definitions: list[HandlerDefinition], concurrency: int | None
    ) -> tuple[Subscription, Opening | None]:
        options = options_of(self._bus, queue, definitions, concurrency)
        self._warn_of_short_memory(queue, options)
        targets = {id(definition.target.payloads): definition.target.payloads for definition in definitions}
        if len(targets) > 1:
            raise ConfigurationError(
                f"queue {queue!r} gets messages of {', '.join(repr(one.target) for one in definitions)}: "
                "two topics with types of their own; give each a queue"
            )
        opening = self._opening(options)
        subscription = Subscription(queue, options, next(iter(targets.values())))
        for definition in definitions:
            kind = Any if definition.type is None else definition.type
            if kind in subscription.functions:
                raise ConfigurationError(f"two functions of queue {queue!r} take the same type: {kind!r}")
            subscription.functions[kind] = Invoker(
                definition.function,
                self._providers,
                within=options.within if opening is None else opening.kind,
                middleware=self._bus.middleware,
                names=definition.names,
                threads=self._opened.threads,
            )
        if opening is not None:
            self._openings.append((opening, list(subscription.functions.values())))
        return subscription, opening

    def _opening(self, options: HandlerOptions) -> Opening | None:
        """Where handlers' transactions come from, if that is not the engine."""
        within = options.within
        if within is None or not is_opened_by_bus(within, self._providers):
            return None
        if _is_of_sqlite(within) and self._opened.storage.transaction(within) is not None:
            return None  # a file has one writer, which is the engine's own
        opened = self._opened
        return Opening(
            within,
            self._providers,
            opened.storage.outbox,
            failing=opened.storage.failing if isinstance(opened.storage, CommittingEngine) else None,
            lease=options.lease,
            writer=self._writer,
            threads=opened.threads,
        )

    def _warn_of_short_memory(self, queue: str, options: HandlerOptions) -> None:
        if options.dedupe is not None and (options.horizon is None or options.keep < options.horizon):
            longest = "without end" if options.horizon is None else f"over up to {options.horizon:.0f} s"
            self._opened.logger.warning(
                "queue %r retries %s and remembers handled messages for %.0f s: an older copy would be handled again",
                queue,
                longest,
                options.keep,
            )

    async def start(self) -> None:
        """Begin to handle. Raises `ConfigurationError`: a handler's session is of another database."""
        for opening, invokers in self._openings:
            await opening.check(invokers)
        await self._opened.declare()
        self._opened.wake_replays = self._wake_replays
        for receiver in self.receivers.values():
            receiver.start()
        self._purging = asyncio.get_running_loop().create_task(self._purge(), name="easybus purge")

    async def stop(self, grace: float | None) -> None:
        """Stop all queues at once; see `Receiver.stop`."""
        self._opened.wake_replays = lambda _: None
        if self._purging is not None:
            await ended(self._purging)
        await asyncio.gather(*(receiver.stop(grace) for receiver in self.receivers.values()))

    async def close(self) -> None:
        """Close what handlers were provided with."""
        await self._providers.close()

    @property
    def busy(self) -> bool:
        """Whether messages are ready, at work, being settled or replayed."""
        return any(receiver.busy for receiver in self.receivers.values())

    def hurry(self) -> None:
        """End the grace time now."""
        for receiver in self.receivers.values():
            receiver.hurry()

    def _wake_replays(self, queue: str) -> None:
        receiver = self.receivers.get(queue)
        if receiver is not None and receiver.replayer is not None:
            receiver.replayer.wake()

    async def _purge(self) -> None:
        """Forget keys that are past their time, a few at once, while nothing else hurries."""
        keys = self._opened.storage.idempotency
        while keys is not None:
            await sleep(self._opened.clock, _PURGE_EVERY, poll=True)
            with contextlib.suppress(EngineError):
                while await keys.purge(_PURGE_AT_ONCE) >= _PURGE_AT_ONCE:
                    await sleep(self._opened.clock, 0.1)


def options_of(
    bus: Bus, queue: str, definitions: list[HandlerDefinition], concurrency: int | None = None
) -> HandlerOptions:
    """A queue's options: its functions', else the bus's. Raises `ConfigurationError` where two functions differ."""
    settings: dict[str, Any] = {"dedupe": bus.dedupe, "retry": bus.retry}
    given: dict[str, Any] = {}
    for definition in definitions:
        for name, value in definition.settings.items():
            if name in given and given[name] != value:
                raise ConfigurationError(
                    f"two functions of queue {queue!r} say {name}={given[name]!r} and {name}={value!r}; "
                    "functions that share a queue share its settings"
                )
            given[name] = value
    settings.update(given)
    if concurrency is not None:
        settings["concurrency"] = concurrency
    return HandlerOptions(**settings)


def by_queue(definitions: list[HandlerDefinition]) -> dict[str, list[HandlerDefinition]]:
    """The functions of each queue."""
    queues: dict[str, list[HandlerDefinition]] = {}
    for definition in definitions:
        queues.setdefault(definition.queue, []).append(definition)
    return queues


def _is_of_sqlite(within: Any) -> bool:
    return isinstance(within, type) and within.__module__.partition(".")[0] in SQLITE


class Signals:
    """SIGTERM and SIGINT, from before the bus opens until it is closed: the first stops, a second ends the grace."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._running: Running | None = None
        for sign in _SIGNALS:
            self._loop.add_signal_handler(sign, self._signalled, sign.name)

    async def wait(self, running: Running | None) -> None:
        """Return at the first signal, at once if it has come; `running` is what a second one hurries."""
        self._running = running
        await self._first

    def close(self) -> None:
        """Signals do again what they did."""
        for sign in _SIGNALS:
            self._loop.remove_signal_handler(sign)

    def _signalled(self, name: str) -> None:
        if not self._first.done():
            self._logger.info("%s: finishing what is in hand", name)
            self._first.set_result(None)
            return
        self._logger.warning("%s again: handlers are cancelled, their messages go back", name)
        if self._running is not None:
            self._running.hurry()

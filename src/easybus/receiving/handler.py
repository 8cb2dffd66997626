"""The parts' way to handle one queue: a function of the `Message`. `Bus` does not use it; users do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ..cancelling import ended
from ..clock import Clock, SystemClock
from ..connection import Publisher
from ..engines.contract import (
    Binding,
    DeadLetterStorage,
    DeclareQueue,
    DeclareTopic,
    Driver,
    IdempotencyStorage,
)
from ..errors import NotOpen
from .claim import Intake
from .hand import Company
from .invoke import Invoker, Providers
from .pipeline import Pipeline
from .receiver import Receiver
from .replay import Replayer
from .retry import DEFAULT, Retrying
from .settle import Settler
from .subscription import HandlerOptions, Subscription

__all__ = ["Handler"]


class Handler:
    """Handles the messages of one queue.

    `handle(message)` is a function or a coroutine function; it returns, or raises, what handlers of the bus do: False
    or an exception is a failure, `Retry` and `Reject` steer.
    """

    def __init__(
        self,
        queue: str,
        handle: Callable[..., Any],
        driver: Driver | Publisher,
        *,
        subscribe: Sequence[tuple[str, str]] = (),
        delay: float = 0.0,
        dead_letters: DeadLetterStorage | None = None,
        idempotency: IdempotencyStorage | None = None,
        already_handled: Callable[..., Any] | None = None,
        retry: Retrying = DEFAULT,
        dedupe: timedelta = timedelta(days=1),
        concurrency: int = 10,
        timeout: float | None = None,
        lease: float = 60.0,
        logger: logging.Logger | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            queue: its name; it is declared with `delay` seconds as the default of sends without one.
            subscribe: pairs of topic and route key pattern whose messages the queue collects.
            dead_letters: where what cannot be handled is kept; None: in a queue `<queue>.dead`.
            idempotency: where handled ids are remembered, for `dedupe`; None: no deduplication.

        Raises:
            ConfigurationError: values that cannot be.
        """
        self.queue = queue
        self._logger = logger or logging.getLogger("easybus")
        self._clock = clock or SystemClock()
        self._publisher = driver if isinstance(driver, Publisher) else Publisher(driver, self._clock, self._logger)
        self._pumps = not isinstance(driver, Publisher)  # a publisher that was handed in is pumped by its owner
        self._subscribe = list(subscribe)
        self._delay = delay
        self._letters = dead_letters
        self._providers = Providers({})
        options = HandlerOptions(
            concurrency=concurrency,
            timeout=timeout,
            lease=lease,
            retry=retry,
            dedupe=dedupe if idempotency is not None else None,
            already_handled=already_handled,
        )
        subscription = Subscription(queue, options, None, {Any: Invoker(handle, self._providers)})
        self._receiver = self._make(subscription, idempotency)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()
        self._prepared = False

    def _make(self, subscription: Subscription, keys: IdempotencyStorage | None) -> Receiver:
        driver, clock, logger = self._publisher.driver, self._clock, self._logger
        settler = Settler(subscription, self._publisher, keys, self._letters, fused=False, clock=clock, logger=logger)
        pipeline = Pipeline(subscription, settler, Company(), exactly_once=None, clock=clock, logger=logger)
        replayer = None
        if self._letters is not None:
            replayer = Replayer(self.queue, self._letters, self._publisher, clock=clock, logger=logger)
        intake = Intake(subscription, driver, keys, fused=False, logger=logger)
        return Receiver(pipeline, intake, settler, replayer=replayer, clock=clock, logger=logger)

    async def prepare(self) -> None:
        """Declare the queue and what it subscribes to; once, more calls do nothing.

        Raises:
            EngineError: it could not be declared.
            NotOpen: the handler was stopped.
        """
        if self._stopped.is_set():
            raise NotOpen(f"this handler was stopped; make another: Handler({self.queue!r}, handle, driver)")
        if self._prepared:
            return
        topics = [DeclareTopic(topic) for topic in dict.fromkeys(topic for topic, _ in self._subscribe)]
        bindings = [Binding(topic, self.queue, route_key) for topic, route_key in self._subscribe]
        queues = [DeclareQueue(self.queue, self._delay)]
        if self._letters is None:
            queues.append(DeclareQueue(f"{self.queue}.dead"))
        await self._publisher.driver.declare([*queues, *topics, *bindings])
        if self._pumps:
            await self._publisher.prepare()
            self._tasks.append(asyncio.create_task(self._publisher.pump(), name="easybus deferred sends"))
        self._prepared = True

    async def run(self) -> None:
        """Handle messages until `stop`, not at all if that came first; cancelled, it stops too."""
        if self._stopped.is_set():
            return
        await self.prepare()
        self._receiver.start()
        try:
            await self._stopped.wait()
        finally:
            await self.stop()

    async def stop(self, grace: float | None = 30.0) -> None:
        """Stop: handlers in hand may end within `grace` seconds (None: however long), then they are cancelled and
        their messages go back; what has finished is acked. A second stop does nothing."""
        self._stopped.set()
        await self._receiver.stop(grace)
        await ended(*self._tasks)
        self._tasks = []
        await self._publisher.drained()
        await self._providers.close()

    async def wait(self) -> None:
        """Wait until the handler was told to stop."""
        await self._stopped.wait()

"""The parts' way to send to one topic: plain, or with local work and check-back. `Bus` does not use it; users do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..cancelling import ended
from ..clock import Clock, SystemClock
from ..connection import Publisher
from ..engines.contract import DeclareTopic, Driver, Publication, TransactionStorage
from ..errors import ConfigurationError, NotOpen, Rollback, SendError, Unavailable
from ..message import Message
from .checkback import Checkback, CheckPolicy, Committed, call, exponential_delay

__all__ = ["Sender", "TxOptions"]


@dataclass
class TxOptions:
    """How a sender's messages with local work are kept and asked about. Times in seconds."""

    timeout: float
    """The longest that the local work may still land after it raised, or its process died."""
    committed: Committed
    """Did the work of this message take place? True: yes. False: no, and it never will. None: not known yet."""
    retry_delay: Callable[[int], float] = exponential_delay
    """From the number of checks without an answer to the seconds until the next one."""
    storage: TransactionStorage | None = None
    """Where the messages are kept until their work is done."""
    max_checks: int = 10
    """After so many checks without an answer a message is parked: shown, and asked about rarely."""


class Sender:
    """Sends messages to one topic.

    With `tx`, `send(message, local_tx)` publishes the message if and only if its local work takes place, and asks
    `tx.committed` when the process died in between.
    """

    def __init__(
        self,
        topic: str,
        driver: Driver | Publisher,
        logger: logging.Logger | None = None,
        tx: TxOptions | None = None,
        *,
        clock: Clock | None = None,
        service: str = "main",
    ) -> None:
        """`service`: senders of one service answer each other's checks; those of two never do.

        Raises:
            ConfigurationError: `tx` has no storage, or values that cannot be.
        """
        self.topic = topic
        self._logger = logger or logging.getLogger("easybus")
        self._clock = clock or SystemClock()
        self._publisher = driver if isinstance(driver, Publisher) else Publisher(driver, self._clock, self._logger)
        self._pumps = not isinstance(driver, Publisher)  # a publisher that was handed in is pumped by its owner
        self._checkback = None if tx is None else self._with_checks(tx, service)
        self._tasks: list[asyncio.Task[None]] = []
        self._preparing: asyncio.Lock = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._prepared = False

    def _with_checks(self, tx: TxOptions, service: str) -> Checkback:
        if tx.storage is None:
            raise ConfigurationError("TxOptions needs a storage: TxOptions(..., storage=engine.transactions)")
        checkback = Checkback(
            service=service, storage=tx.storage, publisher=self._publisher, clock=self._clock, logger=self._logger
        )
        checkback.answer(self.topic, tx.committed, CheckPolicy(tx.timeout, tx.retry_delay, tx.max_checks))
        return checkback

    async def prepare(self) -> None:
        """Declare the topic, and start to ask about messages that were left behind; once, more calls do nothing.

        Raises:
            EngineError: the topic could not be declared.
            NotOpen: the sender was stopped.
        """
        async with self._preparing:
            if self._stopped.is_set():
                raise NotOpen(f"this sender was stopped; make another: Sender({self.topic!r}, driver)")
            if self._prepared:
                return
            await self._publisher.driver.declare([DeclareTopic(self.topic)])
            if self._pumps:
                await self._publisher.prepare()
                self._tasks.append(asyncio.create_task(self._publisher.pump(), name="easybus deferred sends"))
            if self._checkback is not None:
                self._tasks.append(asyncio.create_task(self._checkback.run(), name=f"easybus checks {self.topic}"))
            self._prepared = True

    async def send(
        self,
        message: Message,
        local_tx: Callable[[Message], object] | None = None,
        *,
        delay: float | None = None,
    ) -> Message:
        """Send, `delay` seconds from now, or from when the local work is done; returns the message, confirmed.

        `local_tx` does the work, a plain function in a thread. It returns False to say that the work did not and
        will not take place: the message is discarded. An exception out of it goes on to the caller, and
        `TxOptions.committed` is asked after the timeout.

        Raises:
            SendError: not confirmed; sending the same message again is safe. With local work: see
                `Checkback.transaction`.
            Refused: the engine does not take it.
            ConfigurationError: local work without `TxOptions`; nothing was done.
        """
        if local_tx is not None and self._checkback is None:
            raise ConfigurationError(
                "local work needs TxOptions:"
                f"\n    Sender({self.topic!r}, driver, tx=TxOptions(timeout=60, committed=..., storage=...))"
            )
        await self.prepare()
        if local_tx is not None and self._checkback is not None:
            async with self._checkback.transaction(self.topic, message, delay):
                if await call(local_tx, message) is False:
                    raise Rollback
            return message
        publication = Publication(True, self.topic, message.to_bytes(), message.route_key, delay, dedupe_id=message.id)
        try:
            await self._publisher.publish(publication)
        except Unavailable as error:
            raise SendError(f"the message to {self.topic!r} was not confirmed: {error}", [message]) from error
        return message

    async def stop(self) -> None:
        """Stop asking, and end what is being sent; twice is a no-op. What was left behind is asked about by the next
        sender of this service and topic."""
        self._stopped.set()
        await ended(*self._tasks)
        self._tasks.clear()
        if self._checkback is not None:
            await self._checkback.drained()
        await self._publisher.drained()

    async def wait(self) -> None:
        """Wait until the sender is stopped."""
        await self._stopped.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

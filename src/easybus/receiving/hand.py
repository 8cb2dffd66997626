"""A message in hand: fetched, claimed, being handled; and the company it is handled in."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ..engines.contract import Delivery
from ..message import Message
from .invoke import Invoker

__all__ = ["Company", "Hand", "Parsed", "Why"]


class Parsed(msgspec.Struct):
    """What a delivery's bytes say: a message with its payload and function, or why there is none."""

    message: Message | None
    payload: Any = None
    invoker: Invoker | None = None
    error: Exception | None = None
    unmatched: bool = False
    """The message was read, and no function takes its type."""


class Why(enum.Enum):
    """Why a handler is cancelled by us."""

    TIMEOUT = "its timeout passed"
    FENCED = "its claim was taken over, or could not be renewed in time"
    STOPPED = "the grace time of a stop passed"


class Hand(msgspec.Struct, eq=False):
    """One message from its claim to its outcome."""

    delivery: Delivery
    message: Message
    """The handler's, which may change it: what settles a message looks at `id` and `attempts`, or at the bytes."""
    payload: Any
    invoker: Invoker | None
    id: str
    attempts: int
    """Which attempt this is, from 1."""
    token: str
    """Empty: no claim, handled without deduplication."""
    held_until: float
    """Until when no other can have it; after that a handler that runs on would be the second."""
    worker: asyncio.Task[Any] | None = None
    """Whose task handles it."""
    task: asyncio.Task[Any] | None = None
    """The same while the handler may be cancelled."""
    cancelled: Why | None = None
    extended: bool = False
    """Its delivery was extended, or is being extended."""
    acked: bool = False
    """Its ack is part of its transaction: its delivery is not to be extended any more, and gone with the commit."""

    def cancel(self, why: Why) -> None:
        """Cancel the handler, if it is running: once, but for a stop each time, since it may swallow that. The first
        reason stands."""
        if self.task is None or (self.cancelled is not None and why is not Why.STOPPED):
            return
        self.cancelled = self.cancelled or why
        self.task.cancel()


class Company:
    """Who runs in this process: most messages side by side, and one that may kill the process alone.

    From its second start without an outcome a message runs alone, so that its neighbours are innocent when the process
    dies of it. Who waits to run alone goes before those who come later, so it is not starved.
    """

    def __init__(self) -> None:
        self.running = 0
        self.alone: object | None = None
        self._waiting_alone: deque[asyncio.Future[None]] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self.reopened: list[Callable[[], None]] = []
        """Called when messages may start beside the others again."""

    @property
    def open(self) -> bool:
        """Whether a message may start beside the others now."""
        return self.alone is None and not self._waiting_alone

    async def enter(self) -> None:
        """Wait until no one runs alone, and be counted."""
        while not self.open:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        self.running += 1

    def leave(self) -> None:
        """One less runs."""
        self.running -= 1
        if self.running == 0 and self._waiting_alone:
            self._next()

    async def enter_alone(self, who: object) -> None:
        """Wait until no one else runs, and keep others out."""
        if self.running or self.alone is not None or self._waiting_alone:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting_alone.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self.alone = None
                    self._next()
                else:
                    with contextlib.suppress(ValueError):  # passed over already
                        self._waiting_alone.remove(future)
                    if self.open:
                        self._next()
                raise
        self.alone = who

    def leave_alone(self) -> None:
        """Let the others in again."""
        self.alone = None
        self._next()

    def _next(self) -> None:
        if self._waiting_alone and (self.running or self._woke_alone()):
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for call in self.reopened:
            call()

    def _woke_alone(self) -> bool:
        """Whether somebody still waited: who was cancelled, and has not run since, is passed over."""
        while self._waiting_alone:
            future = self._waiting_alone.popleft()
            if not future.done():
                self.alone = future
                future.set_result(None)
                return True
        return False

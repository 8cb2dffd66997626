"""The engine of `memory://`, its own, and of `memory://name`, shared by name in the process until that ends."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from threading import RLock
from typing import Any

from ...clock import Clock
from ...errors import ConfigurationError, NotOpen
from ..contract import OutboxStorage
from .dead_letters import MemoryDeadLetters
from .driver import MemoryDriver
from .keys import MemoryIdempotency
from .space import Space
from .transactions import MemoryTransactions

__all__ = ["MemoryEngine", "create"]

_shared: dict[str, Space] = {}


class MemoryEngine:
    """`Engine` in the process: nothing is durable, everything else is as on a server."""

    outbox: OutboxStorage | None = None

    def __init__(self, url: str, clock: Clock, space: Space) -> None:
        self.url = url
        self._space = space
        self._open = False
        self.driver = MemoryDriver(self._enter, clock, space)
        self.idempotency = MemoryIdempotency(self._enter, clock.time, space.keys)
        self.dead_letters = MemoryDeadLetters(self._enter, clock.time, space.letters)
        self.transactions = MemoryTransactions(self._enter, clock.time, space.halves)

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return None

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        """Disconnect; the data stays for the next `open`, and who waits in `fetch` learns of it."""
        self._open = False
        with self._space.lock:
            for queue in self._space.queues.values():
                queue.wake(len(queue.waiters))

    def _enter(self) -> RLock:
        if not self._open:
            raise NotOpen(f"{self.url} is not open; write: async with bus: …")
        return self._space.lock


def create(url: str, clock: Clock) -> MemoryEngine:
    """The engine of `memory://` or `memory://name`, not opened yet.

    Raises:
        ConfigurationError: there is more in the URL than a name.
    """
    name = url.partition("://")[2]
    if any(mark in name for mark in "?#@/"):
        raise ConfigurationError(f"memory:// takes a name and nothing more, as in memory://shop; given was {name!r}")
    return MemoryEngine(url, clock, _shared.setdefault(name, Space()) if name else Space())

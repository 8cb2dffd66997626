"""One URL's engine: a driver, and no storages."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from ...errors import NotOpen
from ..contract import DeadLetterStorage, IdempotencyStorage, OutboxStorage, TransactionStorage
from .address import Address
from .driver import RabbitmqDriver
from .link import Link

__all__ = ["RabbitmqEngine"]


class RabbitmqEngine:
    """RabbitMQ: durable, replicated queues. What the bus remembers needs `storage=`, another engine's."""

    idempotency: IdempotencyStorage | None = None
    dead_letters: DeadLetterStorage | None = None
    transactions: TransactionStorage | None = None
    outbox: OutboxStorage | None = None

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._links = (Link(address, "publishing"), Link(address, "consuming"))
        self.driver = RabbitmqDriver(*self._links, address.settle)

    def transaction(self, kind: type[Any]) -> AbstractAsyncContextManager[Any] | None:
        return None

    async def open(self) -> None:
        try:
            for link in self._links:
                await link.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self.driver.close(NotOpen(f"{self.url} was closed"))
        for link in reversed(self._links):
            await link.close()

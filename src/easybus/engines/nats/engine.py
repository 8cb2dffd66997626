"""One URL's engine: a driver, and no storages (NATS has no clock for leases and no transactions across keys)."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import Any

from ...errors import ConfigurationError, Refused
from ..contract import DeadLetterStorage, IdempotencyStorage, Known, OutboxStorage, TransactionStorage
from .address import Address
from .driver import NatsDriver
from .link import Link

__all__ = ["NatsEngine"]


class NatsEngine:
    """NATS JetStream: durable as the server syncs. What the bus remembers needs `storage=`, another engine's."""

    idempotency: IdempotencyStorage | None = None
    dead_letters: DeadLetterStorage | None = None
    transactions: TransactionStorage | None = None
    outbox: OutboxStorage | None = None

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._link = Link(address)
        self.driver = NatsDriver(self._link)

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return None

    async def open(self) -> None:
        try:
            await self._link.open()
            await self.driver.start()
        except Refused as error:
            await self.close()
            raise ConfigurationError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def durability(self) -> list[str]:
        """How often the server syncs, no client can read; what streams are, it can."""
        replicas = self._link.address.replicas
        kept = "each stream has one copy (replicas=1)" if replicas == 1 else f"{replicas} servers have a copy each"
        return [
            *await self.driver.durability(),
            Known(
                "how often the server writes to its disk cannot be read; by default every two minutes, so that a power "
                f"failure may lose what was confirmed since, and {kept}; set sync_interval: always in its jetstream "
                "block"
            ),
        ]

    async def close(self) -> None:
        await self.driver.stop()
        await self._link.close()

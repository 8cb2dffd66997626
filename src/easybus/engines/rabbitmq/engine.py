"""One URL's engine: a driver, and no storages."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import Any

from ...errors import ConfigurationError, NotOpen, Refused
from ..contract import DeadLetterStorage, IdempotencyStorage, Known, OutboxStorage, TransactionStorage
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

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return None

    async def open(self) -> None:
        try:
            publishing, consuming = self._links
            await publishing.open()
            await consuming.open(publishing.host)
        except Refused as error:
            await self.close()
            raise ConfigurationError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def durability(self) -> list[str]:
        """See `AuditedEngine`: what AMQP does not tell."""
        return [
            Known(
                "a message is confirmed when most replicas of its quorum queue have it on their disks; how many nodes "
                "there are cannot be read over AMQP: on one alone it is as safe as that node's disk, and away while "
                "the node is; look with rabbitmqctl cluster_status, and have three"
            )
        ]

    async def close(self) -> None:
        await self.driver.close(NotOpen(f"{self.url} was closed"))
        for link in reversed(self._links):
            await link.close()

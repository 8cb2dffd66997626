"""One URL's engine: the driver and all four storages in one schema."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg

from ...clock import Clock
from .durability import weaknesses
from .fused import PostgresqlFusedDriver
from .guests import transaction
from .halves import PostgresqlHalves
from .keys import PostgresqlKeys
from .letters import PostgresqlLetters
from .location import Location
from .outbox import PostgresqlOutbox
from .schema import VERSION_OF, script
from .session import Session

_KIND: Any = asyncpg.Connection


class PostgresqlEngine:
    """PostgreSQL: durable, shared by any number of hosts."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self._session = Session(location)
        self.idempotency = PostgresqlKeys(self._session)
        self.driver = PostgresqlFusedDriver(clock, self._session, self.idempotency)
        self.dead_letters = PostgresqlLetters(self._session)
        self.transactions = PostgresqlHalves(self._session)
        self.outbox = PostgresqlOutbox(clock, self._session)

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    def schema(self, since: int = 0) -> str:
        """See `SchemaEngine`."""
        return script(self._session.names, since)

    def schema_version(self) -> str:
        """See `SchemaEngine`."""
        return self._session.names(VERSION_OF)

    async def durability(self) -> list[str]:
        """See `AuditedEngine`."""
        names = self._session.names
        return await self._session.connections.run(lambda connection: weaknesses(connection, names))

    def failing(self, statement: str) -> str:
        """See `CommittingEngine`."""
        return self._session.or_fail[statement]

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return transaction(self._session, lease) if kind is _KIND else None

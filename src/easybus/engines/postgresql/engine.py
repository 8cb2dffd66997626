"""One URL's engine: the driver and all four storages in one schema."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg

from ...clock import Clock
from .connections import Cut
from .durability import weaknesses
from .failures import is_foreign, refuses_commit, translated
from .fused import PostgresqlFusedDriver
from .halves import PostgresqlHalves
from .keys import PostgresqlKeys
from .letters import PostgresqlLetters
from .location import Location
from .outbox import PostgresqlOutbox
from .schema import script
from .session import Session

_KIND: Any = asyncpg.Connection
_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"


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

    async def durability(self) -> list[str]:
        """See `AuditedEngine`."""
        names = self._session.names
        return await self._session.connections.run(lambda connection: weaknesses(connection, names))

    def transaction(self, kind: type[Any]) -> AbstractAsyncContextManager[Any] | None:
        return self._transaction() if kind is _KIND else None

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Any]:
        """An `asyncpg.Connection` in a transaction. The server ends it if it does nothing for `idle_timeout`."""
        guests, location = self._session.guests, self._session.location
        connection = await guests.borrow(None)
        transaction = connection.transaction()

        async def step(*steps: Callable[[], Awaitable[Any]], definite: Callable[[BaseException], bool]) -> None:
            cut = Cut(connection, location.timeout)
            try:
                for each in steps:
                    await each()
            except Exception as error:
                if definite(error) or not is_foreign(error):
                    raise
                raise translated(error, location.url) from error
            finally:
                cut.cancel()

        try:
            idle = str(int(location.idle_timeout * 1000))
            await step(transaction.start, lambda: connection.execute(_IDLE, idle), definite=lambda _: False)
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(
                    Exception
                ):  # the handler's own error is what counts; what is cut off is undone
                    await step(transaction.rollback, definite=lambda _: False)
                raise
            # What the server surely did not commit is the handler's own failure; anything else leaves it unknown.
            await step(transaction.commit, definite=refuses_commit)
        finally:
            if connection.is_in_transaction():  # cancelled, or cut off, half way
                connection.terminate()
            guests.give_back(connection)

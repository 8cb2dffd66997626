"""One URL's engine: the driver and all four storages in tables of one database."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncmy.connection import Connection

from ...clock import Clock
from .connections import Cut, hang_up_after
from .durability import weaknesses
from .failures import is_foreign, refuses_commit, translated
from .fused import MysqlFusedDriver
from .halves import MysqlHalves
from .keys import MysqlKeys
from .letters import MysqlLetters
from .location import Location
from .outbox import MysqlOutbox
from .schema import VERSION_OF, script
from .session import Session

_KIND: Any = Connection


class MysqlEngine:
    """MySQL and MariaDB: durable, shared by any number of hosts."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self._session = Session(location)
        self.idempotency = MysqlKeys(self._session)
        self.driver = MysqlFusedDriver(clock, self._session, self.idempotency)
        self.dead_letters = MysqlLetters(self._session)
        self.transactions = MysqlHalves(self._session)
        self.outbox = MysqlOutbox(clock, self._session)

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
        return await self._session.connections.run(weaknesses)

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return self._transaction(lease) if kind is _KIND else None

    @contextlib.asynccontextmanager
    async def _transaction(self, lease: float) -> AsyncGenerator[Any]:
        """An `asyncmy.Connection` in a transaction. The server ends it if it does nothing for `idle_timeout`, or for
        the lease: then another has its message."""
        guests, location = self._session.guests, self._session.location
        link = await guests.borrow(None)
        connection = link.connection

        async def step(work: Callable[[], Awaitable[Any]], *, definite: Callable[[BaseException], bool]) -> None:
            cut = Cut(link, location.timeout)
            try:
                await work()
            except Exception as error:
                if definite(error) or (link.alive and not is_foreign(error)):
                    raise
                raise translated(error, location.url) from error
            finally:
                cut.cancel()

        try:
            await step(lambda: hang_up_after(link, min(location.idle_timeout, lease)), definite=lambda _: False)
            await step(connection.begin, definite=lambda _: False)
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(Exception):  # the handler's own is what counts; what is cut off is undone
                    await step(connection.rollback, definite=lambda _: False)
                raise
            # What the server surely did not commit is the handler's own failure; anything else leaves it unknown.
            await step(connection.commit, definite=refuses_commit)
        finally:
            guests.give_back(link)  # cut, where it is still in a transaction: cancelled, or cut off, half way

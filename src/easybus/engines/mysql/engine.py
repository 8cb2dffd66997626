"""One URL's engine: the driver and all four storages in tables of one database."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncmy.connection import Connection

from ...clock import Clock
from .failures import is_foreign, refuses_commit, translated
from .fused import MysqlFusedDriver
from .halves import MysqlHalves
from .keys import MysqlKeys
from .letters import MysqlLetters
from .link import Link
from .location import Location
from .outbox import MysqlOutbox
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

    def transaction(self, kind: type[Any]) -> AbstractAsyncContextManager[Any] | None:
        return self._transaction() if kind is _KIND else None

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Any]:
        """An `asyncmy.Connection` in a transaction. The server ends it if it does nothing for `idle_timeout`."""
        guests, location = self._session.guests, self._session.location
        link = await guests.borrow(None)
        try:
            try:
                await link.connection.begin()
            except Exception as error:
                raise translated(error, location.url) from error
            try:
                yield link.connection
            except BaseException:
                await _roll_back(link)
                raise
            try:
                await link.connection.commit()
            except Exception as error:
                if refuses_commit(error) or not is_foreign(error):
                    raise  # it did not take place: the handler's own failure
                raise translated(error, location.url) from error
        finally:
            guests.give_back(link)  # cut, where it is still in a transaction: cancelled, or cut off, half way


async def _roll_back(link: Link) -> None:
    try:
        await link.connection.rollback()
    except Exception:  # the handler's own error is what counts; the server rolls back what is cut off
        link.cut()

"""asyncpg: a connection of the user's own, or one that a pool has lent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg

from ..errors import Unavailable
from . import ended
from .sqlstates import refuses_commit, taken_over

_SAVEPOINT = 'SAVEPOINT "easybus identity"'
_BACK = 'ROLLBACK TO SAVEPOINT "easybus identity"'
_RELEASE = 'RELEASE SAVEPOINT "easybus identity"'
_IDLE = "SET LOCAL idle_in_transaction_session_timeout = {}"
_ELSEWHERE = ("3F", "42", "0A")
"""Classes of what the server says where the tables, or the functions, are not there."""

_identities: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""A connection never changes its database, so each is asked once."""


class AsyncpgTransaction:
    """An `asyncpg.Connection`, or a pool's proxy for one."""

    library = "asyncpg"
    is_async = True
    begin = "async with connection.transaction(): …"

    def __init__(self, connection: Any) -> None:
        self._given = connection
        self._connection: Any = getattr(connection, "_con", connection)  # None: given back to its pool
        self._begun: Any = None

    @property
    def closed(self) -> bool:
        return self._connection is None or self._connection.is_closed()

    @property
    def in_transaction(self) -> bool:
        return self._connection.is_in_transaction()

    async def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        done: str = await self._connection.execute(statement, *params)
        return int(done.rpartition(" ")[2])

    async def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        row = await self._connection.fetchrow(statement, *params)
        return None if row is None else tuple(row)

    async def identity(self, statement: str) -> str | None:
        known = _identities.setdefault(self._connection, {})
        if statement not in known:
            # Within a savepoint: in another database the statement fails, and must not take the transaction with it.
            await self._connection.execute(_SAVEPOINT)
            try:
                row = await self.fetch_one(statement)
            except asyncpg.PostgresError as error:
                await self._connection.execute(_BACK)
                if not str(getattr(error, "sqlstate", "")).startswith(_ELSEWHERE):
                    raise
                row = None
            await self._connection.execute(_RELEASE)
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return False  # the library tells nobody

    # --------------------------------------------------------------------------- as a handler's transaction

    async def start(self, idle: float) -> None:
        self._begun = self._given.transaction()
        await self._begun.start()
        await self._connection.execute(_IDLE.format(int(idle * 1000)))

    async def complete(self, statement: str, params: Sequence[Any]) -> int:
        if self.closed or not self.in_transaction:
            raise ended("COMMIT and ROLLBACK")
        own = getattr(self._connection, "complete", None)  # one of the bus's own, that can do it within its COMMIT
        if own is not None:
            return await own(statement, params)
        try:
            return await self.execute(statement, params)
        except asyncpg.PostgresError as error:
            if taken_over(error):
                return 0
            raise

    async def commit(self) -> None:
        try:
            await self._begun.commit()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if refuses_commit(error):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    async def rollback(self) -> None:
        await self._begun.rollback()


def adapt(obj: Any) -> AsyncpgTransaction:
    """The transaction on this connection."""
    return AsyncpgTransaction(obj)

"""asyncmy: a connection of the user's own, or one that a pool has lent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from asyncmy import errors
from asyncmy.cursors import Cursor

from ..errors import Unavailable
from . import ended
from .mysql_errors import ELSEWHERE, refuses_commit, taken_over

_library: Any = errors
_identities: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""A connection never changes its server, so each is asked once."""


class AsyncmyTransaction:
    """An `asyncmy.Connection`; without autocommit, its default, it is always in a transaction."""

    library = "asyncmy"
    is_async = True
    begin = "await connection.begin()"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        return not self._connection.connected

    @property
    def in_transaction(self) -> bool:
        return self._begun or not self._connection.get_autocommit()

    @property
    def _begun(self) -> bool:
        return bool(self._connection.get_transaction_status())

    async def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        async with self._connection.cursor(Cursor) as cursor:
            await cursor.execute(statement, params or None)
            return cursor.rowcount

    async def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        async with self._connection.cursor(Cursor) as cursor:
            await cursor.execute(statement, params or None)
            return await cursor.fetchone()

    async def identity(self, statement: str) -> str | None:
        known = _identities.setdefault(self._connection, {})
        if statement not in known:
            try:
                row = await self.fetch_one(statement)
            except _library.MySQLError as error:
                if error.args and error.args[0] in ELSEWHERE:
                    return None
                raise
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return False  # the library tells nobody

    # --------------------------------------------------------------------------- as a handler's transaction

    async def start(self, idle: float) -> None:
        await self._connection.begin()

    async def complete(self, statement: str, params: Sequence[Any]) -> int:
        if self.closed or not self._begun:
            raise ended("commit() and rollback()")
        try:
            return await self.execute(statement, params)
        except _library.MySQLError as error:
            if taken_over(error):
                return 0
            raise

    async def commit(self) -> None:
        try:
            await self._connection.commit()
        except (_library.MySQLError, OSError) as error:
            if refuses_commit(error):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    async def rollback(self) -> None:
        await self._connection.rollback()


def adapt(obj: Any) -> AsyncmyTransaction:
    """The transaction on this connection."""
    return AsyncmyTransaction(obj)

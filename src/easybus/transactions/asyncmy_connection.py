"""asyncmy: a connection of the user's own, or one that a pool has lent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from asyncmy import errors
from asyncmy.cursors import Cursor

from .mysql_errors import ELSEWHERE

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
        return self._connection.get_transaction_status() or not self._connection.get_autocommit()

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


def adapt(obj: Any) -> AsyncmyTransaction:
    """The transaction on this connection."""
    return AsyncmyTransaction(obj)

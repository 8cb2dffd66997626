"""apsw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw

from .sqlite_lock import NO_SUCH_TABLE, WRITE_LOCK


class ApswTransaction:
    """An `apsw.Connection`."""

    library = "apsw"
    is_async = False
    begin = 'connection.execute("BEGIN IMMEDIATE")'

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection: Any = connection

    @property
    def closed(self) -> bool:
        try:
            self._connection.in_transaction  # noqa: B018 - raises on a closed connection
        except apsw.ConnectionClosedError:
            return True
        return False

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        self._connection.execute(statement, params).fetchall()
        return self._connection.changes()

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        rows = self._connection.execute(statement, params).fetchall()
        return tuple(rows[0]) if rows else None

    def identity(self, statement: str) -> str | None:
        try:
            if self._connection.in_transaction:
                self._connection.execute(WRITE_LOCK)
            row = self.fetch_one(statement)
        except apsw.SQLError as error:
            if getattr(error, "result", None) == NO_SUCH_TABLE:
                return None
            raise
        return None if row is None else row[0]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return False  # the library's one commit hook is the caller's own


def adapt(obj: apsw.Connection) -> ApswTransaction:
    """The transaction on this connection."""
    return ApswTransaction(obj)

"""The standard library's sqlite3."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from .sqlite_lock import NO_SUCH_TABLE, WRITE_LOCK


class StdlibTransaction:
    """A `sqlite3.Connection`; only its own thread may use it, unless it was opened otherwise."""

    library = "sqlite3"
    is_async = False
    begin = 'connection.execute("BEGIN IMMEDIATE")'

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        try:
            self._connection.total_changes  # noqa: B018 - raises on a closed connection
        except sqlite3.ProgrammingError:
            return True
        return False

    @property
    def in_transaction(self) -> bool:
        connection = self._connection
        legacy = getattr(connection, "autocommit", -1) == -1  # from Python 3.12 on it may be True or False
        # The legacy mode begins by itself before an INSERT, which is what is written first.
        return connection.in_transaction or (legacy and connection.isolation_level is not None)

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        return self._connection.execute(statement, params).rowcount

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        row = self._connection.execute(statement, params).fetchone()
        return None if row is None else tuple(row)

    def identity(self, statement: str) -> str | None:
        try:
            if self._connection.in_transaction:
                self._connection.execute(WRITE_LOCK)
            row = self.fetch_one(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == NO_SUCH_TABLE:
                return None
            raise
        return None if row is None else row[0]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return False


def adapt(obj: sqlite3.Connection) -> StdlibTransaction:
    """The transaction on this connection."""
    return StdlibTransaction(obj)

"""PyMySQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pymysql
from pymysql.constants import SERVER_STATUS
from pymysql.cursors import Cursor

from ..errors import Unavailable
from . import ended
from .mysql_errors import ELSEWHERE, refuses_commit, taken_over

_identities: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""A connection never changes its server, so each is asked once."""


class PymysqlTransaction:
    """A `pymysql.Connection`; without autocommit, its default, it is always in a transaction."""

    library = "pymysql"
    is_async = False
    begin = "connection.begin()"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        return not self._connection.open

    @property
    def in_transaction(self) -> bool:
        return self._begun or not self._connection.get_autocommit()

    @property
    def _begun(self) -> bool:
        return bool(self._connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        with self._connection.cursor(Cursor) as cursor:
            return cursor.execute(statement, params or None)

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        with self._connection.cursor(Cursor) as cursor:
            cursor.execute(statement, params or None)
            return cursor.fetchone()

    def identity(self, statement: str) -> str | None:
        known = _identities.setdefault(self._connection, {})
        if statement not in known:
            try:
                row = self.fetch_one(statement)
            except pymysql.MySQLError as error:
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

    def start(self, idle: float) -> None:
        self._connection.begin()

    def complete(self, statement: str, params: Sequence[Any]) -> int:
        if self.closed or not self._begun:
            raise ended("commit() and rollback()")
        try:
            return self.execute(statement, params)
        except pymysql.MySQLError as error:
            if taken_over(error):
                return 0
            raise

    def commit(self) -> None:
        try:
            self._connection.commit()
        except (pymysql.MySQLError, OSError) as error:
            if refuses_commit(error):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    def rollback(self) -> None:
        self._connection.rollback()


def adapt(obj: Any) -> PymysqlTransaction:
    """The transaction on this connection."""
    return PymysqlTransaction(obj)

"""Django's connections, inside `transaction.atomic()`: on PostgreSQL, on SQLite, and on MySQL and MariaDB.

Statements go through Django's own cursors, so that its wrappers and its log see them, in the placeholders that those
take. A connection belongs to its thread, and none may be used on an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DatabaseError, connections, transaction

from ..errors import ConfigurationError
from .mysql_errors import ELSEWHERE
from .psycopg_placeholders import pyformat
from .sqlite_lock import NO_SUCH_TABLE, WRITE_LOCK
from .sqlstates import elsewhere

_VENDORS = ("postgresql", "sqlite", "mysql")

_identities: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""The library's own connection never changes its database, so each is asked once."""


class DjangoTransaction:
    """A connection of Django's, of the calling thread."""

    is_async = False

    def __init__(self, connection: Any) -> None:
        if connection.vendor not in _VENDORS:
            raise ConfigurationError(
                f"within=: Django's {connection.vendor} backend; it can be postgresql, sqlite3 or mysql"
            )
        self._connection = connection
        self._vendor: str = connection.vendor
        self.library = "sqlite3" if self._vendor == "sqlite" else "django"
        using = "" if connection.alias == "default" else f"using={connection.alias!r}"
        self.begin = f"with transaction.atomic({using}): …"

    @property
    def closed(self) -> bool:
        return self._connection.closed_in_transaction

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_atomic_block or not self._connection.get_autocommit()

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(*self._written(statement, params))
            return cursor.rowcount

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        with self._connection.cursor() as cursor:
            cursor.execute(*self._written(statement, params))
            row = cursor.fetchone()
            return None if row is None else tuple(row)

    def identity(self, statement: str) -> Any:
        if self._vendor == "sqlite":
            return self._ask_sqlite(statement)
        self._connection.ensure_connection()
        known = _identities.setdefault(self._connection.connection, {})
        if statement not in known:
            row = self._ask_postgresql(statement) if self._vendor == "postgresql" else self._ask_mysql(statement)
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        if not self._connection.in_atomic_block:
            return False  # the caller commits by hand, and Django takes no hooks then
        transaction.on_commit(wake, using=self._connection.alias, robust=True)
        return True

    # ------------------------------------------------------------------------------------------------ inside

    def _written(self, statement: str, params: Sequence[Any]) -> tuple[str, Any]:
        if not params:
            return statement, None  # as it stands: nothing in it is a placeholder
        if self._vendor == "postgresql":
            return pyformat(statement, params)
        if self._vendor == "sqlite":  # ours hold no other question mark, and no percent sign
            return statement.replace("?", "%s"), tuple(params)
        return statement, tuple(params)

    def _ask_postgresql(self, statement: str) -> tuple[Any, ...] | None:
        # In another database the statement fails, and must not take the caller's transaction with it: a savepoint.
        try:
            with transaction.atomic(using=self._connection.alias):
                return self.fetch_one(statement)
        except DatabaseError as error:
            if elsewhere(cause(error)):
                return None
            raise

    def _ask_mysql(self, statement: str) -> tuple[Any, ...] | None:
        try:
            return self.fetch_one(statement)
        except DatabaseError as error:
            if code(error) in ELSEWHERE:
                return None
            raise

    def _ask_sqlite(self, statement: str) -> Any:
        try:
            if self._connection.in_atomic_block:
                self.execute(WRITE_LOCK)
            row = self.fetch_one(statement)
        except DatabaseError as error:
            if getattr(cause(error), "sqlite_errorcode", None) == NO_SUCH_TABLE:
                return None
            raise
        return None if row is None else row[0]


def cause(error: BaseException) -> BaseException:
    """The database library's own error, which Django chains."""
    return error.__cause__ or error


def code(error: BaseException) -> Any:
    """MySQL's number of an error."""
    return error.args[0] if error.args else None


def adapt(obj: Any) -> DjangoTransaction:
    """The transaction on `django.db.connection`, or on one of `connections`.

    Raises:
        ConfigurationError: called on an event loop, where Django lets no connection be used.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return DjangoTransaction(connections[obj.alias])
    raise ConfigurationError(
        "within=: Django's connections cannot be used on an event loop, and transaction.atomic() neither; put both in "
        "a plain function that calls bus.blocking.send(topic, value, within=connection), and call that with: "
        "await sync_to_async(place_order)(...)"
    )

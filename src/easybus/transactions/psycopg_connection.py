"""psycopg 3: a connection that begins by itself, or one inside `with connection.transaction():`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ..errors import Unavailable
from . import ended
from .psycopg_placeholders import pyformat
from .sqlstates import elsewhere, refuses_commit, taken_over

_SAVEPOINT = 'SAVEPOINT "easybus identity"'
_BACK = 'ROLLBACK TO SAVEPOINT "easybus identity"'
_RELEASE = 'RELEASE SAVEPOINT "easybus identity"'
_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"

_identities: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""A connection never changes its database, so each is asked once."""


class _Connection:
    """What is known of a connection without asking the server."""

    library = "psycopg"
    begin = "with connection.transaction(): …, or connect without autocommit=True"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        return self._connection.closed

    @property
    def in_transaction(self) -> bool:
        # Without autocommit it begins by itself, before the first statement.
        return not self._connection.autocommit or self._connection.info.transaction_status != TransactionStatus.IDLE

    @property
    def _known(self) -> dict[str, Any]:
        return _identities.setdefault(self._connection, {})

    def _check_begun(self) -> None:
        if self._connection.info.transaction_status == TransactionStatus.IDLE:
            raise ended("connection.commit() and rollback()")

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return False  # the library tells nobody


class PsycopgTransaction(_Connection):
    """A `psycopg.Connection`."""

    is_async = False

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        return self._connection.execute(*pyformat(statement, params)).rowcount

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(*pyformat(statement, params)).fetchone()

    def identity(self, statement: str) -> str | None:
        known = self._known
        if statement not in known:
            # Within a savepoint: in another database the statement fails, and must not take the transaction with it.
            self._connection.execute(_SAVEPOINT)
            try:
                row = self.fetch_one(statement)
            except psycopg.Error as error:
                self._connection.execute(_BACK)
                if not elsewhere(error):
                    raise
                row = None
            self._connection.execute(_RELEASE)
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    def start(self, idle: float) -> None:
        self._connection.execute(*pyformat(_IDLE, (str(int(idle * 1000)),)))

    def complete(self, statement: str, params: Sequence[Any]) -> int:
        self._check_begun()
        try:
            return self.execute(statement, params)
        except psycopg.Error as error:
            if taken_over(error):
                return 0
            raise

    def commit(self) -> None:
        try:
            self._connection.commit()
        except psycopg.Error as error:
            if refuses_commit(error):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    def rollback(self) -> None:
        self._connection.rollback()


class PsycopgAsyncTransaction(_Connection):
    """A `psycopg.AsyncConnection`."""

    is_async = True
    begin = "async with connection.transaction(): …, or connect without autocommit=True"

    async def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        return (await self._connection.execute(*pyformat(statement, params))).rowcount

    async def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(*pyformat(statement, params))
            return await cursor.fetchone()

    async def identity(self, statement: str) -> str | None:
        known = self._known
        if statement not in known:
            await self._connection.execute(_SAVEPOINT)
            try:
                row = await self.fetch_one(statement)
            except psycopg.Error as error:
                await self._connection.execute(_BACK)
                if not elsewhere(error):
                    raise
                row = None
            await self._connection.execute(_RELEASE)
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    async def start(self, idle: float) -> None:
        await self._connection.execute(*pyformat(_IDLE, (str(int(idle * 1000)),)))

    async def complete(self, statement: str, params: Sequence[Any]) -> int:
        self._check_begun()
        try:
            return await self.execute(statement, params)
        except psycopg.Error as error:
            if taken_over(error):
                return 0
            raise

    async def commit(self) -> None:
        try:
            await self._connection.commit()
        except psycopg.Error as error:
            if refuses_commit(error):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    async def rollback(self) -> None:
        await self._connection.rollback()


def adapt(obj: Any) -> PsycopgTransaction | PsycopgAsyncTransaction:
    """The transaction on this connection."""
    return PsycopgAsyncTransaction(obj) if isinstance(obj, psycopg.AsyncConnection) else PsycopgTransaction(obj)

"""SQLAlchemy 2: sessions and connections, async ones too, on PostgreSQL by asyncpg or psycopg, on MySQL and MariaDB
by asyncmy or PyMySQL, and on SQLite.

Statements go through SQLAlchemy, since it begins the transaction at the first one. Everything is written once, for the
plain kinds; the async kinds run the same on their own connection (`run_sync`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    PendingRollbackError,
    UnboundExecutionError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from ..errors import ConfigurationError, Unavailable
from . import ended, mysql_errors, sqlstates
from .psycopg_placeholders import pyformat
from .sqlite_lock import NO_SUCH_TABLE, WRITE_LOCK

_DRIVERS = ("asyncpg", "psycopg", "asyncmy", "pymysql", "pysqlite", "aiosqlite")
_MYSQL = ("mysql", "mariadb")
_SCOPED: Any = (scoped_session, async_scoped_session)
_SAVEPOINT = 'SAVEPOINT "easybus identity"'
_BACK = 'ROLLBACK TO SAVEPOINT "easybus identity"'
_RELEASE = 'RELEASE SAVEPOINT "easybus identity"'
_IDLE = "SET LOCAL idle_in_transaction_session_timeout = {}"
_KNOWN = "easybus identities"
"""A connection never changes its database, so each is asked once; the key in what SQLAlchemy keeps beside it."""

_waking: WeakKeyDictionary[Session, set[Callable[[], Any]]] = WeakKeyDictionary()
"""Whom to wake when the session commits."""


class SqlalchemyTransaction:
    """A `Session` or a `Connection`."""

    is_async = False
    begin = "with session.begin(): …"

    def __init__(self, given: Session | Connection) -> None:
        self._given = given
        dialect = _dialect(given)
        if dialect.driver not in _DRIVERS:
            raise ConfigurationError(
                f"within=: SQLAlchemy with {dialect.name}+{dialect.driver}; it can be postgresql+asyncpg, "
                "postgresql+psycopg, mysql+asyncmy, mysql+pymysql, sqlite+pysqlite or sqlite+aiosqlite"
            )
        self._sqlite = dialect.name == "sqlite"
        self._mysql = dialect.name in _MYSQL
        self._codes = mysql_errors if self._mysql else sqlstates
        self._named = dialect.driver == "psycopg"
        self._asyncpg = dialect.driver == "asyncpg"
        self.library = "sqlite3" if self._sqlite else "sqlalchemy"
        self._begun: Any = None

    @property
    def closed(self) -> bool:
        return isinstance(self._given, Connection) and self._given.closed

    @property
    def in_transaction(self) -> bool:
        """What the connection itself says is looked at when it is used: a session may have none yet."""
        given = self._given
        return given.in_transaction() or isinstance(given, Connection) or given.autobegin

    def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        result = self._run(statement, params)
        changed: int = result.rowcount
        result.close()
        return changed

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        row = self._run(statement, params).fetchone()
        return None if row is None else tuple(row)

    def identity(self, statement: str) -> str | None:
        connection = self._connection()
        if self._begins_nothing(connection):
            raise ConfigurationError(
                "within=: this connection commits each statement by itself (isolation_level='AUTOCOMMIT'), so the "
                f"message would not wait for your commit; leave that out, and begin: {self.begin}"
            )
        known: dict[str, Any] = connection.info.setdefault(_KNOWN, {})
        if statement not in known:
            row = self._ask_sqlite(connection, statement) if self._sqlite else self._ask(statement)
            if row is None:
                return None
            known[statement] = row[0]
        return known[statement]

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        session = self._given
        if not isinstance(session, Session):
            return False  # a connection's event comes before its commit
        if session not in _waking:
            event.listen(session, "after_commit", _committed)
        _waking.setdefault(session, set()).add(wake)
        return True

    # --------------------------------------------------------------------------- as a handler's transaction

    def start(self, idle: float) -> None:
        if self._sqlite:
            self._direct(WRITE_LOCK)  # a transaction that read first could not write after others' commits
        elif self._mysql:
            self._connection()
        else:
            self._direct(_IDLE.format(int(idle * 1000)))
        self._begun = self._given.get_transaction()

    def complete(self, statement: str, params: Sequence[Any]) -> int:
        if self._begun is None or self._given.get_transaction() is not self._begun:
            raise ended("session.commit(), rollback(), close()")
        if isinstance(self._given, Session):
            self._given.flush()
        try:
            return self._on_asyncpg(statement, params) if self._asyncpg else self._direct(statement, params)
        except Exception as error:
            if self._codes.taken_over(error):
                return 0
            raise

    def commit(self) -> None:
        try:
            self._given.commit()
        except DBAPIError as error:
            if isinstance(error, IntegrityError) or (error.orig is not None and self._codes.refuses_commit(error.orig)):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error

    def rollback(self) -> None:
        self._given.rollback()

    # ------------------------------------------------------------------------------------------------ inside

    def _connection(self) -> Connection:
        if isinstance(self._given, Connection):
            return self._given
        try:
            return self._given.connection()
        except PendingRollbackError:
            raise
        except InvalidRequestError as error:
            raise ConfigurationError(f"within=: this session cannot be used: {error}") from error

    def _run(self, statement: str, params: Sequence[Any] = ()) -> Any:
        if self._named:
            return self._connection().exec_driver_sql(*pyformat(statement, params))
        return self._connection().exec_driver_sql(statement, tuple(params) or None)

    def _direct(self, statement: str, params: Sequence[Any] = ()) -> int:
        """A statement of the bus's own, on a cursor of the database library: what SQLAlchemy does around one costs as
        much as the statement. Returns how many rows it changed."""
        given: tuple[Any, ...] = (statement, tuple(params)) if params else (statement,)
        cursor = self._connection().connection.cursor()
        try:
            cursor.execute(*(pyformat(statement, params) if self._named else given))
            changed: int = cursor.rowcount
            return changed
        finally:
            cursor.close()

    def _on_asyncpg(self, statement: str, params: Sequence[Any]) -> int:
        """The same without SQLAlchemy's cursor, which costs twice as much; but only a cursor begins a transaction, and
        only a cursor names prepared statements as the user may have said, for a pooler."""
        connection: Any = self._connection().connection.dbapi_connection
        name: Callable[[], str | None] | None = getattr(connection, "_prepared_statement_name_func", None)
        if name is None or name() is not None:
            return self._direct(statement, params)

        async def run(asyncpg: Any) -> str:
            return await asyncpg.execute(statement, *params)

        done: str = connection.run_async(run)
        return int(done.rpartition(" ")[2])

    def _ask(self, statement: str) -> tuple[Any, ...] | None:
        if self._mysql:
            try:
                return self.fetch_one(statement)
            except DBAPIError as error:
                if error.orig is not None and mysql_errors.number(error.orig) in mysql_errors.ELSEWHERE:
                    return None
                raise
        # Within a savepoint: in another database the statement fails, and must not take the transaction with it.
        self._run(_SAVEPOINT).close()
        row = None
        try:
            row = self.fetch_one(statement)
        except DBAPIError as error:
            self._run(_BACK).close()
            if error.orig is None or not sqlstates.elsewhere(error.orig):
                raise
        self._run(_RELEASE).close()
        return row

    def _ask_sqlite(self, connection: Connection, statement: str) -> tuple[Any, ...] | None:
        try:
            if _raw(connection).in_transaction:
                self._run(WRITE_LOCK).close()
            return self.fetch_one(statement)
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == NO_SUCH_TABLE:
                return None
            raise

    def _begins_nothing(self, connection: Connection) -> bool:
        if self._mysql:
            return bool(cast("Any", connection.connection.driver_connection).get_autocommit())
        if not self._sqlite:
            return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
        raw = _raw(connection)
        legacy = getattr(raw, "autocommit", -1) == -1  # from Python 3.12 on it may be True or False
        return not raw.in_transaction and not (legacy and raw.isolation_level is not None)


class SqlalchemyAsyncTransaction:
    """An `AsyncSession` or an `AsyncConnection`."""

    is_async = True
    begin = "async with session.begin(): …"

    def __init__(self, given: AsyncSession | AsyncConnection) -> None:
        self._given = given
        plain = given.sync_session if isinstance(given, AsyncSession) else given.sync_connection
        self._plain = None if plain is None else SqlalchemyTransaction(plain)  # None: never connected, or closed
        self.library = "sqlalchemy" if self._plain is None else self._plain.library

    @property
    def closed(self) -> bool:
        return self._plain is None or self._plain.closed

    @property
    def in_transaction(self) -> bool:
        return self._open.in_transaction

    async def execute(self, statement: str, params: Sequence[Any] = ()) -> int:
        return await self._run(self._open.execute, statement, params)

    async def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        return await self._run(self._open.fetch_one, statement, params)

    async def identity(self, statement: str) -> str | None:
        return await self._run(self._open.identity, statement)

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return self._open.on_commit(wake)

    async def start(self, idle: float) -> None:
        await self._run(self._open.start, idle)

    async def complete(self, statement: str, params: Sequence[Any]) -> int:
        return await self._run(self._open.complete, statement, params)

    async def commit(self) -> None:
        await self._run(self._open.commit)

    async def rollback(self) -> None:
        await self._run(self._open.rollback)

    @property
    def _open(self) -> SqlalchemyTransaction:
        assert self._plain is not None  # noqa: S101 - `closed` is looked at first
        return self._plain

    async def _run(self, call: Callable[..., Any], *given: Any) -> Any:
        return await self._given.run_sync(lambda _: call(*given))


def _dialect(given: Session | Connection) -> Any:
    """Found without connecting: a SQLite file must not be opened by the wrong library."""
    if isinstance(given, Connection):
        return given.dialect
    try:
        return given.get_bind().dialect
    except UnboundExecutionError as error:
        raise ConfigurationError(
            "within=: this session has no one database; pass the connection of the one that is meant: "
            "within=session.connection(bind_arguments={'mapper': …})"
        ) from error


def _raw(connection: Connection) -> Any:
    """The standard library's connection; aiosqlite's own has it inside."""
    found: Any = connection.connection.driver_connection
    return getattr(found, "_conn", found)


def _committed(session: Session) -> None:
    """Also called for each savepoint that is released: those who wait are woken, and stay until the commit."""
    for wake in list(_waking[session]):
        wake()
    if session.get_nested_transaction() is None:
        _waking[session].clear()


def adapt(obj: Any) -> SqlalchemyTransaction | SqlalchemyAsyncTransaction:
    """The transaction of this session or connection; of a scoped session, the present scope's."""
    given: Any = obj() if isinstance(obj, _SCOPED) else obj
    if isinstance(given, (AsyncSession, AsyncConnection)):
        return SqlalchemyAsyncTransaction(given)
    return SqlalchemyTransaction(given)

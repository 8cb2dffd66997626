"""SQLAlchemy 2: sessions and connections, async ones too, on PostgreSQL by asyncpg or psycopg, on MySQL and MariaDB
by asyncmy or PyMySQL, and on SQLite.

Statements go through SQLAlchemy, since it begins the transaction at the first one. Everything is written once, for the
plain kinds; the async kinds run the same on their own connection (`run_sync`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, cast
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
from . import ended, mysql_errors, sqlalchemy_asyncpg, sqlstates
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
        self._known: dict[str, Any] = {}
        self._ours: sqlalchemy_asyncpg.Ours | None = None
        """Where the last statement can go with the COMMIT."""
        self._last: _Last | None = None

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

    def known(self, statement: str) -> str | None:
        """What `identity` returns, if the transaction was started on a connection that was asked before."""
        return self._known.get(statement)

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
        connection = self._connection()
        if self._sqlite:
            self._lock()
        elif not self._mysql:
            limit = _IDLE.format(int(idle * 1000))
            if self._asyncpg:
                raw = connection.connection.dbapi_connection
                with _whole(connection):
                    self._ours = sqlalchemy_asyncpg.begin(raw, connection.info, limit)
            else:
                self._direct(limit)
        if not self._begins_nothing(connection):
            self._known = connection.info.get(_KNOWN, {})
        self._begun = self._given.get_transaction()

    def complete(self, statement: str, params: Sequence[Any]) -> int:
        self._check_whole()
        if isinstance(self._given, Session):
            self._given.flush()
        try:
            return self._direct(statement, params)
        except Exception as error:
            if self._codes.taken_over(error):
                return 0
            raise

    def complete_with_commit(self, statement: str, params: Sequence[Any], failing: str) -> int:
        raw: Any = None if self._ours is None else self._connection().connection.dbapi_connection
        if self._ours is None or not self._ours.prepare(raw, failing):
            return self.complete(statement, params)
        return self.complete_prepared(statement, params, failing)

    def complete_prepared(self, statement: str, params: Sequence[Any], failing: str) -> int:
        """`complete_with_commit` where nothing is to be asked of the server; 0: it is."""
        self._check_whole()
        if self._ours is None or not self._ours.complete(failing, params):
            return 0
        self._last = _Last(self._ours, statement, params)
        return 1

    def _check_whole(self) -> None:
        """Raises `ConfigurationError`: the handler has ended the transaction itself."""
        if self._begun is None or self._given.get_transaction() is not self._begun:
            raise ended("session.commit(), rollback(), close()")

    def commit(self) -> None:
        last, self._last = self._last, None
        try:
            self._given.commit()
        except DBAPIError as error:
            if last is not None:
                last.ours.prepared.clear()
            if isinstance(error, IntegrityError) or (error.orig is not None and self._refuses_commit(error.orig, last)):
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error
        if last is not None and last.owed:  # the COMMIT went without it
            last.ours.last = ""
            self._direct(last.statement, last.params)
            self._given.commit()

    def _refuses_commit(self, error: BaseException, last: _Last | None) -> bool:
        """Whether nothing was committed, surely."""
        if last is not None and (last.owed or sqlalchemy_asyncpg.before_commit(sqlstates.sqlstate(error))):
            return True  # what the session still held back was refused, or the last statement
        return self._codes.refuses_commit(error)

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
        connection = self._connection()
        cursor = connection.connection.cursor()
        try:
            with _whole(connection):
                cursor.execute(*(pyformat(statement, params) if self._named else given))
            changed: int = cursor.rowcount
            return changed
        finally:
            cursor.close()

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

    def _lock(self) -> None:
        """Be the file's writer: a transaction that read first could not write after others' commits."""
        try:
            self._direct(WRITE_LOCK)
        except Exception as error:
            if getattr(error, "sqlite_errorcode", None) != NO_SUCH_TABLE:  # else it is another file: see `identity`
                raise

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


@contextlib.contextmanager
def _whole(connection: Connection) -> Generator[None]:
    """A call that does not go through SQLAlchemy. Cancelled in the middle it leaves nobody knows what: as SQLAlchemy
    does then, the connection is given up."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        connection.invalidate(error)
        raise


class _Last(NamedTuple):
    """A last statement that goes with the COMMIT."""

    ours: sqlalchemy_asyncpg.Ours
    statement: str
    params: Sequence[Any]
    """To be run by itself, should the COMMIT go without it."""

    @property
    def owed(self) -> bool:
        """Whether no COMMIT has gone with it."""
        return bool(self.ours.last)


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
        return self._open.known(statement) or await self._run(self._open.identity, statement)

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        return self._open.on_commit(wake)

    async def start(self, idle: float) -> None:
        await self._run(self._open.start, idle)

    async def complete(self, statement: str, params: Sequence[Any]) -> int:
        return await self._run(self._open.complete, statement, params)

    async def complete_with_commit(self, statement: str, params: Sequence[Any], failing: str) -> int:
        given = (statement, params, failing)
        return self._open.complete_prepared(*given) or await self._run(self._open.complete_with_commit, *given)

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

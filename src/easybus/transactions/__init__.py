"""Transactions of the caller, that a message can ride in: one small module for each database library.

A library is found by the module of the object's class, and never imported unasked. A new one = one module here with
`adapt(obj) -> CallerTransaction`, and one line in `LIBRARIES`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import ConfigurationError

__all__ = [
    "LIBRARIES",
    "OPENERS",
    "SQLITE",
    "CallerTransaction",
    "CompletingWithCommit",
    "HandlerTransaction",
    "Opener",
    "Target",
    "check",
    "check_library",
    "check_open",
    "ended",
    "find",
    "opener",
]

_SQLALCHEMY = (
    "sqlalchemy.orm.Session, sqlalchemy.orm.scoped_session, sqlalchemy.Connection, "
    "sqlalchemy.ext.asyncio.AsyncSession, sqlalchemy.ext.asyncio.async_scoped_session, "
    "sqlalchemy.ext.asyncio.AsyncConnection"
)
LIBRARIES: Mapping[str, tuple[str, str]] = {
    # module of the class: (module here, what users pass)
    "sqlite3": ("stdlib_sqlite", "sqlite3.Connection"),
    "apsw": ("apsw_sqlite", "apsw.Connection"),
    "asyncpg": ("asyncpg_connection", "asyncpg.Connection, asyncpg.pool.PoolConnectionProxy"),
    "pymysql": ("pymysql_connection", "pymysql.Connection"),
    "asyncmy": ("asyncmy_connection", "asyncmy.Connection"),
    "psycopg": ("psycopg_connection", "psycopg.Connection, psycopg.AsyncConnection"),
    "sqlalchemy": (
        "sqlalchemy_session",
        _SQLALCHEMY,
    ),
    "django": (
        "django_connection",
        "django.db.backends.base.base.BaseDatabaseWrapper, django.utils.connection.ConnectionProxy",
    ),
}
OPENERS: Mapping[str, str] = {"django.db.transaction": "django_atomic"}
"""Module of what users pass as a handler's `within=` that is no type → module here, with `opener(obj) -> Opener`."""

SQLITE = ("sqlite3", "apsw")
"""Libraries of which only one may have a file open in a process."""


class CallerTransaction(Protocol):
    """A caller's connection or session, in the middle of the caller's transaction. It is never committed here."""

    library: str
    """The database library, as in `LIBRARIES`."""
    is_async: bool
    """Whether `execute`, `fetch_one` and `identity` return awaitables: then nothing else may call them plainly."""
    begin: str
    """The line with which users begin a transaction."""

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether an INSERT now would wait for the caller's commit; False: it would be committed at once."""
        ...

    def execute(self, statement: str, params: Sequence[Any] = ()) -> Any:
        """Run one statement inside the caller's transaction; returns how many rows it changed."""
        ...

    def fetch_one(self, statement: str, params: Sequence[Any] = ()) -> Any:
        """The first row, or None."""
        ...

    def identity(self, statement: str) -> Any:
        """What an outbox's identity statement returns here; None where it cannot run: another database."""
        ...

    def on_commit(self, wake: Callable[[], Any]) -> bool:
        """Call `wake` after the commit; False: this library has no such hook, relays find the rows by looking."""
        ...


class HandlerTransaction(CallerTransaction, Protocol):
    """One that the bus can begin and end too, for a handler to work in. All of these are awaited where it is async."""

    def start(self, idle: float) -> Any:
        """Begin; a server that can ends it when it does nothing for `idle` seconds."""
        ...

    def complete(self, statement: str, params: Sequence[Any]) -> Any:
        """Write what the library still holds back, then run the last statement; returns how many rows it changed: 0
        also where the row was changed meanwhile. Raises `ConfigurationError` if the handler has ended it itself."""
        ...

    def commit(self) -> Any:
        """Commit. Raises the library's own error where nothing was committed, `Unavailable` where that is unknown."""
        ...

    def rollback(self) -> Any:
        """Undo all of it."""
        ...


class CompletingWithCommit(HandlerTransaction, Protocol):
    """One that can run its last statement in the round trip of its COMMIT."""

    def complete_with_commit(self, statement: str, params: Sequence[Any], failing: str) -> Any:
        """As `complete`, but 1 may be returned before it was run. Then it is `failing` that is run, which fails where
        the other would change no row: `commit` raises an `EngineError`."""
        ...


class Target(Protocol):
    """What `check` asks of an outbox."""

    def identity(self) -> tuple[str, str]:
        """The statement, and its value on a connection to the outbox's own database."""
        ...


class Opener(Protocol):
    """Opens transactions that belong to the thread which opens them, for handlers to work in."""

    kind: type[Any]
    """What handlers may ask for."""
    name: str
    """What users passed, as they wrote it."""

    def open(self) -> tuple[Any, HandlerTransaction]:
        """What the handler is given, and the transaction on it; used in the calling thread only."""
        ...


def opener(within: object) -> Opener | None:
    """What opens a handler's transactions for `within`, if that belongs to a thread. Raises `ConfigurationError`."""
    name = OPENERS.get(getattr(within, "__module__", None) or "")
    if name is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    made: Opener = module.opener(within)
    return made


def find(obj: object) -> CallerTransaction:
    """The transaction that `obj` stands for. Raises `ConfigurationError` for what is not supported."""
    return _adapter(type(obj))(obj)


@functools.lru_cache(100)
def _adapter(kind: type[Any]) -> Callable[[object], CallerTransaction]:
    for base in kind.__mro__:
        known = LIBRARIES.get(base.__module__.partition(".")[0])
        if known is not None and any(one.endswith(f".{base.__name__}") for one in known[1].split(", ")):
            module = importlib.import_module(f"{__name__}.{known[0]}")
            adapt: Callable[[object], CallerTransaction] = module.adapt
            return adapt
    supported = ", ".join(name for _, name in LIBRARIES.values())
    raise ConfigurationError(f"within= takes a connection ({supported}), not a {kind.__module__}.{kind.__qualname__}")


def ended(calls: str) -> ConfigurationError:
    """The error for a transaction of the bus's that its handler has ended, by one of these calls."""
    return ConfigurationError(
        "the transaction was ended inside the handler, so its work is not of one piece with its message: leave out "
        f"{calls}; the bus commits when the handler returns"
    )


def check_open(tx: CallerTransaction) -> None:
    """Raises `ConfigurationError`, with the line to write, unless rows written through `tx` wait for a commit."""
    if tx.closed:
        raise ConfigurationError("within=: this connection is closed; pass the one that your statements run on")
    if not tx.in_transaction:
        raise ConfigurationError(
            "within=: no transaction is open on this connection, so the message would not wait for your commit; begin "
            f"one first: {tx.begin}"
        )


def check(tx: CallerTransaction, outbox: Target) -> None:
    """Raises `ConfigurationError`, with the line to write, unless rows written through `tx` reach this outbox if, and
    only if, the caller commits. For transactions that are not async."""
    check_library(tx, outbox)
    check_open(tx)
    statement, value = outbox.identity()
    if tx.identity(statement) != value:
        raise ConfigurationError(
            "within=: this connection is to another database than the bus's storage; write "
            "Bus(url, storage=URL of that database), or name it in Bus(databases=[...])"
        )


def check_library(tx: CallerTransaction, outbox: Target) -> None:
    """Raises `ConfigurationError` where `tx` is of another SQLite library than the one that holds the outbox's file."""
    library: str | None = getattr(outbox, "library", None)
    if library is not None and library != tx.library:
        there: str = getattr(outbox, "url", "the database")
        option = "" if tx.library == "apsw" else f"?library={tx.library}"
        raise ConfigurationError(
            f"within=: this connection is of {tx.library}, and the bus has {there} open with {library}: two SQLite "
            f"libraries on one file in one process lose data. Either connect with {library}.Connection, or write the "
            f"bus's URL as {there.partition('?')[0]}{option}"
        )

"""One small face over the two SQLite libraries, and how a connection is opened.

Every connection runs in autocommit (the writer says BEGIN and COMMIT itself), with SQLite's own busy waiting off:
waiting is ours (`patiently`), jittered, with a real deadline, so that no user ever reads "database is locked".
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, TypeVar

from ...errors import EngineError, Refused, TooLarge, Unavailable

T = TypeVar("T")
Row = tuple[Any, ...]

DEADLINE = 30.0
"""Seconds that a call waits for other processes' transactions before it is `Unavailable`."""

# SQLite's primary result codes (sqlite.org/rescode.html)
_BUSY, _LOCKED, _PROTOCOL = 5, 6, 15
_NOMEM, _READONLY, _INTERRUPT, _IOERR, _FULL, _CANTOPEN, _TOOBIG = 7, 8, 9, 10, 13, 14, 18
_AGAIN = frozenset({_BUSY, _LOCKED, _PROTOCOL})
_PASSING = _AGAIN | {_NOMEM, _READONLY, _INTERRUPT, _IOERR, _FULL, _CANTOPEN}

_SAFE_BACKPORTS = {(3, 44): 6, (3, 50): 7}
"""Releases that carry the fix of 3.51.3 for checkpoints that reset the log under other connections."""

log = logging.getLogger("easybus")
_warned = False
_abandoned: list[Any] = []
"""Connections that must not be closed, not even by being forgotten."""


class Connection(Protocol):
    """What this room asks of a SQLite library."""

    raw: Any

    def rows(self, statement: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run, and return every row."""
        ...

    def run(self, statement: str, params: Sequence[Any] = ()) -> int:
        """Run one INSERT, UPDATE or DELETE; returns how many rows it changed."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    def reset(self) -> None:
        """Undo what a caller may have set on `raw`: how rows are made, what traces them."""
        ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Close without a checkpoint, which would delete the log of whatever file has the name now."""
        ...


class ApswConnection:
    """apsw: a current SQLite in its wheel."""

    def __init__(self, path: str) -> None:
        import apsw

        self.raw: Any = apsw.Connection(path, statementcachesize=256)
        self._execute = self.raw.execute

    def rows(self, statement: str, params: Sequence[Any] = ()) -> list[Row]:
        return self._execute(statement, params).fetchall()

    def run(self, statement: str, params: Sequence[Any] = ()) -> int:
        self._execute(statement, params)
        return self.raw.changes()

    @property
    def in_transaction(self) -> bool:
        return self.raw.in_transaction

    def reset(self) -> None:
        self.raw.row_trace = self.raw.exec_trace = None

    def close(self) -> None:
        self.raw.close()

    def abandon(self) -> None:
        import apsw

        self.raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self.raw.close()


class StdlibConnection:
    """The standard library's sqlite3."""

    def __init__(self, path: str) -> None:
        import sqlite3

        self.raw: Any = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        self._execute = self.raw.execute

    def rows(self, statement: str, params: Sequence[Any] = ()) -> list[Row]:
        return self._execute(statement, params).fetchall()

    def run(self, statement: str, params: Sequence[Any] = ()) -> int:
        return self._execute(statement, params).rowcount

    @property
    def in_transaction(self) -> bool:
        return self.raw.in_transaction

    def reset(self) -> None:
        self.raw.row_factory, self.raw.text_factory = None, str

    def close(self) -> None:
        self.raw.close()

    def abandon(self) -> None:
        import sqlite3

        if sys.version_info >= (3, 12):
            self.raw.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            self.raw.close()
        else:
            _abandoned.append(self.raw)


_ROWS_AT_ONCE = (128, 64, 32, 16, 8, 4, 2, 1)


def insert(connection: Connection, into: str, rows: Sequence[Sequence[Any]], end: str = "") -> int:
    """Run `into` (INSERT INTO … (columns)) with all of `rows` and `end`, many in one step of SQLite; returns how many
    were added.

    A library gives up the interpreter's lock at each step, and waits for it again while the event loop is busy: rows
    inserted one by one, or returned one by one, would crawl exactly when there is most to do.
    """
    at = added = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - at >= size:
            part = rows[at : at + size]
            added += connection.run(_insertion(into, len(part[0]), size, end), tuple(chain.from_iterable(part)))
            at += size
    return added


@lru_cache(maxsize=64)
def _insertion(into: str, width: int, size: int, end: str) -> str:
    row = f"({', '.join('?' * width)})"
    return f"{into} VALUES {', '.join([row] * size)}{end}"


def connect(path: str, library: str) -> Connection:
    """Open `path`, made if it is not there, in WAL mode.

    Raises the library's own errors, and `Unavailable` past the deadline.
    """
    connection: Connection = ApswConnection(path) if library == "apsw" else StdlibConnection(path)
    try:
        set_up = _set_up_apsw if library == "apsw" else _set_up_stdlib
        patiently(lambda: set_up(connection))
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up_apsw(connection: Connection) -> None:
    _write_ahead(connection)
    connection.rows("PRAGMA wal_autocheckpoint=2000")


def _set_up_stdlib(connection: Connection) -> None:
    import sqlite3

    global _warned
    connection.rows("PRAGMA wal_autocheckpoint=0")  # the writer checkpoints, with TRUNCATE only: see `reset_is_safe`
    _write_ahead(connection)
    if not _warned and not reset_is_safe(sqlite3.sqlite_version_info):
        _warned = True
        log.warning(
            "SQLite %s of this Python can damage a database when a checkpoint resets its log under other connections "
            "(fixed in 3.51.3); easybus checkpoints with TRUNCATE only, other connections to the file must set PRAGMA "
            "wal_autocheckpoint=0. Without library=sqlite3 in the URL easybus brings a current SQLite.",
            sqlite3.sqlite_version,
        )


def _write_ahead(connection: Connection) -> None:
    mode = connection.rows("PRAGMA journal_mode=WAL")[0][0]
    if mode != "wal":
        raise Refused(f"this database cannot be switched to write-ahead logging (it stays in mode {mode!r})")
    connection.rows("PRAGMA synchronous=FULL")
    connection.rows("PRAGMA journal_size_limit=67108864")
    connection.rows("PRAGMA cache_size=-16000")


def reset_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite carries the fix of 3.51.3."""
    return version >= (3, 51, 3) or version[2] >= _SAFE_BACKPORTS.get((version[0], version[1]), 1 << 30)


def code_of(error: BaseException) -> int:
    """SQLite's primary result code of a library's error; 0: it is none."""
    code = getattr(error, "sqlite_errorcode", None)  # sqlite3
    if code is None:
        code = getattr(error, "result", None)  # apsw
    return code & 0xFF if isinstance(code, int) else 0


def is_busy(error: BaseException) -> bool:
    """Whether another connection stands in the way, and trying again soon helps."""
    return code_of(error) in _AGAIN


def patiently(step: Callable[[], T], deadline: float = DEADLINE) -> T:
    """Run `step` until no other connection stands in its way. Raises `Unavailable` after `deadline` seconds."""
    end, pause = time.monotonic() + deadline, 0.0005
    while True:
        try:
            return step()
        except Exception as error:
            if not is_busy(error):
                raise
            if time.monotonic() >= end:
                raise Unavailable(
                    f"another process holds the database in a transaction, for over {deadline:g} s now"
                ) from error
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 1.5, 0.01)


def translated(error: Exception) -> Exception:
    """A library's error as one of ours; one that is ours already stays."""
    if isinstance(error, EngineError):
        return error
    code = code_of(error)
    if code == _TOOBIG or isinstance(error, OverflowError):
        ours: Exception = TooLarge(f"too large for SQLite: {error}")
    elif code in _PASSING:
        ours = Unavailable(f"SQLite: {error}")
    elif code or isinstance(error, UnicodeError):
        ours = Refused(f"SQLite: {error}")
    elif type(error).__module__ in ("sqlite3", "apsw"):
        ours = Refused(f"SQLite: {type(error).__name__}: {error}")
    else:
        return error
    ours.__cause__ = error
    return ours

"""The connections that one writer holds to its file: opened when needed, closed for a fork.

A file that was removed or replaced while it was open is noticed before anything is written, and its connections are
only abandoned: closing them would make SQLite delete the new file's log, which has the old one's name.
"""

from __future__ import annotations

import os
from typing import Any

from ...errors import Unavailable
from . import schema
from .connect import Connection, connect, log, patiently
from .location import Location
from .reader import Reader

_LOG_LIMIT = 8 << 20  # bytes of write-ahead log before a TRUNCATE checkpoint, where automatic ones are off


class HeldFile:
    """Used on the writer's thread only, but for `reader`."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.reader = Reader(location)
        self.lost = False
        self._connection: Connection | None = None
        self._guest: Connection | None = None
        self._durable: bool | None = None
        self._inode = 0

    def connection(self) -> Connection:
        """The writer's own connection, its schema up to date."""
        if self._connection is None:
            connection = connect(self.location.path, self.location.library)
            try:
                schema.prepare(connection, self.location.path)
                self._inode = os.stat(self.location.path).st_ino
            except BaseException:
                connection.close()
                raise
            self._connection, self._durable = connection, None
        return self._connection

    def begin(self, durable: bool) -> Connection:
        """Begin a transaction as the file's writer; `durable`: its commit is flushed to the disk."""
        connection = self.connection()
        self._check()
        if durable is not self._durable:
            connection.rows("PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL")
            self._durable = durable
        patiently(lambda: connection.rows("BEGIN IMMEDIATE"))
        return connection

    def roll_back(self) -> None:
        """End what `begin` began, if it did."""
        connection = self._connection
        if connection is not None and connection.in_transaction:
            try:
                connection.rows("ROLLBACK")
            except Exception as error:
                log.warning("rolling back on %s: %s", self.location.path, error)

    def begin_guest(self) -> Connection:
        """Begin a caller's transaction, on a connection that may be used on any thread."""
        self.connection()
        self._check()
        connection = self._guest = self._guest or connect(self.location.path, self.location.library)
        patiently(lambda: connection.rows("BEGIN IMMEDIATE"))
        return connection

    def end_guest(self, connection: Connection, commit: bool) -> bool:
        """Commit or roll back; False: no transaction was open any more. What went wrong is not used again."""
        self._guest = None
        try:
            if not connection.in_transaction:
                return False
            try:
                connection.rows("COMMIT" if commit else "ROLLBACK")
            except BaseException:
                if connection.in_transaction:
                    connection.rows("ROLLBACK")
                raise
            connection.reset()
            self._guest = connection
            return True
        finally:
            if self._guest is None:
                connection.abandon() if self.lost else connection.close()

    def data_version(self) -> Any:
        """Another value after every commit of another connection; None where it cannot be told now."""
        try:
            return None if self._connection is None else self._connection.rows("PRAGMA data_version")[0][0]
        except Exception:  # the next group meets the same trouble, and tells
            return None

    def truncate_log(self) -> None:
        """Checkpoint a log that has grown, where SQLite does not by itself (see `connect.reset_is_safe`)."""
        if self.location.library != "sqlite3" or self._connection is None:
            return
        try:
            if os.stat(self.location.path + "-wal").st_size > _LOG_LIMIT:
                self._connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        except Exception as error:
            log.debug("checkpoint of %s put off: %s", self.location.path, error)

    def close(self) -> None:
        """Close all; the next use opens again."""
        for held in (self._guest, self._connection, self.reader):
            try:
                if held is not None:
                    held.abandon() if self.lost else held.close()
            except Exception as error:
                log.warning("closing %s: %s", self.location.path, error)
        self._guest = self._connection = None

    def _check(self) -> None:
        try:
            self.lost = self.lost or os.stat(self.location.path).st_ino != self._inode
        except OSError:
            self.lost = True
        if self.lost:
            raise Unavailable(f"the file {self.location.path} was removed or replaced while it was open; start anew")

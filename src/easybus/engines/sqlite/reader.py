"""A connection that only reads, for what is asked without waiting, on any thread."""

from __future__ import annotations

import threading
from typing import Any

from .connect import Connection, connect, patiently
from .location import Location


class Reader:
    """Opened when it is first asked, and again after `close`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def value(self, statement: str) -> Any:
        """The first value of what is committed, or None."""
        with self._lock:
            if self._connection is None:
                self._connection = connect(self._location.path, self._location.library)
            connection = self._connection
            found = patiently(lambda: connection.rows(statement), 5.0)
        return found[0][0] if found else None

    def close(self) -> None:
        """Close; twice is a no-op."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def abandon(self) -> None:
        """Close as `Connection.abandon` does."""
        with self._lock:
            if self._connection is not None:
                self._connection.abandon()
                self._connection = None

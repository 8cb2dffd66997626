"""One URL's engine: the driver and all four storages on one file."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

from ...clock import Clock
from ...errors import ConfigurationError, NotOpen
from .files import acquire, give_back
from .fused import SqliteFusedDriver
from .guest import guest_transaction, inside_transaction
from .halves import SqliteHalves
from .keys import SqliteKeys
from .letters import SqliteLetters
from .location import Location, check_place
from .outbox import SqliteOutbox
from .writer import Writer


class SqliteEngine:
    """SQLite: embedded, durable, for the processes of one host."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self._location = location
        self._writer: Writer | None = None
        self.driver = SqliteFusedDriver(clock, self.writer)
        self.idempotency = SqliteKeys(clock, self.writer)
        self.dead_letters = SqliteLetters(clock, self.writer)
        self.transactions = SqliteHalves(clock, self.writer)
        self.outbox = SqliteOutbox(clock, self.writer)

    def writer(self) -> Writer:
        """The file's writer. Raises `NotOpen`."""
        if self._writer is None:
            raise NotOpen(f"{self.url} is not open; write: async with bus: …")
        return self._writer

    async def open(self) -> None:
        if self._writer is not None and not self._writer.refuses:
            return
        check_place(self._location)
        writer = acquire(self._location)
        try:
            await asyncio.shield(asyncio.wrap_future(writer.ready))  # others may wait for it too
        except BaseException:
            if give_back(writer):
                writer.stop()
            raise
        self._writer = writer

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and give_back(writer):
            await asyncio.shield(asyncio.wrap_future(writer.stop()))

    def transaction(self, kind: type[Any]) -> AbstractAsyncContextManager[Any] | None:
        library = next(
            (module for base in kind.__mro__ if (module := base.__module__.partition(".")[0]) in ("apsw", "sqlite3")),
            None,
        )
        if library is None:
            return None
        if library != self._location.library:
            wanted = f"within={self._location.library}.Connection"
            raise ConfigurationError(
                f"{self.url} is open with {self._location.library}, and two SQLite libraries on one file lose data: "
                f"write {wanted}, or the URL with ?library={library}"
            )
        return guest_transaction(self.writer())

    @property
    def inside_transaction(self) -> bool:
        """Whether the running code lies inside a `transaction` of this file: a plain send would wait for itself."""
        return self._writer is not None and inside_transaction(self._writer)

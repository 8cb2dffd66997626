"""One URL's engine: the driver and all four storages on one file."""

from __future__ import annotations

import asyncio
import math
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
from .location import Location, check_place, memory_of
from .outbox import SqliteOutbox
from .schema import VERSION_OF, script
from .writer import Writer

_FULL = 2
"""`PRAGMA synchronous`: each commit waits for the disk."""


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

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
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

    def schema(self, since: int = 0) -> str:
        """See `SchemaEngine`."""
        return script(since)

    def schema_version(self) -> str:
        """See `SchemaEngine`."""
        return VERSION_OF

    async def durability(self) -> list[str]:
        """See `AuditedEngine`: the settings are ours, so they are read back, and the disk may be none."""
        found: list[str] = []
        kind = memory_of(self._location)
        if kind is not None:
            found.append(f"it lies in memory ({kind}): all of it is gone when this host stops; put the file on a disk")
        writer = self.writer()
        level = await writer.call(lambda connection: connection.rows("PRAGMA synchronous")[0][0], durable=True)
        if level < _FULL:
            found.append(
                f"commits are not flushed to the disk (PRAGMA synchronous is {level}), so a power failure "
                "may undo what was confirmed; nothing but easybus may set it on the connections of the bus"
            )
        return found

    @property
    def inside_transaction(self) -> bool:
        """Whether the running code lies inside a `transaction` of this file: a plain send would wait for itself."""
        return self._writer is not None and inside_transaction(self._writer)

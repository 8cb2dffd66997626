"""One connection, on which several statements go in one round trip.

    run(step, step, …)  → the statements' results, in their order; what comes after one that fails is not done

A step is a statement and its values; values are written into it as literals, as the protocol's text form asks for:
numbers as they are, bytes as `x'…'` or `_binary'…'`, a list in brackets, `Rows` as what follows VALUES, `Sql` as it is.
The session's `sql_mode` is set so that a backslash escapes in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import asyncmy.converters

from .names import Names

Step: TypeAlias = tuple[Any, ...]
"""A statement, then its values."""

BEGIN: Step = ("START TRANSACTION",)
COMMIT: Step = ("COMMIT",)
ROLLBACK: Step = ("ROLLBACK",)
CLOCK: Step = ("SET @easybus_now = {now}",)
"""The server's time, read once for all rows that the statements after it write."""

_library: Any = asyncmy.converters
_escaped: Callable[[bytes], str] = _library.escape_bytes_prefixed
_IN_TRANSACTION = 1
_LEAST_PACKET = 1 << 20
_SHORT = 256
"""Bytes that are written in hexadecimal: read in a third of the time, but twice as long."""


class Result(NamedTuple):
    """What one statement gave."""

    rows: Sequence[Any]
    changed: int
    """Rows that it found to change, or has added."""
    id: int
    """The first of the ids that it has added."""


class Link:
    """An `asyncmy.Connection` with the names of a bus's tables."""

    def __init__(self, connection: Any, names: Names) -> None:
        self.connection = connection
        self._names = names
        self.largest_packet = _LEAST_PACKET
        self.idle = 0
        """Seconds after which the server hangs up, if nothing happens."""
        self.free_since = 0.0
        """By the loop's clock: since when nobody uses it."""

    @property
    def alive(self) -> bool:
        """Whether it can be used, as far as is known here."""
        connection = self.connection
        return connection.connected and not connection._stream_broken  # it has no other name

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self.connection.server_status & _IN_TRANSACTION)

    async def run(self, *steps: Step) -> list[Result]:
        """Run these, in as few packets as the server takes. Raises the client library's errors."""
        results: list[Result] = []
        connection = self.connection
        for packet in self._packets(steps):
            await connection.query(packet)
            while True:
                given = connection._result  # cursors are made for one statement
                results.append(Result(given.rows or (), given.affected_rows, given.insert_id or 0))
                if not given.has_next:
                    break
                await connection.next_result()
        return results

    def _packets(self, steps: Sequence[Step]) -> Iterator[bytes]:
        packet: list[bytes] = []
        size = 0
        for step in steps:
            text = self._names(step[0])
            if len(step) > 1:
                text %= tuple([literal(value) for value in step[1:]])
            data = text.encode("utf-8", "surrogateescape")
            if packet and size + len(data) > self.largest_packet - 1024:
                yield b";".join(packet)
                packet, size = [], 0
            packet.append(data)
            size += len(data) + 1
        if packet:
            yield b";".join(packet)

    async def one(self, statement: str, *values: Any) -> Result:
        """Run one statement."""
        return (await self.run((statement, *values)))[0]

    async def value(self, statement: str, *values: Any) -> Any:
        """The first value of its first row; None where there is none."""
        rows = (await self.one(statement, *values)).rows
        return rows[0][0] if rows else None

    def cut(self) -> None:
        """Disconnect at once; a call under way fails."""
        transport = self.connection._transport  # its own close waits until all is written
        if transport is not None:
            with contextlib.suppress(Exception):
                transport.abort()
        self.connection.close()


class Sql(str):
    """A part of a statement."""


class Rows(NamedTuple):
    """Rows of an INSERT, each written by one template."""

    template: str
    rows: Sequence[tuple[Any, ...]]


def literal(value: Any) -> str:
    """A value as SQL writes it."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'" if len(value) <= _SHORT else _escaped(value)
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return repr(value)
    if value is None:
        return "NULL"
    if isinstance(value, Sql):
        return value
    if isinstance(value, str):
        return _escaped(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Rows):
        return ",".join([value.template % tuple(map(literal, row)) for row in value.rows])
    return f"({','.join([literal(one) for one in value])})"

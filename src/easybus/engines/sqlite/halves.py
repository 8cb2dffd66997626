"""Halves: messages stored before their local work. A half changes only by (id, token)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock
from ..contract import Half
from .connect import Connection, Row
from .stamps import from_microseconds, stamp_at, to_microseconds
from .writer import WRITE, Writer

_COLUMNS = "id, service, topic, body, token, due_at, checks, parked, created_at, error"
_STANDS = 'SELECT 1 FROM "easybus_half" WHERE id = ?'
_STORE = (  # takes over what stands under the id, whose checks and age stay
    f'INSERT INTO "easybus_half" ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET '  # noqa: S608
    "service = excluded.service, topic = excluded.topic, body = excluded.body, token = excluded.token, "
    "due_at = excluded.due_at, parked = excluded.parked, error = excluded.error"
)
_REMOVE = 'DELETE FROM "easybus_half" WHERE id = ? AND token = ?'
_POSTPONE = (
    'UPDATE "easybus_half" SET due_at = ?, checks = checks + ?, parked = ?, error = ? WHERE id = ? AND token = ?'
)
_DUE = (
    f'SELECT {_COLUMNS} FROM "easybus_half" WHERE (service, topic) IN (VALUES %s) AND due_at <= ? '  # noqa: S608
    "ORDER BY due_at, key LIMIT ?"
)
_CLAIM = 'UPDATE "easybus_half" SET token = ?, due_at = ? WHERE id = ?'
_FETCH = f'SELECT {_COLUMNS} FROM "easybus_half" WHERE id = ?'  # noqa: S608
_FIND = f'SELECT {_COLUMNS} FROM "easybus_half" WHERE ? IS NULL OR service = ? ORDER BY created_at, key LIMIT ?'  # noqa: S608


class SqliteHalves:
    """The transaction storage."""

    def __init__(self, clock: Clock, writer: Callable[[], Writer]) -> None:
        self._clock = clock
        self._writer = writer

    def _now(self) -> int:
        return stamp_at(self._clock.time())

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        def work(connection: Connection) -> tuple[str, bool]:
            now, token = self._now(), _token()
            stood = bool(connection.rows(_STANDS, (half.id,)))
            row = (
                half.id,
                half.service,
                half.topic,
                half.body,
                token,
                now + to_microseconds(due_in),
                half.checks,
                half.parked,
                to_microseconds(half.created) if half.created else now,
                half.error,
            )
            connection.run(_STORE, row)
            return token, stood

        return await self._writer().call(work, durable=True)

    async def remove(self, id: str, token: str) -> bool:
        return await self._writer().call(lambda connection: connection.run(_REMOVE, (id, token)) == 1, durable=True)

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        def work(connection: Connection) -> bool:
            due = self._now() + to_microseconds(delay)
            return connection.run(_POSTPONE, (due, int(checked), parked, error, id, token)) == 1

        return await self._writer().call(work, durable=True)

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        if not scopes:
            return []
        due = _DUE % ", ".join(["(?, ?)"] * len(scopes))
        names = [name for scope in scopes for name in scope]

        def look(connection: Connection) -> Any:
            return WRITE if connection.rows(due, (*names, self._now(), 1)) else []

        def work(connection: Connection) -> list[Half]:
            return [
                self._claim(connection, _read(row), lease) for row in connection.rows(due, (*names, self._now(), limit))
            ]

        return await self._writer().call(work, durable=True, peek=look)

    async def claim(self, id: str, lease: float) -> Half | None:
        def work(connection: Connection) -> Half | None:
            found = connection.rows(_FETCH, (id,))
            return self._claim(connection, _read(found[0]), lease) if found else None

        return await self._writer().call(work, durable=True)

    def _claim(self, connection: Connection, half: Half, lease: float) -> Half:
        due = self._now() + to_microseconds(lease)
        half.token, half.due = _token(), from_microseconds(due)
        connection.run(_CLAIM, (half.token, due, half.id))
        return half

    async def fetch(self, id: str) -> Half | None:
        def look(connection: Connection) -> Half | None:
            found = connection.rows(_FETCH, (id,))
            return _read(found[0]) if found else None

        return await self._writer().read(look)

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        return await self._writer().read(
            lambda connection: [_read(row) for row in connection.rows(_FIND, (service, service, limit))]
        )


def _token() -> str:
    return os.urandom(12).hex()


def _read(row: Row) -> Half:
    return Half(
        id=row[0],
        service=row[1],
        topic=row[2],
        body=row[3],
        token=row[4],
        due=from_microseconds(row[5]),
        checks=row[6],
        parked=bool(row[7]),
        created=from_microseconds(row[8]),
        error=row[9],
    )

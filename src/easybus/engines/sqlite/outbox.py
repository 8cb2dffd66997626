"""The outbox: rows that callers' transactions commit, for relays to publish.

Which rows were committed together? SQLite has one writer at a time, and ids only grow. Before a caller's rows are
written, the last *committed* id is read on a connection of our own; rows of this process beyond it, as the caller's
connection sees them, can only be the caller's own uncommitted ones, so a new row takes over their transaction's name:

    send ─ committed: 41 ─ nobody beyond 41       → row 42, transaction A
    send ─ committed: 41 ─ row 42 is mine, of A   → row 43, transaction A          COMMIT
    send ─ committed: 43 ─ nobody beyond 43       → row 44, transaction B

Rows of one transaction always share its name. (Two transactions of one process may come to share one, if one commits
between the other's reading and writing: then they go out one after the other, which is harmless.) A claim takes whole
transactions, oldest first; so the order within a transaction is kept by any number of relays. Position is the row's id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock, wait
from ..contract import OutboxRow, Publication
from . import schema
from .connect import Connection, Row
from .stamps import from_microseconds, stamp_at, to_microseconds
from .writer import WRITE, Writer

_COLUMNS = (
    'id, "transaction", to_topic, name, body, route_key, delay, dedupe_id, require, token, failures, error, created_at'
)
_COMMITTED = "SELECT seq FROM sqlite_sequence WHERE name = 'easybus_outbox'"
_WRITE_ROW = (  # the next row of the caller's transaction; `+service`: by the ids, from the last one down
    'INSERT INTO "easybus_outbox" ("transaction", service, writer, to_topic, name, body, route_key, delay, dedupe_id, '
    'require, created_at, origin) VALUES (coalesce((SELECT "transaction" FROM "easybus_outbox" WHERE id > ? '
    "AND writer = ? AND +service = ? ORDER BY id DESC LIMIT 1), ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# `+column` keeps the planner off the index of free rows, where it would walk the whole backlog for each transaction.
FREE = (  # the transactions of the oldest due rows, of which no row is claimed or backed off; each is looked at once
    'SELECT "transaction" FROM (SELECT "transaction", min(id) AS first FROM (SELECT "transaction", id '
    'FROM "easybus_outbox" WHERE service = ? AND parked = 0 AND due_at <= ? ORDER BY id LIMIT ?) '
    'GROUP BY "transaction") AS due WHERE NOT EXISTS (SELECT 1 FROM "easybus_outbox" AS other '
    'WHERE other."transaction" = due."transaction" AND +other.service = ? AND +other.parked = 0 '
    "AND other.due_at > ?) ORDER BY first"
)
_CLAIM = (
    'UPDATE "easybus_outbox" SET token = ?, due_at = ? WHERE +service = ? AND +parked = 0 '  # noqa: S608
    f'AND "transaction" IN (SELECT value FROM json_each(?)) RETURNING {_COLUMNS}'
)
_DELETE = 'DELETE FROM "easybus_outbox" WHERE id = ? AND token = ?'
_RELEASE = (
    "UPDATE \"easybus_outbox\" SET token = '', due_at = ?, failures = failures + ?, error = ? "
    'WHERE "transaction" = ? AND token = ?'
)
_PARK = (
    "UPDATE \"easybus_outbox\" SET token = '', due_at = 0, parked = 1, failures = failures + 1, error = ? "
    'WHERE "transaction" = ? AND token = ?'
)
_UNPARK = (
    "UPDATE \"easybus_outbox\" SET parked = 0, due_at = 0, token = '', error = '' "
    'WHERE "transaction" = ? AND parked = 1'
)
_FIND = (
    f'SELECT {_COLUMNS} FROM "easybus_outbox" WHERE (? IS NULL OR service = ?) '  # noqa: S608
    "AND (? = 0 OR parked = 1) ORDER BY id LIMIT ?"
)

_CHANGED = "\0outbox"  # no queue has this name


class SqliteOutbox:
    """The outbox storage."""

    def __init__(self, clock: Clock, writer: Callable[[], Writer]) -> None:
        self._clock = clock
        self._writer = writer
        self._name = os.urandom(8).hex()

    @property
    def library(self) -> str:
        """The SQLite library that this process opened the file with: a caller's connection must be of the same."""
        return self._writer().location.library

    @property
    def url(self) -> str:
        """Which database this is, for errors."""
        return self._writer().location.url

    def _now(self) -> int:
        return stamp_at(self._clock.time())

    def statements(self, service: str, batch: Sequence[Publication]) -> list[tuple[str, tuple[Any, ...]]]:
        committed = self._writer().reader.value(_COMMITTED) or 0
        transaction, now = os.urandom(12).hex(), self._now()
        return [
            (
                _WRITE_ROW,
                (
                    committed,
                    self._name,
                    service,
                    transaction,
                    service,
                    self._name,
                    int(item.to_topic),
                    item.name,
                    item.body,
                    item.route_key,
                    item.delay,
                    item.dedupe_id,
                    int(item.require),
                    now,
                    f"{transaction}.{at}",  # so that a statement run twice fails
                ),
            )
            for at, item in enumerate(batch)
        ]

    def identity(self) -> tuple[str, str]:
        return schema.IDENTITY, self._writer().identity

    async def claim(self, service: str, limit: int, lease: float) -> list[OutboxRow]:
        def look(connection: Connection) -> Any:
            return WRITE if connection.rows(FREE, (service, now := self._now(), 1, service, now)) else []

        def work(connection: Connection) -> list[OutboxRow]:
            now, token = self._now(), os.urandom(12).hex()
            free = [row[0] for row in connection.rows(FREE, (service, now, limit, service, now))]
            claimed = connection.rows(_CLAIM, (token, now + to_microseconds(lease), service, json.dumps(free)))
            place = {transaction: at for at, transaction in enumerate(free)}
            return [_read(row) for row in sorted(claimed, key=lambda row: (place[row[1]], row[0]))]

        return await self._writer().call(work, durable=True, peek=look)

    async def delete(self, rows: Sequence[tuple[str, str]]) -> int:
        numbered = [(int(row), token) for row, token in rows]
        return await self._writer().call(
            lambda connection: sum(connection.run(_DELETE, row) for row in numbered), durable=True
        )

    async def release(self, transaction: str, token: str, delay: float, error: str = "") -> None:
        writer = self._writer()

        def work(connection: Connection) -> None:
            due = self._now() + to_microseconds(delay)
            connection.run(_RELEASE, (due, int(bool(error)), error, transaction, token))
            writer.touched.add(_CHANGED)

        await writer.call(work)

    async def park(self, transaction: str, token: str, error: str) -> None:
        await self._writer().call(lambda connection: connection.run(_PARK, (error, transaction, token)), durable=True)

    async def unpark(self, transaction: str) -> bool:
        writer = self._writer()

        def work(connection: Connection) -> bool:
            writer.touched.add(_CHANGED)
            return connection.run(_UNPARK, (transaction,)) > 0

        return await writer.call(work, durable=True)

    async def find(self, service: str | None = None, *, parked: bool = False, limit: int = 100) -> list[OutboxRow]:
        return await self._writer().read(
            lambda connection: [_read(row) for row in connection.rows(_FIND, (service, service, int(parked), limit))]
        )

    async def wait(self, seconds: float) -> None:
        writer = self._writer()
        watcher = writer.watchers.watch(_CHANGED)
        try:
            await writer.read(lambda connection: None)  # the thread begins to look abroad
            await wait(self._clock, watcher, seconds, poll=True)
        finally:
            writer.watchers.forget(_CHANGED, watcher)


def _read(row: Row) -> OutboxRow:
    return OutboxRow(
        id=str(row[0]),
        transaction=row[1],
        position=row[0],
        publication=Publication(
            to_topic=bool(row[2]),
            name=row[3],
            body=row[4],
            route_key=row[5],
            delay=row[6],
            dedupe_id=row[7],
            require=bool(row[8]),
        ),
        token=row[9],
        failures=row[10],
        error=row[11],
        created=from_microseconds(row[12]),
    )

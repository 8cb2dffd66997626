"""The outbox: rows that callers' transactions commit, for relays to publish.

`transaction` is the server's own number of the caller's transaction, the same for all its sends, within savepoints
too; position is the row's id, which grows within a transaction. All rows of a transaction appear at once.

A claim locks the rows of whole free transactions in the order of their ids. Two claims at once wait for each other on
the first row that they share; the second then finds all rows of that transaction claimed, and takes none of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ...clock import Clock, wait
from ..contract import OutboxRow, Publication
from .connections import Connection
from .keys import FOREVER
from .names import escape, unescape
from .session import Session
from .waking import OUTBOX, POLL

_COLUMNS = (
    "id, transaction, to_topic, name, body, route_key, delay, dedupe_id, require, token, failures, error, "
    "extract(epoch FROM created_at)::float8 AS created"
)
_WRITE = (  # the next rows of the caller's transaction, in their order
    "INSERT INTO {outbox} (service, origin, to_topic, name, body, route_key, delay, dedupe_id, require) "
    "SELECT $1, origin, to_topic, name, body, route_key, delay, dedupe_id, require FROM unnest($2::text[], $3::bool[], "
    "$4::text[], $5::bytea[], $6::text[], $7::float8[], $8::text[], $9::bool[]) WITH ORDINALITY "
    "AS given(origin, to_topic, name, body, route_key, delay, dedupe_id, require, place) ORDER BY place"
)
# `service || ''`, `id + 0` and the scalar look-up keep the planner off other indexes and off a join, which would walk
# through the whole backlog.
_CLAIM = (  # the whole transactions of the oldest due rows, of which none is claimed or backed off; each looked at once
    "WITH due AS MATERIALIZED (SELECT transaction FROM {outbox} WHERE service = $1 AND NOT parked "
    "AND due_at <= now() ORDER BY id LIMIT $2), "
    "one AS MATERIALIZED (SELECT DISTINCT transaction FROM due), "
    "free AS MATERIALIZED (SELECT transaction FROM one WHERE (SELECT 1 FROM {outbox} AS other "
    "WHERE other.transaction = one.transaction AND other.service || '' = $1 AND NOT other.parked "
    "AND other.due_at > now() LIMIT 1) IS NULL), "
    "held AS MATERIALIZED (SELECT id FROM {outbox} "
    "WHERE transaction = ANY (ARRAY(SELECT transaction FROM free)) AND service || '' = $1 AND NOT parked "
    "AND due_at <= now() ORDER BY id + 0 FOR UPDATE) "
    "UPDATE {outbox} SET token = $3, due_at = now() + make_interval(secs => $4) "
    f"WHERE id = ANY (ARRAY(SELECT id FROM held)) RETURNING {_COLUMNS}"
)
_DELETE = "DELETE FROM {outbox} WHERE id = ANY ($1::bigint[]) AND token = $2"
_RELEASE = (
    "UPDATE {outbox} SET token = '', due_at = now() + make_interval(secs => $3), failures = failures + $4, error = $5 "
    "WHERE transaction = $1 AND token = $2"
)
_PARK = (
    "UPDATE {outbox} SET token = '', due_at = '-infinity', parked = true, failures = failures + 1, error = $3 "
    "WHERE transaction = $1 AND token = $2"
)
_UNPARK = (
    "UPDATE {outbox} SET parked = false, due_at = '-infinity', token = '', error = '' WHERE transaction = $1 AND parked"
)
_FIND = (
    f"SELECT {_COLUMNS} FROM {{outbox}} WHERE ($1::text IS NULL OR service = $1) "
    "AND (parked OR NOT $2) ORDER BY id LIMIT $3"
)


class PostgresqlOutbox:
    """The outbox storage."""

    def __init__(self, clock: Clock, session: Session) -> None:
        self._clock = clock
        self._session = session
        self._names = session.names

    @property
    def url(self) -> str:
        """Which database this is, for errors."""
        return self._session.location.url

    def statements(self, service: str, batch: Sequence[Publication]) -> list[tuple[str, tuple[Any, ...]]]:
        if not batch:
            return []
        origin = os.urandom(12).hex()
        columns = (
            [f"{origin}.{at}" for at in range(len(batch))],  # so that a statement run twice fails
            [item.to_topic for item in batch],
            [escape(item.name) for item in batch],
            [item.body for item in batch],
            [escape(item.route_key) for item in batch],
            [item.delay for item in batch],
            [escape(item.dedupe_id) for item in batch],
            [item.require for item in batch],
        )
        return [(self._names(_WRITE), (escape(service), *columns))]

    def identity(self) -> tuple[str, str]:
        return self._session.identity

    async def claim(self, service: str, limit: int, lease: float) -> list[OutboxRow]:
        given = (escape(service), limit, os.urandom(12).hex(), min(lease, FOREVER))

        async def work(connection: Connection) -> list[Any]:
            return await connection.fetch(self._names(_CLAIM), *given)

        rows = await self._session.connections.run(work)
        rows.sort(key=lambda row: row["id"])
        place: dict[str, int] = {}
        for row in rows:
            place.setdefault(row["transaction"], row["id"])
        rows.sort(key=lambda row: place[row["transaction"]])
        return [_read(row) for row in rows]

    async def delete(self, rows: Sequence[tuple[str, str]]) -> int:
        by_token: dict[str, list[int]] = defaultdict(list)
        for row, token in rows:
            by_token[token].append(int(row))
        return sum([await self._change(_DELETE, ids, token) for token, ids in by_token.items()])

    async def release(self, transaction: str, token: str, delay: float, error: str = "") -> None:
        due_in = min(delay, FOREVER)
        await self._change(_RELEASE, transaction, token, due_in, int(bool(error)), escape(error))
        self._session.waker.touch([OUTBOX])

    async def park(self, transaction: str, token: str, error: str) -> None:
        await self._change(_PARK, transaction, token, escape(error))

    async def unpark(self, transaction: str) -> bool:
        done = await self._change(_UNPARK, transaction) > 0
        self._session.waker.touch([OUTBOX])
        return done

    async def _change(self, statement: str, *given: Any) -> int:
        done: str = await self._session.connections.run(
            lambda connection: connection.execute(self._names(statement), *given)
        )
        return int(done.rpartition(" ")[2])

    async def find(self, service: str | None = None, *, parked: bool = False, limit: int = 100) -> list[OutboxRow]:
        given = (None if service is None else escape(service), parked, limit)

        async def work(connection: Connection) -> list[OutboxRow]:
            return [_read(row) for row in await connection.fetch(self._names(_FIND), *given)]

        return await self._session.connections.run(work)

    async def wait(self, seconds: float) -> None:
        # Callers' commits tell nobody: a NOTIFY in their transactions would make them wait for each other.
        watchers = self._session.waker.watchers
        watcher = watchers.watch(OUTBOX)
        try:
            await wait(self._clock, watcher, min(seconds, POLL))
        finally:
            watchers.forget(OUTBOX, watcher)


def _read(row: Any) -> OutboxRow:
    return OutboxRow(
        id=str(row["id"]),
        transaction=row["transaction"],
        position=row["id"],
        publication=Publication(
            to_topic=row["to_topic"],
            name=unescape(row["name"]),
            body=row["body"],
            route_key=unescape(row["route_key"]),
            delay=row["delay"],
            dedupe_id=unescape(row["dedupe_id"]),
            require=row["require"],
        ),
        token=row["token"],
        failures=row["failures"],
        error=unescape(row["error"]),
        created=row["created"],
    )

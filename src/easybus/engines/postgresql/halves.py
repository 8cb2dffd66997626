"""Halves: messages stored before their local work. A half changes only by (id, token)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..contract import Half
from .connections import Connection
from .keys import FOREVER
from .names import escape, indexed, unescape
from .session import Session

_COLUMNS = (
    "half.id, service, topic, body, token, extract(epoch FROM due_at)::float8 AS due, checks, parked, "
    "extract(epoch FROM created_at)::float8 AS created, error"
)
_STORE = (  # takes over what stands under the id, whose checks and age stay
    "INSERT INTO {half} (place, id, service, topic, body, token, due_at, checks, parked, created_at, error) "
    "VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7), $8, $9, "
    "coalesce(to_timestamp(nullif($10::float8, 0)), clock_timestamp()), $11) ON CONFLICT (place) DO UPDATE SET "
    "service = excluded.service, topic = excluded.topic, body = excluded.body, token = excluded.token, "
    "due_at = excluded.due_at, parked = excluded.parked, error = excluded.error RETURNING xmax <> 0"
)
_REMOVE = "DELETE FROM {half} WHERE place = $1 AND token = $2"
_POSTPONE = (
    "UPDATE {half} SET due_at = now() + make_interval(secs => $3), checks = checks + $4, parked = $5, error = $6 "
    "WHERE place = $1 AND token = $2"
)
_CLAIM_DUE = (  # each half to one checker, under a fresh token
    "WITH due AS MATERIALIZED (SELECT key, due_at AS since FROM {half} "
    "WHERE (service, topic) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND due_at <= now() "
    "ORDER BY due_at, key LIMIT $3 FOR UPDATE SKIP LOCKED) "
    "UPDATE {half} AS half SET token = $4 || half.key, due_at = now() + make_interval(secs => $5) FROM due "
    f"WHERE half.key = due.key RETURNING due.since, half.key, {_COLUMNS}"
)
_CLAIM = (
    "UPDATE {half} AS half SET token = $2, due_at = now() + make_interval(secs => $3) WHERE place = $1 "
    f"RETURNING {_COLUMNS}"
)
_FETCH = f"SELECT {_COLUMNS} FROM {{half}} AS half WHERE place = $1"
_FIND = (
    f"SELECT {_COLUMNS} FROM {{half}} AS half WHERE $1::text IS NULL OR service = $1 ORDER BY created_at, key LIMIT $2"
)


class PostgresqlHalves:
    """The transaction storage."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = session.names

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        token = _token()
        given = (
            indexed(half.id),
            escape(half.id),
            escape(half.service),
            escape(half.topic),
            half.body,
            token,
            min(due_in, FOREVER),
            half.checks,
            half.parked,
            half.created,
            escape(half.error),
        )
        stood = await self._session.connections.run(lambda connection: connection.fetchval(self._names(_STORE), *given))
        return token, stood

    async def remove(self, id: str, token: str) -> bool:
        return await self._change(_REMOVE, indexed(id), token)

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        due_in = min(delay, FOREVER)
        return await self._change(_POSTPONE, indexed(id), token, due_in, int(checked), parked, escape(error))

    async def _change(self, statement: str, *given: Any) -> bool:
        done: str = await self._session.connections.run(
            lambda connection: connection.execute(self._names(statement), *given)
        )
        return done.endswith(" 1")

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        if not scopes:
            return []
        services, topics = [escape(one) for one, _ in scopes], [escape(one) for _, one in scopes]
        given = (services, topics, limit, f"{_token()}-", min(lease, FOREVER))

        async def work(connection: Connection) -> list[Half]:
            found = await connection.fetch(self._names(_CLAIM_DUE), *given)
            return [_read(row) for row in sorted(found, key=lambda row: (row["since"], row["key"]))]

        return await self._session.connections.run(work)

    async def claim(self, id: str, lease: float) -> Half | None:
        return await self._one(_CLAIM, indexed(id), _token(), min(lease, FOREVER))

    async def fetch(self, id: str) -> Half | None:
        return await self._one(_FETCH, indexed(id))

    async def _one(self, statement: str, *given: Any) -> Half | None:
        row = await self._session.connections.run(
            lambda connection: connection.fetchrow(self._names(statement), *given)
        )
        return None if row is None else _read(row)

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        given = (None if service is None else escape(service), limit)
        rows = await self._session.connections.run(lambda connection: connection.fetch(self._names(_FIND), *given))
        return [_read(row) for row in rows]


def _token() -> str:
    return os.urandom(12).hex()


def _read(row: Any) -> Half:
    return Half(
        id=unescape(row["id"]),
        service=unescape(row["service"]),
        topic=unescape(row["topic"]),
        body=row["body"],
        token=row["token"],
        due=row["due"],
        checks=row["checks"],
        parked=row["parked"],
        created=row["created"],
        error=unescape(row["error"]),
    )

"""Clients of PostgreSQL: one statement for a hundred rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TABLE = (
    "DROP TABLE IF EXISTS clients; CREATE TABLE clients (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
    "owner bigint NOT NULL DEFAULT 0, body bytea NOT NULL)"
)
_INSERT = "INSERT INTO clients (body) SELECT unnest({0}::bytea[])"
_CLAIM = (
    "UPDATE clients SET owner = 1 WHERE id = ANY (ARRAY(SELECT id FROM clients WHERE owner = 0 ORDER BY id "
    "LIMIT {0}::bigint FOR UPDATE SKIP LOCKED)) RETURNING id, body"
)
_ACK = "DELETE FROM clients WHERE id = ANY ({0}::bigint[])"


class Asyncpg:
    """asyncpg."""

    async def open(self, url: str) -> None:
        import asyncpg

        self._connection: Any = await asyncpg.connect(url)
        await self._connection.execute(_TABLE)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        await self._connection.execute(_INSERT.format("$1"), bodies)

    async def consume(self, limit: int) -> int:
        rows = await self._connection.fetch(_CLAIM.format("$1"), limit)
        await self._connection.execute(_ACK.format("$1"), [row[0] for row in rows])
        return len(rows)

    async def close(self) -> None:
        await self._connection.close()


class Psycopg:
    """psycopg 3 with its C part, binary."""

    async def open(self, url: str) -> None:
        import psycopg

        self._connection: Any = await psycopg.AsyncConnection.connect(url, autocommit=True)
        for statement in _TABLE.split(";"):
            await self._connection.execute(statement)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        await self._connection.execute(_INSERT.format("%b"), (list(bodies),), prepare=True)

    async def consume(self, limit: int) -> int:
        async with self._connection.cursor(binary=True) as cursor:
            await cursor.execute(_CLAIM.format("%b"), (limit,), prepare=True)
            rows = await cursor.fetchall()
        await self._connection.execute(_ACK.format("%b"), ([row[0] for row in rows],), prepare=True)
        return len(rows)

    async def close(self) -> None:
        await self._connection.close()


CLIENTS = {"asyncpg": Asyncpg, "psycopg": Psycopg}

"""Clients of MariaDB: statements of a hundred rows, claimed and acked in a transaction each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

_CLAIM = "SELECT id, body FROM clients WHERE owner = 0 ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"


class Asyncmy:
    """asyncmy."""

    library = "asyncmy"

    async def open(self, url: str) -> None:
        library: Any = importlib.import_module(self.library)
        place = urlsplit(url)
        self._connection = await library.connect(
            host=place.hostname or "",
            port=place.port or 3306,
            user=place.username or "",
            password=unquote(place.password or ""),
            db=place.path.strip("/"),
            autocommit=True,
        )
        await self._run(
            "CREATE OR REPLACE TABLE clients (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, "
            "owner BIGINT NOT NULL DEFAULT 0, body LONGBLOB NOT NULL, KEY free (owner, id)) ENGINE=InnoDB"
        )

    async def _run(self, statement: str, *given: Any) -> Sequence[Any]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement, given or None)
            return await cursor.fetchall() if cursor.description else ()

    async def publish(self, bodies: Sequence[bytes]) -> None:
        # Written in, as our driver does: aiomysql cannot take bytes with the present PyMySQL.
        await self._run("INSERT INTO clients (body) VALUES " + ",".join(f"(X'{body.hex()}')" for body in bodies))

    async def consume(self, limit: int) -> int:
        await self._connection.begin()
        ids = [row[0] for row in await self._run(_CLAIM, limit)]
        listed = ",".join(map(str, ids))
        await self._run(f"UPDATE clients SET owner = 1 WHERE id IN ({listed})")
        await self._connection.commit()
        await self._run(f"DELETE FROM clients WHERE id IN ({listed})")
        return len(ids)

    async def close(self) -> None:
        await self._connection.ensure_closed()


class Aiomysql(Asyncmy):
    """aiomysql, pure Python on PyMySQL."""

    library = "aiomysql"

    async def close(self) -> None:
        self._connection.close()


CLIENTS = {"asyncmy": Asyncmy, "aiomysql": Aiomysql}

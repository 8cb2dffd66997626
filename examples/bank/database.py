"""The bank's database, which is the bus's too: the same few calls for the libraries of three engines."""

from __future__ import annotations

import abc
import contextlib
import itertools
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

TABLES = (
    "CREATE TABLE account (number INTEGER PRIMARY KEY, cents BIGINT NOT NULL)",
    "CREATE TABLE transfer (number INTEGER PRIMARY KEY, teller INTEGER NOT NULL)",
    # No index keeps a second row out of these: one that is there was written.
    "CREATE TABLE booking (number INTEGER NOT NULL)",
    "CREATE TABLE statement_line (number INTEGER NOT NULL)",
)


class Database(abc.ABC):
    """Statements are written with `?` for a value."""

    Connection: type[Any]
    """What handlers are given."""
    lost: tuple[type[Exception], ...]
    """What its library raises when the server is away."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abc.abstractmethod
    async def connect(self) -> Any:
        """A connection of one's own."""

    @abc.abstractmethod
    async def close(self, db: Any) -> None:
        """Disconnect, whatever state it is in."""

    @abc.abstractmethod
    async def execute(self, db: Any, statement: str, *values: int | str) -> None:
        """Run one statement."""

    @abc.abstractmethod
    async def fetch(self, db: Any, statement: str, *values: int | str) -> list[tuple[Any, ...]]:
        """The rows that it gives."""

    @contextlib.asynccontextmanager
    async def transaction(self, db: Any) -> AsyncGenerator[None]:
        """Committed at the end of the block, rolled back if an exception leaves it."""
        await self._step(db, "BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(*self.lost):
                await self._step(db, "ROLLBACK")
            raise
        await self._step(db, "COMMIT")

    async def _step(self, db: Any, step: str) -> None:
        await self.execute(db, step)


class Sqlite(Database):
    """apsw, which is what the bus has the file open with."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import apsw

        self.Connection = apsw.Connection
        self.lost = (apsw.Error,)

    async def connect(self) -> Any:
        db = self.Connection(self.url.removeprefix("sqlite:///"))
        db.set_busy_timeout(30_000)
        return db

    async def close(self, db: Any) -> None:
        db.close()

    async def execute(self, db: Any, statement: str, *values: int | str) -> None:
        db.execute(statement, values)

    async def fetch(self, db: Any, statement: str, *values: int | str) -> list[tuple[Any, ...]]:
        return list(db.execute(statement, values))

    async def _step(self, db: Any, step: str) -> None:
        await self.execute(db, "BEGIN IMMEDIATE" if step == "BEGIN" else step)  # a writer from its first moment


class Postgresql(Database):
    """asyncpg."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import asyncpg

        self.Connection = asyncpg.Connection
        self.lost = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
        self._library: Any = asyncpg

    async def connect(self) -> Any:
        return await self._library.connect(self.url, timeout=5, command_timeout=10)

    async def close(self, db: Any) -> None:
        db.terminate()

    async def execute(self, db: Any, statement: str, *values: int | str) -> None:
        await db.execute(_numbered(statement), *values)

    async def fetch(self, db: Any, statement: str, *values: int | str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await db.fetch(_numbered(statement), *values)]


class Mysql(Database):
    """asyncmy."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import asyncmy

        self.Connection = asyncmy.Connection
        self.lost = (asyncmy.errors.MySQLError, OSError, RuntimeError)
        self._library: Any = asyncmy

    async def connect(self) -> Any:
        at = urlsplit(self.url)
        return await self._library.connect(
            host=at.hostname,
            port=at.port or 3306,
            user=at.username,
            password=at.password or "",
            database=at.path.strip("/"),
            autocommit=True,
            connect_timeout=5,
            read_timeout=10,
        )

    async def close(self, db: Any) -> None:
        db.close()

    async def execute(self, db: Any, statement: str, *values: int | str) -> None:
        await self.fetch(db, statement, *values)

    async def fetch(self, db: Any, statement: str, *values: int | str) -> list[tuple[Any, ...]]:
        async with db.cursor() as cursor:
            await cursor.execute(statement.replace("?", "%s"), values or None)
            return list(await cursor.fetchall())


KINDS: dict[str, type[Database]] = {"sqlite": Sqlite, "postgresql": Postgresql, "mysql": Mysql}


def open_database(url: str) -> Database:
    """The database of the bus with this URL."""
    return KINDS[urlsplit(url).scheme](url)


def _numbered(statement: str) -> str:
    """With $1, $2 …, as PostgreSQL has it."""
    numbers = itertools.count(1)
    return "".join(f"${next(numbers)}" if letter == "?" else letter for letter in statement)

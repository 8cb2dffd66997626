"""Statements of the bus's own in the round trips of SQLAlchemy's BEGIN and COMMIT, on asyncpg.

    BEGIN; ours → the handler's statements → ours; COMMIT       (ours fails: ROLLBACK, and the commit's call raises)

SQLAlchemy begins and commits by a transaction of asyncpg's, and that by `execute("BEGIN…;")` and `execute("COMMIT;")`
of its connection. Such a transaction is led through a stand-in for the connection, which puts ours behind the one and
before the other. None of this is promised by the two libraries, so it is looked at: only where BEGIN came this way is
COMMIT trusted to, and whether it came can be asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

__all__ = ["Ours", "before_commit", "begin"]

_ALONG = "easybus along"
"""The key, in what SQLAlchemy keeps beside a connection, of its stand-in."""


class Ours:
    """Our statements in a connection's transactions."""

    def __init__(self) -> None:
        self.first = ""
        """To go with the next BEGIN; empty: it went."""
        self.last = ""
        """To go with the next COMMIT; empty: it went."""
        self.prepared: dict[str, Any] = {}
        """Last statements, by their text; cleared after a failure: they may be there no more."""

    def complete(self, statement: str, params: Sequence[Any]) -> bool:
        """Run this, which fails where it would change no row, with the COMMIT. False: it is not prepared here."""
        prepared = self.prepared.get(statement)
        if prepared is None:
            return False
        self.last = f'EXECUTE "{prepared.get_name()}"({",".join(map(repr, params))});'
        return True

    def prepare(self, connection: Any, statement: str) -> bool:
        """Prepare a last statement on `connection`, SQLAlchemy's own; False: the user names what is prepared, or lets
        nothing be, because of a pooler."""
        if connection._prepared_statement_cache is None or connection._prepared_statement_name_func() is not None:
            return False
        if statement not in self.prepared:

            async def prepared(raw: Any) -> Any:
                return await raw.prepare(statement)

            self.prepared[statement] = connection.run_async(prepared)
        return True


class _Along:
    """A stand-in for an asyncpg connection, for its transactions."""

    __slots__ = ("inner", "ours")

    inner: Any
    ours: Ours

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "ours", Ours())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def transaction(self, **options: Any) -> Any:
        made = self.inner.transaction(**options)
        if hasattr(made, "_connection"):
            made._connection = self
        return made

    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        ours = self.ours
        if ours.first and query.startswith("BEGIN"):
            query, ours.first = f"{query}{ours.first}", ""
        elif ours.last and query.startswith("COMMIT"):
            query, ours.last = f"{ours.last}{query}", ""
            try:
                return await self.inner.execute(query, *args, **options)
            except Exception:
                with contextlib.suppress(Exception):  # if it still is open: SQLAlchemy takes it for ended
                    await self.inner.execute("ROLLBACK;")
                raise
        return await self.inner.execute(query, *args, **options)


def begin(connection: Any, info: dict[str, Any], statement: str) -> Ours | None:
    """Begin a transaction of `connection`, SQLAlchemy's own to asyncpg, with `statement` as its first.

    `info` is what SQLAlchemy keeps beside the connection. None: it took two round trips, and its COMMIT cannot be led
    either.
    """
    raw = connection._connection
    along: _Along | None = info.get(_ALONG)
    if along is None or along.inner is not raw:
        along = info[_ALONG] = _Along(raw)
    ours = along.ours
    ours.first, ours.last = statement, ""

    async def start(_: Any) -> None:
        if connection._transaction is None:  # SQLAlchemy would begin it with the handler's first statement
            connection._connection = along
            try:
                await connection._start_transaction()
            finally:
                connection._connection = raw
        if ours.first:
            await raw.execute(statement)

    connection.run_async(start)
    if ours.first:
        ours.first = ""
        return None
    return ours


def before_commit(code: str) -> bool:
    """Whether this is what the last statement met: one before it has failed, or what was prepared is there no more."""
    return code.startswith(("25", "26"))

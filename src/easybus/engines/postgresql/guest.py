"""A connection whose transactions begin and end with statements of ours, in the round trips of BEGIN and COMMIT.

The library begins and ends them by `execute("BEGIN;")` and `execute("COMMIT;")`; what is to go along is put before or
behind those words. Should a version of it begin otherwise, that shows at once, and all statements go by themselves;
should it commit otherwise, the last statement is run behind that commit, and by itself from then on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from .deadline import Deadline

_connection: Any = asyncpg.Connection
_execute: Any = _connection.execute
_PREPARE = "PREPARE {} AS {}"
_PLACE = re.compile(r"""("(?:[^"]|"")*")|\$([0-9])""")
"""A name, which may hold what looks like one, or a parameter's place."""


class Guest(_connection):
    """An `asyncpg.Connection` that handlers are given."""

    _along = True
    """Whether statements of ours go along with BEGIN and COMMIT."""

    def __init__(self, *given: Any, **named: Any) -> None:
        _connection.__init__(self, *given, **named)
        self._first = self._last = ""
        self._prepared: dict[str, str] = {}
        self.deadline = Deadline(self)
        self.or_fail: Mapping[str, str] = {}
        """For each last statement, the one that fails where it would change no row."""
        self.prepares = True
        """Whether statements may be kept on the server: not behind a pooler, where it changes."""

    async def begin(self, transaction: Any, statement: str) -> None:
        """Begin `transaction`, which is one of this connection's, with `statement` as its first."""
        self._first = statement
        await transaction.start()
        if self._first:
            Guest._along = False
            await _execute(self, self._first)
            self._first = ""

    async def complete(self, statement: str, parameters: Sequence[float]) -> int:
        """Run a transaction's last statement; returns how many rows it changed, or 1: the COMMIT finds that out."""
        if not self._along:
            done: str = await _execute(self, statement, *parameters)
            return int(done.rpartition(" ")[2])
        values = [repr(value) for value in parameters]
        if self.prepares:
            name = self._prepared.get(statement) or await self._prepare(statement)
            self._last = f"EXECUTE {name}({','.join(values)})"
        else:
            self._last = _PLACE.sub(lambda at: at[1] or values[int(at[2]) - 1], self.or_fail[statement])
        return 1

    async def _prepare(self, statement: str) -> str:
        name = f"easybus_last_{len(self._prepared)}"
        await _execute(self, _PREPARE.format(name, self.or_fail[statement]))
        self._prepared[statement] = name
        return name

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if self._first and query == "BEGIN;":
            query, self._first = f"{query}{self._first}", ""
        elif self._last and query == "COMMIT;":
            query, self._last = f"{self._last};{query}", ""
        done: str = await _execute(self, query, *args, timeout=timeout)
        return done

    @property
    def owes(self) -> bool:
        """Whether the transaction was committed without its last statement."""
        return bool(self._last)

    async def pay(self) -> None:
        """Run that statement now."""
        Guest._along = False
        last, self._last = self._last, ""
        await _execute(self, last)

    def forget(self) -> None:
        """The transaction is over, in whichever way."""
        self._first = self._last = ""

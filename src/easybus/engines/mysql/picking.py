"""Which rows one statement is about: ids that follow one another are said by the first and the last, others one by one.

The server reads, plans and looks up a list id by id, and a run at once. Batches are mostly runs: one INSERT gave their
ids. Parts are in the order of the ids, so that two batches lock the rows that they share in one order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .link import Sql, literal

Row = TypeVar("Row", bound=tuple[Any, ...])

_LEAST = 8
"""Rows that are worth a statement of their own."""
_LISTED = 500
"""Rows that one statement lists at most: longer lists are no longer looked up by the index."""


class Part(NamedTuple, Generic[Row]):
    """Rows of one statement."""

    where: Sql
    """The condition that they meet."""
    rows: Sequence[Row]


def parts(rows: Sequence[Row], *columns: str) -> list[Part[Row]]:
    """Rows in the order of their ids, each once: an id, and what these columns must hold."""
    found: list[Part[Row]] = []
    listed: list[Row] = []

    def list_them() -> None:
        for begin in range(0, len(listed), _LISTED):
            some = listed[begin : begin + _LISTED]
            found.append(Part(_list(some, columns), some))
        listed.clear()

    for run in _runs(rows):
        if len(run) < _LEAST:
            listed.extend(run)
            continue
        list_them()
        found.append(Part(_run(run, columns), run))
    list_them()
    return found


def _runs(rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    """Rows whose ids follow one another, and which are alike in all else."""
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at][0] != rows[at - 1][0] + 1 or rows[at][1:] != rows[begin][1:]:
            yield rows[begin:at]
            begin = at


def _run(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> Sql:
    # The last one by itself: a range is read, locks and all, up to the first row behind it, which another may hold.
    which = f"(id BETWEEN {rows[0][0]} AND {rows[-2][0]} OR id = {rows[-1][0]})"
    alike = [f" AND {column} = {literal(value)}" for column, value in zip(columns, rows[0][1:], strict=True)]
    return Sql(which + "".join(alike))


def _list(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> Sql:
    which = f"id IN {literal([row[0] for row in rows])}"
    return Sql(f"{which} AND (id, {', '.join(columns)}) IN {literal(rows)}" if columns else which)

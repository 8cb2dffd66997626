"""The closing of the books: what was accepted, booked and told, beside what must be."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from easybus import Bus, NotDeclared

from .database import Database
from .plan import balances

QUEUES = ("bookings", "statements")


class Line(NamedTuple):
    """One figure, and what it must be."""

    name: str
    found: int
    wanted: int

    @property
    def right(self) -> bool:
        return self.found == self.wanted


async def progress(database: Database, db: Any) -> Counter[str]:
    """How many rows there are of each kind."""
    tables = {"accepted": "transfer", "booked": "booking", "told": "statement_line"}
    counts = {name: await database.fetch(db, f"SELECT count(*) FROM {table}") for name, table in tables.items()}
    return Counter({name: rows[0][0] for name, rows in counts.items()})


async def on_its_way(bus: Bus) -> list[str]:
    """Where messages are that are neither handled nor dead letters; looked at in the order in which they go.

    Raises:
        EngineError: the database is away.
    """
    found: list[str] = []
    for queue in QUEUES:
        found += ["the outbox" for outbox in bus.outboxes if await outbox.find(limit=1)]
        try:
            stats = await bus.driver.stats(queue)
        except NotDeclared:
            continue
        if stats.ready or stats.in_flight or stats.delayed:
            found.append(f"{queue} ({stats.ready} ready, {stats.in_flight} in flight, {stats.delayed} delayed)")
    return found


async def close_the_books(bus: Bus, database: Database, transfers: int, seed: int) -> list[Line]:
    """Every figure that must be right, looked at when nothing moves any more."""
    db = await database.connect()
    try:
        accepted = await _numbers(database, db, "transfer")
        booked = await _numbers(database, db, "booking")
        told = await _numbers(database, db, "statement_line")
        found = Counter(dict(await database.fetch(db, "SELECT number, cents FROM account")))
    finally:
        await database.close(db)
    wanted = balances(transfers, seed)
    return [
        Line("transfers accepted", accepted.total(), transfers),
        Line("  booked: lost", len(accepted - booked), 0),
        Line("  booked: applied twice", sum(times > 1 for times in booked.values()), 0),
        Line("  booked though taken back", sum(number not in accepted for number in booked), 0),
        Line("  statements: lost", len(accepted - told), 0),
        Line("  statements: written twice", sum(times > 1 for times in told.values()), 0),
        Line("  statements though taken back", sum(number not in accepted for number in told), 0),
        Line("accounts with the right balance", sum(found[one] == wanted[one] for one in wanted), len(wanted)),
        Line("cents in all accounts", found.total(), wanted.total()),
        Line("left in queues", await _left(bus), 0),
        Line("left in the outbox", await _unpublished(bus), 0),
        Line("dead letters", sum((await bus.dead_letters.count()).values()) if bus.dead_letters else 0, 0),
    ]


def show(lines: list[Line], what_happened: dict[str, str], console: Console) -> bool:
    """Print the table; whether all is right."""
    table = Table("the books", title="what is there beside what must be", title_justify="left")
    for column in ("found", "must be", ""):
        table.add_column(column, justify="right")
    for line in lines:
        mark = "=" if line.right else f"off by {line.found - line.wanted:+,}"
        table.add_row(line.name, f"{line.found:,}", f"{line.wanted:,}", mark, style="" if line.right else "bold red")
    console.print(table)
    for name, figure in what_happened.items():
        console.print(f"{name:<34}{figure}", soft_wrap=True)
    return all(line.right for line in lines)


async def _numbers(database: Database, db: Any, table: str) -> Counter[int]:
    """How often each transfer is in a table."""
    return Counter(number for (number,) in await database.fetch(db, f"SELECT number FROM {table}"))


async def _left(bus: Bus) -> int:
    stats = [await bus.driver.stats(queue) for queue in QUEUES]
    return sum((one.ready or 0) + (one.in_flight or 0) + (one.delayed or 0) for one in stats)


async def _unpublished(bus: Bus) -> int:
    rows = [await outbox.find(parked=parked) for outbox in bus.outboxes for parked in (False, True)]
    return sum(map(len, rows))

"""The service: its handlers, and the bus that they run on.

    python -m examples.flights.app        one worker; run as many as you like

What handlers do here is fragile on purpose: they add to totals, so a flight that is lost or counted twice shows.
"""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import apsw

from easybus import Bus, Message, Router, exponential

from .events import Flight, flights

DATABASE = Path(os.environ.get("FLIGHTS_DATABASE", "flights.db"))
"""The service's own database: its ledger and totals, and the bus's keys, dead letters and outbox beside them."""
PARTNER = DATABASE.with_name("partner.db")
"""Another company's database, standing for any system that no transaction of ours reaches."""
RUNS = DATABASE.with_name("runs")
"""One byte for each run of a handler, one more where it raised or had run before: what the demo counts afterwards."""

LEASE = 5.0
"""Seconds that a killed worker's messages wait for another; running handlers renew it, however long they take."""
TABLES = """
CREATE TABLE IF NOT EXISTS ledger (record INTEGER PRIMARY KEY, flight TEXT NOT NULL, route_key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS departures (airport TEXT PRIMARY KEY, flights INTEGER NOT NULL, miles INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS compensation (carrier TEXT PRIMARY KEY, flights INTEGER NOT NULL, minutes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rebooking (airport TEXT PRIMARY KEY, flights INTEGER NOT NULL);
"""
PARTNER_TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS credit (message_id TEXT NOT NULL, miles INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS credit_of ON credit (message_id);
"""

router = Router()


# ------------------------------------------------------------------------ exactly once: in the bus's own transaction


@router.handler(flights, "departures-jfk", route_key="JFK.#", within=apsw.Connection, lease=LEASE)
@router.handler(flights, "departures-lga", route_key="LGA.#", within=apsw.Connection, lease=LEASE)
@router.handler(flights, "departures-ewr", route_key="EWR.#", within=apsw.Connection, lease=LEASE)
async def count_departure(flight: Flight, db: apsw.Connection) -> None:
    """`db` is a transaction that the bus commits together with the fact that this message is handled."""
    db.execute(
        "INSERT INTO departures VALUES (?, 1, ?) "
        "ON CONFLICT (airport) DO UPDATE SET flights = flights + 1, miles = miles + excluded.miles",
        (flight.origin, flight.miles),
    )


@router.handler(
    flights,
    "compensation",
    route_key="#.late",
    within=apsw.Connection,
    lease=LEASE,
    retry=exponential(first=0.2, factor=2, cap=2, attempts=10),
)
async def compensate(flight: Flight, db: apsw.Connection) -> None:
    """Fails one time in twenty, after its statement: that is rolled back, and the message is retried."""
    db.execute(
        "INSERT INTO compensation VALUES (?, 1, ?) "
        "ON CONFLICT (carrier) DO UPDATE SET flights = flights + 1, minutes = minutes + excluded.minutes",
        (flight.carrier, flight.delay),
    )
    if random.random() < 0.05:
        raise ConnectionError("the bank is away")


@router.handler(flights, "rebooking", route_key="*.*.cancelled", within=apsw.Connection, lease=LEASE)
async def rebook(flight: Flight, db: apsw.Connection) -> None:
    """A cancelled flight's passengers need another."""
    db.execute(
        "INSERT INTO rebooking VALUES (?, 1) ON CONFLICT (airport) DO UPDATE SET flights = flights + 1",
        (flight.origin,),
    )


# ----------------------------------------------------------- elsewhere: deduplicated, and asked about after a crash


def already_credited(message: Message) -> bool:
    """Asked when a message was begun before, by a worker that may have died in the middle: did its work take place?"""
    with closing(sqlite3.connect(PARTNER, timeout=30)) as partner:
        credited = partner.execute("SELECT 1 FROM credit WHERE message_id = ?", (message.id,)).fetchone() is not None
    if credited:
        _append(b"=")
    return credited


@router.handler(flights, "united-miles", route_key="*.UA.*", lease=LEASE, already_handled=already_credited)
def credit_miles(flight: Flight, message: Message) -> None:
    """A plain function, run in a thread. Nothing in the partner's database keeps a second credit out."""
    with closing(sqlite3.connect(PARTNER, timeout=30)) as partner, partner:
        partner.execute("INSERT INTO credit VALUES (?, ?)", (message.id, flight.miles))
    time.sleep(0.03)  # the partner's answer takes its time: a worker killed now has done its work, and told nobody


# ---------------------------------------------------------------------------------------------------------- the bus


async def count_runs(message: Message, call_next: Callable[[Message], Awaitable[None]]) -> None:
    """Middleware: goes round every handler function."""
    _append(b"+")
    try:
        await call_next(message)
    except Exception:
        _append(b"!")
        raise


def _append(mark: bytes) -> None:
    with RUNS.open("ab", buffering=0) as file:
        file.write(mark)


def create_bus() -> Bus:
    """The engine is EASYBUS_URL's, this very database if that is not set; the storage is always the database."""
    storage = f"sqlite:///{DATABASE}"
    bus = Bus(os.environ.get("EASYBUS_URL", storage), service="flights", storage=storage, middleware=[count_runs])
    bus.include(router)
    return bus


def create_tables(database: Path) -> None:
    """The service's tables, and the partner's."""
    with closing(apsw.Connection(str(database))) as db:
        db.execute(TABLES)
    with closing(sqlite3.connect(database.with_name(PARTNER.name))) as partner:
        partner.executescript(PARTNER_TABLES)


if __name__ == "__main__":
    asyncio.run(create_bus().run())

"""Reads the airlines' report, and sends each flight together with its line in the ledger, in one transaction.

    python -m examples.flights.sender [--flights N] [--spoilt RECORD ...]

Kill it at any time and start it again: it goes on after the last flight in the ledger. What the ledger has was sent,
and nothing else was: the message is a row of the same transaction.
"""

import argparse
import asyncio
import csv
import itertools
import json
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import apsw

from easybus import Message, Outgoing

from .app import DATABASE, create_bus
from .events import Flight, flights

REPORT = Path(__file__).with_name("flights-2013-01.csv")
AT_ONCE = 8
"""Flights in one transaction."""


def read_report(after: int, limit: int | None) -> Iterator[Flight]:
    """The report's flights behind record `after`, up to record `limit`."""
    with REPORT.open(newline="") as file:
        for record, row in itertools.islice(enumerate(csv.DictReader(file), 1), after, limit):
            yield Flight(
                record=record,
                carrier=row["carrier"],
                number=int(row["flight"]),
                origin=row["origin"],
                dest=row["dest"],
                miles=int(row["distance"]),
                delay=None if row["dep_time"] == "NA" else int(row["dep_delay"]),
            )


def outgoing(flight: Flight, spoilt: Collection[int]) -> Outgoing[Flight] | Message:
    """The flight with its route key. A spoilt one has a text for a distance: no handler will be able to read it."""
    if flight.record in spoilt:
        payload = json.dumps({**asdict(flight), "miles": f"{flight.miles} mi"}).encode()
        return Message.new(payload, route_key=flight.route_key)
    return Outgoing(flight, route_key=flight.route_key)


async def send_flights(limit: int | None, spoilt: Collection[int]) -> None:
    """Send what the ledger does not have yet."""
    bus = create_bus()
    topic = bus.bind(flights)
    async with bus:
        with closing(apsw.Connection(str(DATABASE))) as db:
            db.set_busy_timeout(30_000)
            last = db.execute("SELECT coalesce(max(record), 0) FROM ledger").get
            report = read_report(last, limit)
            while batch := list(itertools.islice(report, AT_ONCE)):
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    "INSERT INTO ledger VALUES (?, ?, ?)",
                    [(one.record, f"{one.carrier}{one.number}", one.route_key) for one in batch],
                )
                await topic.send_many([outgoing(flight, spoilt) for flight in batch], within=db)
                db.execute("COMMIT")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flights", type=int, help="only the report's first N", metavar="N")
    parser.add_argument("--spoilt", type=int, nargs="*", default=[], help="records to spoil", metavar="RECORD")
    given = parser.parse_args()
    asyncio.run(send_flights(given.flights, set(given.spoilt)))


if __name__ == "__main__":
    main()

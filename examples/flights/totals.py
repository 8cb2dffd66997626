"""Every total twice: as the bus's handlers left it in the tables, and computed straight from the report.

python -m examples.flights.totals FLIGHTS.DB [--flights N]        the table; exit 1 if any two differ
"""

import argparse
import csv
import itertools
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import apsw
from rich.console import Console
from rich.table import Table

REPORT = Path(__file__).with_name("flights-2013-01.csv")
LEDGER = "flights in the ledger"


class Total(NamedTuple):
    """One total, from both sides."""

    name: str
    bus: int
    report: int

    @property
    def equal(self) -> bool:
        return self.bus == self.report


def expected(limit: int | None = None) -> Counter[str]:
    """What the report says. Knows nothing of messages, handlers, or `Flight`."""
    totals: Counter[str] = Counter()
    with REPORT.open(newline="") as file:
        for row in itertools.islice(csv.DictReader(file), limit):
            airport, carrier, miles = row["origin"], row["carrier"], int(row["distance"])
            totals[LEDGER] += 1
            totals[f"{airport}: flights"] += 1
            totals[f"{airport}: miles"] += miles
            if row["dep_time"] == "NA":
                totals[f"{airport}: rebooked flights"] += 1
            elif int(row["dep_delay"]) > 15:
                totals[f"{carrier}: late flights compensated"] += 1
                totals[f"{carrier}: late minutes compensated"] += int(row["dep_delay"])
            if carrier == "UA":
                totals["United: flights credited"] += 1
                totals["United: miles credited"] += miles
    return totals


def found(database: Path) -> Counter[str]:
    """What the handlers left."""
    totals: Counter[str] = Counter()
    with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
        db.set_busy_timeout(30_000)
        totals[LEDGER] = db.execute("SELECT count(*) FROM ledger").get
        for airport, flights, miles in db.execute("SELECT airport, flights, miles FROM departures"):
            totals[f"{airport}: flights"] = flights
            totals[f"{airport}: miles"] = miles
        for carrier, flights, minutes in db.execute("SELECT carrier, flights, minutes FROM compensation"):
            totals[f"{carrier}: late flights compensated"] = flights
            totals[f"{carrier}: late minutes compensated"] = minutes
        for airport, flights in db.execute("SELECT airport, flights FROM rebooking"):
            totals[f"{airport}: rebooked flights"] = flights
    with closing(sqlite3.connect(database.with_name("partner.db"), timeout=30)) as partner:
        flights, miles = partner.execute("SELECT count(*), coalesce(sum(miles), 0) FROM credit").fetchone()
        totals["United: flights credited"] = flights
        totals["United: miles credited"] = miles
    return totals


def compare(bus: Counter[str], report: Counter[str]) -> list[Total]:
    """Each total of either side beside the other's; one that a side does not have is 0 there."""
    return [Total(name, bus[name], report[name]) for name in sorted(bus.keys() | report.keys())]


def show(totals: list[Total], console: Console) -> bool:
    """Print the table; whether all are equal."""
    table = Table("total", title="the bus's figures beside the report's")
    for column in ("bus", "report", ""):
        table.add_column(column, justify="right")
    for total in totals:
        mark = "=" if total.equal else f"off by {total.bus - total.report:+,}"
        table.add_row(total.name, f"{total.bus:,}", f"{total.report:,}", mark, style="" if total.equal else "bold red")
    console.print(table)
    return all(total.equal for total in totals)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("--flights", type=int, help="only the report's first N", metavar="N")
    given = parser.parse_args()
    sys.exit(0 if show(compare(found(given.database), expected(given.flights)), Console(highlight=False)) else 1)


if __name__ == "__main__":
    main()

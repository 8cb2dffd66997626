"""Charge the orders of a file, each once, whatever dies when: a whole program on one SQLite file.

    python orders.py orders.csv     places them: each order and its message, all in one transaction
    easybus run orders:bus          charges what was placed, until Ctrl-C; run as many as you like

A file that is given twice is placed once.
"""

import csv
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from easybus import Bus, Reject, schedule

DATABASE = "orders.db"
TABLES = """
CREATE TABLE IF NOT EXISTS placed (number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS account (
    customer TEXT PRIMARY KEY, cents INTEGER NOT NULL DEFAULT 0, locked INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True)
class Order:
    """A line of the file."""

    number: int
    customer: str
    cents: int


class AccountLocked(Exception):
    """It may be charged later."""


bus = Bus(f"sqlite:///{DATABASE}", service="orders")
orders = bus.queue("orders", Order)


@orders.handler(within=apsw.Connection, lease=5, retry={AccountLocked: schedule(60, 3600, 8 * 3600)})
def charge(order: Order, db: apsw.Connection) -> None:
    """Exactly once: the bus commits `db`'s transaction together with its own note that this order is handled."""
    if order.cents <= 0:
        raise Reject(f"{order.cents} cents cannot be charged")
    found = db.execute("SELECT locked FROM account WHERE customer = ?", (order.customer,)).fetchone()
    if found is not None and found[0]:
        raise AccountLocked(order.customer)
    db.execute(
        "INSERT INTO account (customer, cents) VALUES (?, ?) "
        "ON CONFLICT (customer) DO UPDATE SET cents = cents + excluded.cents",
        (order.customer, order.cents),
    )


def place(lines: list[Order], db: apsw.Connection) -> int:
    """Place those that were not placed before; all, or none. Returns how many that were."""
    with writing(db):
        known = {number for (number,) in db.execute("SELECT number FROM placed")}
        new = [order for order in lines if order.number not in known]
        db.executemany("INSERT INTO placed VALUES (?)", [(order.number,) for order in new])
        bus.blocking.send_many(orders, new, within=db)
        return len(new)


@contextmanager
def writing(db: apsw.Connection) -> Generator[None]:
    """A transaction that waits for its turn before it reads. (`with db:` would wait with Python's lock in its hand, and
    so for the bus, which is a thread of this process.)"""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def read(file: Path) -> list[Order]:
    """The file's orders: lines of number, customer, cents."""
    with file.open(newline="") as lines:
        return [Order(int(number), customer, int(cents)) for number, customer, cents in csv.reader(lines)]


def connect(database: str = DATABASE) -> apsw.Connection:
    """A connection to the program's tables."""
    db = apsw.Connection(database)
    db.set_busy_timeout(30_000)
    db.execute(TABLES)
    return db


if __name__ == "__main__":
    bus.blocking.open()  # its tables are made now, and not inside the transaction
    with closing(connect()) as connection:
        print("placed", place(read(Path(sys.argv[1])), connection))

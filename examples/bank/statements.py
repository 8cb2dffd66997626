"""Writes one line of the statement for each transfer that was booked, exactly once.

easybus run examples.bank.statements:bus
"""

import os

from easybus import Bus

from .accounts import KILLED, LEASE, OUTAGES
from .database import open_database
from .events import TransferBooked, booked

database = open_database(os.environ["EASYBUS_URL"])
Connection = database.Connection
bus = Bus(service="statements")


@bus.handler(booked, "statements", within=Connection, lease=LEASE, retry=OUTAGES, max_starts=KILLED)
async def write(transfer: TransferBooked, db: Connection) -> None:  # type: ignore[valid-type]
    """In a transaction of the bus, too."""
    await database.execute(db, "INSERT INTO statement_line VALUES (?)", transfer.number)

"""Books transfers, exactly once: the debit, the credit, and what is told of them are one transaction of the bus.

easybus run examples.bank.accounts:bus        one worker; run as many as you like
"""

import os

from easybus import Bus, exponential

from .database import open_database
from .events import TransferBooked, TransferRequested, booked, requested

LEASE = 5.0
"""Seconds that a killed worker's messages wait for another."""
OUTAGES = exponential(first=0.2, factor=2, cap=2, attempts=100)
"""A handler fails when its database goes away under it, and here that happens all the time."""
KILLED = 100
"""Starts without an outcome before a message is suspected of killing its workers: here they are killed anyway."""

database = open_database(os.environ["EASYBUS_URL"])
Connection = database.Connection
bus = Bus(service="accounts")
told = bus.bind(booked)


@bus.handler(requested, "bookings", within=Connection, lease=LEASE, retry=OUTAGES, max_starts=KILLED)
async def book(transfer: TransferRequested, db: Connection) -> None:  # type: ignore[valid-type]
    """`db` is a transaction that the bus commits together with the fact that this message is handled."""
    changes = {transfer.payer: -transfer.cents, transfer.payee: transfer.cents}
    for account, cents in sorted(changes.items()):  # in one order everywhere: no deadlocks
        await database.execute(db, "UPDATE account SET cents = cents + ? WHERE number = ?", cents, account)
    await database.execute(db, "INSERT INTO booking VALUES (?)", transfer.number)
    await told.send(
        TransferBooked(transfer.number, transfer.payer, transfer.payee, transfer.cents),
        within=db,
    )

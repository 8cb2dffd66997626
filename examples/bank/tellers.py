"""Accepts transfers: each is a row and a message in one transaction of the teller's own.

    python -m examples.bank.tellers --teller 1 --of 2 --transfers 1000 --seed 7
    easybus relay examples.bank.tellers:bus

Kill it at any time and start it again: it goes on after the last transfer that was committed. One in twenty customers
changes his mind when all is written but the commit; of his transfer nothing may ever be seen.
"""

import argparse
import asyncio
import contextlib
import logging
import os
from typing import Any

from easybus import Bus, EngineError

from .database import open_database
from .events import TransferRequested, requested
from .plan import WITHDRAWN_EVERY, Transfer, planned, share

AHEAD = 1000
"""Transfers that may wait to be booked; then customers wait instead."""
LOOK_EVERY = 50
AGAIN = 0.5
"""Seconds until a lost database is tried again."""

database = open_database(os.environ["EASYBUS_URL"])
bus = Bus(service="tellers")
transfers = bus.bind(requested)
_log = logging.getLogger("examples.bank")


class Withdrawn(Exception):
    """The customer has changed his mind."""


async def accept(db: Any, transfer: Transfer) -> None:
    """The row and the message are there together, or neither is."""
    async with database.transaction(db):
        await database.execute(db, "INSERT INTO transfer VALUES (?, ?)", transfer.number, transfer.teller)
        value = TransferRequested(transfer.number, transfer.payer, transfer.payee, transfer.cents)
        await transfers.send(value, within=db)
        if transfer.number < 0:
            raise Withdrawn


async def keep_pace() -> None:
    """Wait while too many transfers wait to be booked."""
    while (await bus.driver.stats("bookings")).ready > AHEAD:  # noqa: ASYNC110 - it is workers elsewhere who book
        await asyncio.sleep(0.1)


async def serve(given: argparse.Namespace) -> None:
    """All of this teller's transfers that are not committed yet."""
    db = await database.connect()
    try:
        found = await database.fetch(db, "SELECT max(number) FROM transfer WHERE teller = ?", given.teller)
        numbers = share(given.teller, given.of, found[0][0] or 0, given.transfers)
        for served, number in enumerate(numbers):
            if served % LOOK_EVERY == 0:
                await keep_pace()
            if number % WITHDRAWN_EVERY == 0:
                with contextlib.suppress(Withdrawn):
                    await accept(db, planned(-number, given.seed, given.of))
            await accept(db, planned(number, given.seed, given.of))
            await asyncio.sleep(given.pause)
    finally:
        await database.close(db)


async def work(given: argparse.Namespace) -> None:
    """Serve to the end, whatever happens to the database. What a lost commit has done, the next look tells."""
    async with bus:
        while True:
            try:
                return await serve(given)
            except (*database.lost, EngineError, TimeoutError) as error:
                _log.warning("the database is away: %s: %s", type(error).__name__, error)
                await asyncio.sleep(AGAIN)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teller", type=int, required=True, metavar="N")
    parser.add_argument("--of", type=int, required=True, help="so many tellers share the transfers", metavar="N")
    parser.add_argument("--transfers", type=int, required=True, metavar="N")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two customers")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()

"""A worker that is stopped (SIGSTOP) in a handler's transaction, by itself, where it is told to: with its rows locked,
or with DONE written too. When it is continued it goes on from there."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from easybus import Bus, points

from .scenarios.own import own_database, own_table

LEASE = 3.0


@dataclass(frozen=True)
class Stall:
    """What the worker is told."""

    url: str
    database: str
    folder: Path
    where: str = ""
    """`rows`: between two statements of the handler. `within.done`: before the commit. Empty: nowhere."""


def worker(stall: Stall) -> None:
    """The whole of a process."""
    asyncio.run(Worker(stall).run())


def service(stall: Stall, worker: Worker | None = None) -> Bus:
    """A queue of payments into one account: each locks its row."""
    own, table = own_database(stall.database), own_table(stall.database, "account")
    bus = Bus(stall.url)

    @bus.queue("payments", int).handler(within=own.Connection, lease=LEASE, concurrency=1)
    async def pay(cents: int, connection: own.Connection) -> None:
        await own.execute(connection, f"UPDATE {table} SET cents = cents + ?", cents)
        if worker is not None:
            worker.at("rows")
        await own.execute(connection, f"UPDATE {table} SET payments = payments + 1")

    return bus


class Worker:
    def __init__(self, stall: Stall) -> None:
        self._stall = stall
        self._stalled = False

    async def run(self) -> None:
        points.hook = self._reach
        async with service(self._stall, self).handling():
            await asyncio.get_running_loop().create_future()  # until it is killed

    async def _reach(self, point: str) -> None:
        if self._stalled:
            self._log(point)
        self.at(point)

    def at(self, where: str) -> None:
        if where == self._stall.where and not self._stalled:
            self._stalled = True
            self._log("stopped")
            os.kill(os.getpid(), signal.SIGSTOP)

    def _log(self, line: str) -> None:
        with (self._stall.folder / "log").open("a") as log:
            log.write(f"{line}\n")

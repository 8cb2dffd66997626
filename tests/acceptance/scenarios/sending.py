"""Sending with work of one's own: in a transaction of the database, or one that is asked about."""

# ruff: noqa: A001 - an id is called one

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from examples.bank.database import Database

from easybus import Bus, Message, Rollback, SendError, never

from .own import ids_in, make_table, own_database, own_point, own_table
from .scenario import Job, Ledger, Scenario, Setting, Stock


class Checkback(Scenario):
    """Published if, and only if, the local work took place, however its block ends.

    lands: the block ends well. fails: it raises, and the work took place. void: it rolls back. late: it raises, and
    the work takes place 15 seconds later.
    """

    ids = ("lands", "fails", "void", "late")
    reaches = (
        "half.storing", "half.stored", "work.done", "half.published", "half.removed",
        "check.claimed", "check.answered", "check.published", *Scenario.reaches,
    )  # fmt: skip
    prompt = 45.0
    takes = 25.0
    """Seconds that the work of `lands` takes."""
    late = 15.0

    def bus(self, it: Setting) -> Bus:
        self.late = 15 * it.second
        bus = Bus(it.url, service="shop", storage=it.storage)
        orders = bus.topic(it.named("orders"), Job)
        extra: dict[str, Any] = {}
        if self.asks:
            extra["already_handled"] = self.asked(it)

        @orders.committed(timeout=10 * it.second, retry_delay=lambda attempt: 4 * it.second)
        async def committed(job: Job) -> bool | None:
            if it.ledger.count("work", job.id):
                return True
            return None if job.id == "late" and it.ledger.count("opened", job.id) else False

        @orders.handler(it.named("receipts"), lease=it.lease, **extra)
        async def handle(job: Job, message: Message) -> Any:
            return await self.handle(it, job, message)

        return bus

    async def act(self, bus: Bus, it: Setting) -> None:
        for id in self.ids:
            if not it.ledger.count("entered", id):
                it.ledger.write("entered", id)
                try:
                    await self._transact(bus, it, id)
                except SendError:
                    it.ledger.write("refused", id)
                except ConnectionError:
                    pass
        it.ledger.write("acted", "all")

    async def _transact(self, bus: Bus, it: Setting, id: str) -> None:
        async with bus.transaction(bus.targets["topic", it.named("orders")], Job(id), id=id):
            it.ledger.write("opened", id)
            it.ledger.write("at", f"{id} {it.now()}")
            if id == "lands":
                await it.sleep(self.takes * it.second)
            if id in ("lands", "fails"):
                it.ledger.write("work", id)
            if id == "void":
                raise Rollback
            if id in ("fails", "late"):
                raise ConnectionError("the reply is lost")

    async def operate(self, stock: Stock, ledger: Ledger, now: float) -> None:
        for line in ledger.all("at"):
            id, at = line.split()
            if id == "late" and now > float(at) + self.late and not ledger.count("work", id):
                ledger.write("work", id)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ledger.all("work")

    def unsent(self, ledger: Ledger) -> list[str]:
        found = [] if ledger.count("acted", "all") else ["all"]
        if ledger.count("opened", "late") and not ledger.count("work", "late"):
            found.append("late")
        return found


class Outbox(Scenario):
    """Messages of a transaction are published in their order if, and only if, it commits."""

    sqlite = True
    ids = ("kept-1", "kept-2", "kept-3", "gone")
    reaches = ("outbox.claimed", "outbox.published", "outbox.deleted", *Scenario.reaches)

    def prepare(self, database: str) -> None:
        make_table(database, "work")

    def options(self, it: Setting) -> dict[str, Any]:
        return {"retry": never(), "concurrency": 1}

    async def act(self, bus: Bus, it: Setting) -> None:
        own = own_database(it.database)
        connection = await own.connect()
        try:
            if not ids_in(it.database, "work"):  # what is there was committed, with its messages
                await self._transact(bus, it, own, connection, "kept")
            with contextlib.suppress(_Undone):
                await self._transact(bus, it, own, connection, "gone")
        finally:
            await own.close(connection)
        it.ledger.write("acted", "all")

    async def _transact(self, bus: Bus, it: Setting, own: Database, connection: Any, kind: str) -> None:
        work = own_table(it.database, "work")
        async with own.transaction(connection):
            for id in self.ids:
                if id.startswith(kind):
                    await own.execute(connection, f"INSERT INTO {work} (id) VALUES (?)", id)
                    await bus.send(it.jobs(bus), Job(id), id=id, within=connection)
            if kind == "gone":
                raise _Undone
            await own_point("own.sent")
        await own_point("own.committed")

    def unsent(self, ledger: Ledger) -> list[str]:
        return [] if ledger.count("acted", "all") else ["all"]

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return [id for id in self.ids if id != "gone"]

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        found = await super().lost(stock, ledger)
        if not found and (rows := stock.rows("work")) != self.expected(ledger):
            found.append(f"the work is {rows}")
        return found

    def untidy(self, ledger: Ledger) -> list[str]:
        order = list(dict.fromkeys(ledger.all("effect")))
        return super().untidy(ledger) + ([f"the order of effects is {order}"] if order != sorted(order) else [])


class _Undone(Exception):
    """The user's own: roll back."""

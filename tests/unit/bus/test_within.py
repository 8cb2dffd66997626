"""Sending from inside a transaction on the bus's own SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from easybus import Bus, BusQueue, ConfigurationError, Queue, never


@dataclass
class Job:
    id: int


Sending = Callable[[Bus, BusQueue[Job], apsw.Connection], Awaitable[object]]


async def plainly(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    await jobs.send(Job(2))


async def in_a_task_of_its_own(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    await asyncio.create_task(jobs.send(Job(2)))


async def several(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    await jobs.send_many([Job(2), Job(3)])


async def from_a_thread(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    await asyncio.to_thread(bus.blocking.send, jobs, Job(2))


async def with_check_back(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    async with bus.transaction(jobs, Job(2)):
        pass


async def undeclared(bus: Bus, jobs: BusQueue[Job], db: apsw.Connection) -> None:
    await bus.send(Queue("never-bound", Job), Job(2), within=db)


@pytest.mark.parametrize(
    ("send", "says"),
    [
        (plainly, "within=connection"),
        (in_a_task_of_its_own, "within=connection"),
        (several, "within=connection"),
        (from_a_thread, "within=connection"),
        (with_check_back, "within=connection"),
        (undeclared, r"bus\.bind"),
    ],
)
async def test_what_would_wait_for_the_handlers_own_transaction_is_refused_at_once(
    tmp_path: Path, send: Sending, says: str
) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    work = bus.queue("work", Job)
    jobs = bus.queue("jobs", Job)

    @work.handler(within=apsw.Connection, retry=never())
    async def handle(job: Job, db: apsw.Connection) -> None:
        db.execute("CREATE TABLE kept (id)")
        await send(bus, jobs, db)

    async with asyncio.timeout(10), bus.handling():
        await work.send(Job(1))
        assert bus.dead_letters is not None
        while not (letters := await bus.dead_letters.find()):
            await asyncio.sleep(0.01)
        assert letters[0].error_type == "easybus.errors.ConfigurationError"
        with pytest.raises(ConfigurationError, match=says):
            raise ConfigurationError(letters[0].reason)
        assert (await bus.driver.stats("jobs")).ready == 0
        await jobs.send(Job(4))
        assert (await bus.driver.stats("jobs")).ready == 1


def test_a_blocking_send_to_what_is_not_declared_says_so_before_a_row_is_written(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    bus.blocking.open()
    db = apsw.Connection(f"{tmp_path}/bus.db")
    try:
        with db, pytest.raises(ConfigurationError, match=r"bus\.bind\(Queue\('jobs'\)\)"):
            bus.blocking.send(Queue("jobs", Job), Job(1), within=db)
        assert bus.blocking.call(bus.outboxes[0].find()) == []
    finally:
        db.close()
        bus.blocking.close()

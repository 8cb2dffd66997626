"""A process that sends or handles, for as long as it lives: `worker.py ROLE NAME FOLDER URL STORAGE`.

    send      jobs one after another, each sent again under its id until it is confirmed; then it is in the ledger
              `confirmed`. It ends when there is a file `stop`.
    handle    each job's id and the time when it was first sent go into the ledger `handled`. It ends by SIGTERM.
    within    likewise, and into the table `effect` in the bus's own transaction
    declare   opens five buses at once, each declares and sends one job; then it ends

Who sends or handles says so in the ledger `open`.
Ledgers are files, one line a write, of all processes. What is raised to the caller goes to standard error.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easybus import Bus, EngineError, Queue, Router, SendError, fixed

PAUSE = 0.02
LEASE = 10.0


@dataclass
class Job:
    id: str
    sent: float


jobs = Queue("jobs", Job)


class Ledger:
    """Lines that every process may add to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


async def send(bus: Bus, name: str, folder: Path) -> None:
    confirmed = Ledger(folder / "confirmed")
    number = 0
    async with bus:
        Ledger(folder / "open").write(name)
        bound = bus.bind(jobs)
        while not (folder / "stop").exists():
            number += 1
            job = Job(f"{name}-{number}", time.time())
            while True:
                try:
                    await bound.send(job, id=job.id)
                    break
                except (SendError, EngineError) as error:
                    print(f"{time.time():.2f} {job.id} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    await asyncio.sleep(0.1)
            confirmed.write(job.id)
            await asyncio.sleep(PAUSE)


def handling(folder: Path) -> Router:
    handled = Ledger(folder / "handled")
    router = Router()

    @router.handler(jobs, lease=LEASE, concurrency=5, retry=fixed(0.5, attempts=1000))
    async def handle(job: Job) -> None:
        handled.write(job.id, job.sent, time.time())

    return router


def handling_within(folder: Path) -> Router:
    import asyncpg

    handled = Ledger(folder / "handled")
    router = Router()
    connection_type: Any = asyncpg.Connection

    @router.handler(jobs, lease=LEASE, concurrency=5, within=connection_type, retry=fixed(0.5, attempts=1000))
    async def handle(job: Job, connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO effect (id) VALUES ($1)", job.id)
        handled.write(job.id, job.sent, time.time())

    return router


async def declare(bus: Bus, name: str, folder: Path) -> None:
    async with bus:
        await bus.bind(jobs).send(Job(name, time.time()), id=name)
    Ledger(folder / "confirmed").write(name)


async def main(role: str, name: str, folder: Path, url: str, storage: str) -> None:
    bus = Bus(url, storage=storage or None)
    if role == "send":
        await send(bus, name, folder)
    elif role == "declare":
        buses = [Bus(url, storage=storage or None) for _ in range(5)]
        await asyncio.gather(*(declare(bus, f"{name}-{at}", folder) for at, bus in enumerate(buses)))
    else:
        bus.include(handling(folder) if role == "handle" else handling_within(folder))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with bus.handling():
            Ledger(folder / "open").write(name)
            await stop.wait()


if __name__ == "__main__":
    role, name, folder, url, storage = sys.argv[1:]
    asyncio.run(main(role, name, Path(folder), url, storage))

"""What a service does and what must come of it, whatever dies on the way: run in simulation, and by real processes.

A scenario builds the service's bus, acts (sends), and judges by an append-only ledger of what happened in the world:

    sent      a send was confirmed           work      local work took place
    began     a handler began                opened    a transaction's block began
    effect    a handler's effect

`lost` must come to be empty; `doubled` must always be. An effect may repeat only where a process died between the
effect and DONE, and nothing could say that it had taken place.
"""

# ruff: noqa: A001 - an id is called one

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easybus import Bus, Message, SendError, never
from easybus.engines.contract import DeadLetterStorage, Driver, OutboxStorage, TransactionStorage

from .own import ids_in


@dataclass
class Job:
    """The payload; `id` is the message's too, where the scenario gives one."""

    id: str


class Ledger:
    """What happened, in its order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def write(self, what: str, id: str) -> None:
        self.lines.append((what, id))

    def read(self) -> list[tuple[str, str]]:
        return self.lines

    def count(self, what: str, id: str) -> int:
        return self.read().count((what, id))

    def all(self, what: str) -> list[str]:
        return [id for kind, id in self.read() if kind == what]


class FileLedger(Ledger):
    """A ledger that outlives its processes: every line is on the disk before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def write(self, what: str, id: str) -> None:
        os.write(self._file, f"{what} {id}\n".encode())
        os.fsync(self._file)

    def read(self) -> list[tuple[str, str]]:
        lines = [line.partition(" ") for line in self._path.read_text().splitlines()]
        return [(what, id) for what, _, id in lines]


@dataclass
class Setting:
    """What a process is given. Times are multiples of `second`."""

    url: str
    ledger: Ledger
    sleep: Callable[[float], Awaitable[None]]
    now: Callable[[], float]
    storage: str | None = None
    database: str = ""
    second: float = 1.0
    name: str = "1"
    suffix: str = ""
    """What the names of queues and topics end with, where others' lie beside them."""

    def named(self, name: str) -> str:
        return name + self.suffix

    def jobs(self, bus: Bus) -> Any:
        return bus.targets["queue", self.named("jobs")]

    @property
    def lease(self) -> float:
        return 10 * self.second


@dataclass
class Stock:
    """What lies in the engines, as an operator sees it: past every fault."""

    driver: Driver
    letters: DeadLetterStorage
    halves: TransactionStorage
    outbox: OutboxStorage | None
    database: str = ""
    queues: Sequence[str] = ()
    """The service's own, for an engine that cannot list them."""

    async def queued(self) -> list[str]:
        listed = self.driver.caps.lists_queues
        found: list[str] = []
        for queue in [queue.name for queue in await self.driver.queues()] if listed else self.queues:
            stats = await self.driver.stats(queue)
            if stats.ready or stats.in_flight or stats.delayed:
                found.append(f"queue {queue} holds {stats}")
        return found

    async def kept(self) -> list[str]:
        """Halves, outbox rows: what still waits to be published."""
        found = [f"half {half.id} is left: {half.error}" for half in await self.halves.find()]
        if self.outbox is not None:
            rows = [*await self.outbox.find(), *await self.outbox.find(parked=True)]
            found += [f"outbox row {row.publication.dedupe_id} is left: {row.error}" for row in rows]
        return found

    def rows(self, table: str) -> list[str]:
        """The ids in a table of the user's, in the order of writing."""
        return ids_in(self.database, table)


class Scenario:
    """A queue's messages are handled."""

    ids: Sequence[str] = ("a", "b")
    reaches: Sequence[str] = ("delivery.fetched", "key.claimed", "handler.done", "key.completed", "delivery.acked")
    asks = False
    """Whether `already_handled` says the truth."""
    sqlite = False
    """Whether it needs a database."""
    largest: int | None = None
    """Bytes of the largest message that the engine takes; None: the engine's own limit."""
    prompt = 4.0
    """Seconds that it takes without faults."""

    def __init__(self, *, asks: bool = False) -> None:
        self.asks = asks

    @property
    def name(self) -> str:
        return type(self).__name__ + (" asks" if self.asks else "")

    # ---------------------------------------------------------------------------------------------- the service

    def prepare(self, database: str) -> None:
        """Make the user's tables."""

    def bus(self, it: Setting) -> Bus:
        bus = Bus(it.url, service="shop", storage=it.storage)
        jobs = bus.queue(it.named("jobs"), Job)
        extra: dict[str, Any] = {}
        if self.asks:
            extra["already_handled"] = self.asked(it)

        @jobs.handler(Job, lease=it.lease, **self.options(it), **extra)
        async def handle(job: Job, message: Message) -> Any:
            return await self.handle(it, job, message)

        return bus

    def options(self, it: Setting) -> dict[str, Any]:
        return {"retry": never()}

    def asked(self, it: Setting) -> Callable[[Message], Awaitable[bool | None]]:
        async def already_handled(message: Message) -> bool | None:
            return self.already_handled(it, message)

        return already_handled

    def already_handled(self, it: Setting, message: Message) -> bool | None:
        return it.ledger.count("effect", message.decode(Job).id) > 0

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        it.ledger.write("began", job.id)
        it.ledger.write("effect", job.id)

    async def act(self, bus: Bus, it: Setting) -> None:
        """Send; what is not known to be sent is sent again under its id, by the next process too."""
        target = it.jobs(bus)
        for id in self.ids:
            await send(it, bus, target, id)

    async def operate(self, stock: Stock, ledger: Ledger, now: float) -> None:
        """What a person does meanwhile."""

    # ---------------------------------------------------------------------------------------------------- judging

    def effects(self, stock: Stock, ledger: Ledger) -> Counter[str]:
        return Counter(ledger.all("effect"))

    def expected(self, ledger: Ledger) -> Sequence[str]:
        """Whose effects must be there."""
        return self.ids

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        effects = self.effects(stock, ledger)
        found = [f"{id} was never confirmed" for id in self.unsent(ledger)]
        found += [f"{id} has no effect" for id in self.expected(ledger) if not effects[id]]
        found += await stock.queued() + await stock.kept()
        for letter in await stock.letters.find():
            found += self.wrong_letter(letter.message_id, letter.reason)
        return found

    def unsent(self, ledger: Ledger) -> list[str]:
        return [id for id in self.ids if not ledger.count("sent", id)]

    def wrong_letter(self, id: str, reason: str) -> list[str]:
        return [f"{id} is a dead letter: {reason}"]

    def doubled(self, stock: Stock, ledger: Ledger, excused: Mapping[str, int]) -> list[str]:
        """`excused`: how often a process died between an effect and its DONE."""
        expected = self.expected(ledger)
        found: list[str] = []
        for id, number in self.effects(stock, ledger).items():
            may = 1 if self.asks else 1 + excused.get(id, 0)
            if number > may:
                found.append(f"{id} has {number} effects, {may} may be")
            if id not in expected:
                found.append(f"{id} has an effect and should have none")
        return found

    def untidy(self, ledger: Ledger) -> list[str]:
        """What must not be where every process and engine lives: nothing begins twice."""
        begun = Counter(ledger.all("began"))
        return [f"{id} began {number} times" for id, number in begun.items() if number > 1]


async def send(it: Setting, bus: Bus, target: Any, id: str, **options: Any) -> None:
    while not it.ledger.count("sent", id):
        try:
            await bus.send(target, Job(id), id=id, **options)
            it.ledger.write("sent", id)
        except SendError:
            await it.sleep(0.5 * it.second)

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
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from easybus import Bus, Message, Reject, Rollback, SendError, fixed, never
from easybus.engines.contract import DeadLetterStorage, Driver, OutboxStorage, TransactionStorage


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

    async def queued(self) -> list[str]:
        found: list[str] = []
        for queue in await self.driver.queues():
            stats = await self.driver.stats(queue.name)
            if stats.ready or stats.in_flight or stats.delayed:
                found.append(f"queue {queue.name} holds {stats}")
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
        connection = apsw.Connection(self.database)
        try:
            connection.set_busy_timeout(5000)
            return [str(id) for (id,) in connection.execute(f'SELECT id FROM "{table}" ORDER BY rowid')]
        finally:
            connection.close()


class Scenario:
    """A queue's messages are handled."""

    ids: Sequence[str] = ("a", "b")
    reaches: Sequence[str] = ("delivery.fetched", "key.claimed", "handler.done", "key.completed", "delivery.acked")
    asks = False
    """Whether `already_handled` says the truth."""
    sqlite = False
    """Whether it needs a database."""
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
        jobs = bus.queue("jobs", Job)
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
        target = bus.targets["queue", "jobs"]
        for id in self.ids:
            await _send(it, bus, target, id)

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


async def _send(it: Setting, bus: Bus, target: Any, id: str, **options: Any) -> None:
    while not it.ledger.count("sent", id):
        try:
            await bus.send(target, Job(id), id=id, **options)
            it.ledger.write("sent", id)
        except SendError:
            await it.sleep(0.5 * it.second)


class Handle(Scenario):
    pass


class Slow(Scenario):
    """A handler longer than two leases begins once: its lease is renewed."""

    prompt = 29.0

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        it.ledger.write("began", job.id)
        await it.sleep(25 * it.second)
        it.ledger.write("effect", job.id)


class Retry(Scenario):
    """The first attempt fails, and the handler spoils its message besides."""

    reaches = (*Scenario.reaches, "retry.publishing", "retry.published", "retry.released")
    prompt = 8.0

    def options(self, it: Setting) -> dict[str, Any]:
        return {"retry": fixed(3 * it.second, attempts=8)}

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        if not it.ledger.count("failed", job.id):
            it.ledger.write("failed", job.id)
            message.payload, message.retried = b'{"id":"spoilt"}', 100
            raise ValueError("the first time")
        it.ledger.write("effect", job.id)


class Dead(Scenario):
    """What is rejected is kept, once, with its bytes."""

    reaches = ("delivery.fetched", "key.claimed", "dead.storing", "dead.stored", "dead.released")

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        raise Reject("no")

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ()

    def wrong_letter(self, id: str, reason: str) -> list[str]:
        return [] if reason == "no" else super().wrong_letter(id, reason)

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        letters = Counter(Message.from_bytes(one.body).decode(Job).id for one in await stock.letters.find())
        found = [f"{id} has {letters[id]} dead letters" for id in self.ids if letters[id] != 1]
        return found + await super().lost(stock, ledger)


class Replay(Dead):
    """A dead letter is mended, marked, handled and gone. It fails again after its first replay."""

    reaches = (*Dead.reaches, *Scenario.reaches, "replay.fetched", "replay.published", "replay.removed")
    prompt = 12.0
    relapses = 1

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        if it.ledger.count("marked", job.id) <= self.relapses:
            raise Reject("no")
        it.ledger.write("effect", job.id)

    async def operate(self, stock: Stock, ledger: Ledger, now: float) -> None:
        for letter in await stock.letters.find():
            if not letter.marked and not await stock.queued():
                ledger.write("marked", letter.message_id)
                await stock.letters.mark_for_retry(letter.queue, [letter.key])

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return self.ids

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        found = [f"dead letter {letter.message_id} is left" for letter in await stock.letters.find()]
        return found + await Scenario.lost(self, stock, ledger)


class Doubting(Scenario):
    """`already_handled` raises, then does not know, then says the truth."""

    def already_handled(self, it: Setting, message: Message) -> bool | None:
        id = message.decode(Job).id
        it.ledger.write("asked", id)
        if it.ledger.count("asked", id) == 1:
            raise ConnectionError("cannot be asked")
        return None if it.ledger.count("asked", id) == 2 else super().already_handled(it, message)


class Conflict(Scenario):
    """An id used again for another payload: kept as a dead letter."""

    reaches = (*Scenario.reaches, "dead.storing", "dead.stored", "dead.released")

    async def act(self, bus: Bus, it: Setting) -> None:
        await super().act(bus, it)
        while not it.ledger.count("sent", "other"):
            try:
                await bus.send(bus.targets["queue", "jobs"], Job("other"), id="a")
                it.ledger.write("sent", "other")
            except SendError:
                await it.sleep(0.5 * it.second)

    def wrong_letter(self, id: str, reason: str) -> list[str]:
        return [] if id == "a" else super().wrong_letter(id, reason)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ("b",)  # which of the two payloads of `a` comes first is the engine's affair

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        kept = {Message.from_bytes(one.body).decode(Job).id for one in await stock.letters.find()}
        effects = self.effects(stock, ledger)
        found = [
            f"{id} has no effect and is no dead letter" for id in ("a", "other") if not effects[id] and id not in kept
        ]
        return found + await super().lost(stock, ledger)

    def doubled(self, stock: Stock, ledger: Ledger, excused: Mapping[str, int]) -> list[str]:
        return [one for one in super().doubled(stock, ledger, excused) if "should have none" not in one]


class Fresh(Scenario):
    """Each process sends under ids that it makes itself."""

    def __init__(self, *, asks: bool = False) -> None:
        super().__init__(asks=asks)
        self.processes = 2

    async def act(self, bus: Bus, it: Setting) -> None:
        for number in range(2):
            value = f"{it.name}.{number}"
            message = Message.new(Job(value), headers={"type": "Job"})
            while True:
                try:
                    await bus.send(bus.targets["queue", "jobs"], message)
                    break
                except SendError:
                    await it.sleep(0.5 * it.second)
            it.ledger.write("sent", value)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ledger.all("sent")

    def unsent(self, ledger: Ledger) -> list[str]:
        return [] if ledger.all("sent") else ["nothing"]

    def doubled(self, stock: Stock, ledger: Ledger, excused: Mapping[str, int]) -> list[str]:
        return [one for one in super().doubled(stock, ledger, excused) if "should have none" not in one]


class Deferred(Scenario):
    """A delayed topic send is routed when it is due, to each of two queues."""

    prompt = 10.0

    def bus(self, it: Setting) -> Bus:
        bus = super().bus(it)
        later = bus.topic("later", Job)
        for queue in ("one", "two"):
            self._handle(it, later, queue)
        return bus

    def _handle(self, it: Setting, topic: Any, queue: str) -> None:
        async def already(message: Message) -> bool:
            return it.ledger.count("effect", f"{queue}:{message.decode(Job).id}") > 0

        extra: dict[str, Any] = {"already_handled": already} if self.asks else {}

        @topic.handler(queue, lease=it.lease, **extra)
        async def handle(job: Job) -> None:
            it.ledger.write("effect", f"{queue}:{job.id}")

    async def act(self, bus: Bus, it: Setting) -> None:
        for id in self.ids:
            await _send(it, bus, bus.targets["topic", "later"], id, delay=5 * it.second)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return [f"{queue}:{id}" for queue in ("one", "two") for id in self.ids]


class Poison(Scenario):
    """A message that kills its process is a dead letter in the end, and its neighbours are handled once."""

    ids = ("a", "poison", "b")
    prompt = 200.0

    def __init__(self, die: Callable[[Setting], None]) -> None:
        super().__init__()
        self._die = die

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        if job.id == "poison":
            await it.sleep(0.1 * it.second)
            it.ledger.write("killed", job.id)
            self._die(it)
        it.ledger.write("effect", job.id)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ("a", "b")

    def wrong_letter(self, id: str, reason: str) -> list[str]:
        return [] if id == "poison" and "may kill its process" in reason else super().wrong_letter(id, reason)

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        letters = [letter.message_id for letter in await stock.letters.find()]
        found = [] if letters == ["poison"] else [f"the dead letters are {letters}"]
        return found + await super().lost(stock, ledger)

    def doubled(self, stock: Stock, ledger: Ledger, excused: Mapping[str, int]) -> list[str]:
        found = super().doubled(stock, ledger, excused)
        if (kills := ledger.count("killed", "poison")) > 6:
            found.append(f"the poison killed {kills} processes")
        return found


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
        orders = bus.topic("orders", Job)
        extra: dict[str, Any] = {}
        if self.asks:
            extra["already_handled"] = self.asked(it)

        @orders.committed(timeout=10 * it.second, retry_delay=lambda attempt: 4 * it.second)
        async def committed(job: Job) -> bool | None:
            if it.ledger.count("work", job.id):
                return True
            return None if job.id == "late" and it.ledger.count("opened", job.id) else False

        @orders.handler("receipts", lease=it.lease, **extra)
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
        async with bus.transaction(bus.targets["topic", "orders"], Job(id), id=id):
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
        connection = apsw.Connection(database)
        connection.execute("CREATE TABLE IF NOT EXISTS work (id TEXT)")
        connection.close()

    def options(self, it: Setting) -> dict[str, Any]:
        return {"retry": never(), "concurrency": 1}

    async def act(self, bus: Bus, it: Setting) -> None:
        target = bus.targets["queue", "jobs"]
        connection = apsw.Connection(it.database)
        connection.set_busy_timeout(5000)
        try:
            for kind in ("kept", "gone"):
                if it.ledger.count("entered", kind):
                    continue
                it.ledger.write("entered", kind)
                connection.execute("BEGIN IMMEDIATE")
                for id in self.ids:
                    if id.startswith(kind):
                        connection.execute("INSERT INTO work VALUES (?)", (id,))
                        await bus.send(target, Job(id), id=id, within=connection)
                connection.execute("COMMIT" if kind == "kept" else "ROLLBACK")
        finally:
            connection.close()
        it.ledger.write("acted", "all")

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


class Within(Scenario):
    """Exactly once to a database, whatever happens; the first attempt of `b` fails."""

    sqlite = True
    reaches = (
        "delivery.fetched", "key.claimed", "within.effect", "within.done", "within.committed",
        "retry.publishing", "retry.published", "retry.released",
    )  # fmt: skip
    prompt = 8.0

    def prepare(self, database: str) -> None:
        connection = apsw.Connection(database)
        connection.execute("CREATE TABLE IF NOT EXISTS effect (id TEXT)")
        connection.close()

    def bus(self, it: Setting) -> Bus:
        bus = Bus(it.url, service="shop", storage=it.storage)
        jobs = bus.queue("jobs", Job)

        @jobs.handler(Job, lease=it.lease, within=apsw.Connection, retry=fixed(3 * it.second, attempts=8))
        async def handle(job: Job, connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO effect VALUES (?)", (job.id,))
            if job.id == "b" and not it.ledger.count("failed", "b"):
                it.ledger.write("failed", "b")
                raise ValueError("the first time")

        return bus

    def effects(self, stock: Stock, ledger: Ledger) -> Counter[str]:
        return Counter(stock.rows("effect"))


def wall_clock() -> float:
    """Seconds since 1970, for real processes."""
    return time.time()

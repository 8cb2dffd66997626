"""What becomes of a message in a queue."""

# ruff: noqa: A001 - an id is called one

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from easybus import Bus, Message, Reject, SendError, fixed

from .own import make_table, own_database, own_table
from .scenario import Job, Ledger, Scenario, Setting, Stock, send


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


class Outgrown(Retry):
    """A message that the engine took, and whose retry it does not: kept, once, as it was sent."""

    ids = ("a", "large" * 20)
    reaches = ("key.claimed", "retry.publishing", "dead.storing", "dead.stored", "dead.released")
    largest = len(Message.new(Job(ids[1]), id=ids[1], headers={"type": "Job"}).to_bytes())

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return ("a",)

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        if job.id != "a":
            raise ValueError("every time")
        await super().handle(it, job, message)

    async def lost(self, stock: Stock, ledger: Ledger) -> list[str]:
        letters = [(len(one.body), one.error, one.reason) for one in await stock.letters.find()]
        found = [] if [one[:2] for one in letters] == [(self.largest, "every time")] else [f"the letters: {letters}"]
        return found + await super().lost(stock, ledger)

    def wrong_letter(self, id: str, reason: str) -> list[str]:
        known = id == self.ids[1] and reason.startswith("ValueError: every time; it cannot be retried: ")
        return [] if known else super().wrong_letter(id, reason)


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
                await bus.send(it.jobs(bus), Job("other"), id="a")
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
                    await bus.send(it.jobs(bus), message)
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
        later = bus.topic(it.named("later"), Job)
        for queue in ("one", "two"):
            self._handle(it, later, queue)
        return bus

    def _handle(self, it: Setting, topic: Any, queue: str) -> None:
        async def already(message: Message) -> bool:
            return it.ledger.count("effect", f"{queue}:{message.decode(Job).id}") > 0

        extra: dict[str, Any] = {"already_handled": already} if self.asks else {}

        @topic.handler(it.named(queue), lease=it.lease, **extra)
        async def handle(job: Job) -> None:
            it.ledger.write("effect", f"{queue}:{job.id}")

    async def act(self, bus: Bus, it: Setting) -> None:
        for id in self.ids:
            await send(it, bus, bus.targets["topic", it.named("later")], id, delay=5 * it.second)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return [f"{queue}:{id}" for queue in ("one", "two") for id in self.ids]


class Poison(Scenario):
    """A message that kills its process is a dead letter in the end, and its neighbours are handled once."""

    ids = ("a", "poison", "b")
    prompt = 200.0

    def __init__(self, die: Callable[[Setting], None], *, at_once: bool = False, asks: bool = False) -> None:
        """`at_once`: before its neighbours have begun, and it comes first."""
        super().__init__(asks=asks)
        self._die = die
        self._at_once = at_once
        if at_once:
            self.ids = ("poison", "a", "b")

    async def handle(self, it: Setting, job: Job, message: Message) -> Any:
        if job.id == "poison":
            if not self._at_once:
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


class Within(Scenario):
    """Exactly once to a database, whatever happens; the first attempt of `b` fails."""

    sqlite = True
    reaches = (
        "delivery.fetched", "key.claimed", "within.effect", "within.done", "within.committed",
        "retry.publishing", "retry.published", "retry.released",
    )  # fmt: skip
    prompt = 8.0

    def prepare(self, database: str) -> None:
        make_table(database, "effect")

    def bus(self, it: Setting) -> Bus:
        bus = Bus(it.url, service="shop", storage=it.storage)
        jobs = bus.queue(it.named("jobs"), Job)
        own, effect = own_database(it.database), own_table(it.database, "effect")

        @jobs.handler(Job, **self.exactly_once(it, own.Connection))
        async def handle(job: Job, connection: own.Connection) -> None:
            await own.execute(connection, f"INSERT INTO {effect} (id) VALUES (?)", job.id)
            await self.send_on(bus, it, job, connection)
            if job.id == "b" and not it.ledger.count("failed", "b"):
                it.ledger.write("failed", "b")
                raise ValueError("the first time")

        return bus

    def exactly_once(self, it: Setting, connection: type[Any]) -> dict[str, Any]:
        return {"lease": it.lease, "within": connection, "retry": fixed(3 * it.second, attempts=8)}

    async def send_on(self, bus: Bus, it: Setting, job: Job, connection: Any) -> None:
        """What the handler sends within its transaction."""

    def effects(self, stock: Stock, ledger: Ledger) -> Counter[str]:
        return Counter(stock.rows("effect"))

    def doubled(self, stock: Stock, ledger: Ledger, excused: Mapping[str, int]) -> list[str]:
        return super().doubled(stock, ledger, {})  # there is nothing between the effect and DONE


class Chain(Within):
    """A handler's writes, what it sends, and its DONE are one commit; what it sent is handled so, too."""

    reaches = (*Within.reaches, "outbox.claimed", "outbox.published", "outbox.deleted")

    def bus(self, it: Setting) -> Bus:
        bus = super().bus(it)
        own, effect = own_database(it.database), own_table(it.database, "effect")

        @bus.queue(it.named("told"), Job).handler(Job, **self.exactly_once(it, own.Connection))
        async def handle(job: Job, connection: own.Connection) -> None:
            await own.execute(connection, f"INSERT INTO {effect} (id) VALUES (?)", job.id)

        return bus

    async def send_on(self, bus: Bus, it: Setting, job: Job, connection: Any) -> None:
        # Under an id of its own each time: nothing else would keep a second copy from a second effect.
        await bus.send(bus.targets["queue", it.named("told")], Job(f"told-{job.id}"), within=connection)

    def expected(self, ledger: Ledger) -> Sequence[str]:
        return [*self.ids, *(f"told-{id}" for id in self.ids)]

"""What a bus promises as it is configured, and what in its configuration contradicts that: behind `bus.check()`.

    always       what the code says: storages that are asked for too much, memories that are too short, names, delays
    connected    what start would refuse, how servers are set, and what is there: topology, halves nobody answers for

A contradiction is what loses messages, handles copies, or keeps the bus from starting; a note is what to know.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from .clock import SystemClock
from .engines.contract import AuditedEngine, Engine, Known
from .errors import ConfigurationError, EasybusError, NotOpen
from .opened import Opened
from .promises import Guarantee, Kept, after_failure, handling, long, sending
from .receiving.subscription import HandlerOptions
from .running import Running, by_queue, options_of
from .topic import Queue

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["Finding", "Guarantee", "Report", "examine"]

_HALVES = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One contradiction, or one thing to know."""

    where: str
    """`bus`, an engine's URL, or a topic or queue, such as `queue receipts`."""
    text: str
    """What it is, and what to write instead."""


@dataclass(slots=True)
class Report:
    """What `bus.check()` found."""

    guarantees: list[Guarantee] = field(default_factory=list[Guarantee])
    contradictions: list[Finding] = field(default_factory=list[Finding])
    """What loses messages, handles copies, or keeps the bus from starting."""
    notes: list[Finding] = field(default_factory=list[Finding])

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts what is promised."""
        return not self.contradictions


async def examine(bus: Bus, *, rate: float | None, connect: bool) -> Report:
    """See `Bus.check`."""
    if rate is not None and not (math.isfinite(rate) and rate >= 0):
        raise ConfigurationError(f"rate={rate}; it is a number of messages a second, 0 or more")
    silent = logging.Logger("easybus.check", logging.CRITICAL + 1)  # noqa: LOG001 - what it would log is found here
    opened = Opened(bus, bus.url, bus.storage_url, SystemClock(), silent)
    examination = _Examination(bus, opened, rate)
    await examination.run(connect=connect)
    return examination.report


class _Examination:
    def __init__(self, bus: Bus, opened: Opened, rate: float | None) -> None:
        self.report = Report()
        self._bus = bus
        self._opened = opened
        self._rate = rate
        self._weak: set[Engine] = set()
        """Engines whose settings weaken what is confirmed."""
        self._noted: set[Engine] = set()
        """Engines of which there is something to know."""
        self._queues = by_queue(bus.handlers)
        self._options: dict[str, HandlerOptions] = {}

    async def run(self, *, connect: bool) -> None:
        """Look at everything, and close again what was opened."""
        up: list[Engine] = []
        try:
            if connect:
                up = await self._open()
            else:
                self.note("bus", "not connected: servers' settings, and what they hold, were not looked at")
            self._storages(up)
            self._names()
            self._senders()
            self._handlers()
            self._start_refuses()
            if self._opened.storage in up:
                await self._halves()
            if self._opened.engine in up and self._opened.driver.caps.lists_queues:
                await self._topology()
        finally:
            await asyncio.gather(*(engine.close() for engine in up))

    async def _open(self) -> list[Engine]:
        up: list[Engine] = []
        for engine in self._engines:
            try:
                await engine.open()
                up.append(engine)
                sentences = await engine.durability() if isinstance(engine, AuditedEngine) else []
            except EasybusError as error:
                asked = "asked for its settings" if engine in up else "opened"
                self.contradiction(engine.url, f"it cannot be {asked}: {error}")
                continue
            for sentence in sentences:
                if isinstance(sentence, Known):
                    self._noted.add(engine)
                    self.note(engine.url, sentence)
                else:
                    self._weak.add(engine)
                    self.contradiction(engine.url, sentence)
        return up

    def contradiction(self, where: str, text: str) -> None:
        """Add one, unless it is there."""
        found = Finding(where, text)
        if found not in self.report.contradictions:
            self.report.contradictions.append(found)

    def note(self, where: str, text: str) -> None:
        """Add a thing to know."""
        self.report.notes.append(Finding(where, text))

    @property
    def _engines(self) -> list[Engine]:
        return list(dict.fromkeys([self._opened.engine, self._opened.storage, *self._opened.databases]))

    # ------------------------------------------------------------------------------------------ what the code says

    def _kept(self, engine: Engine) -> Kept:
        if engine.driver is None or engine.driver.caps.durable:
            return Kept.SERVER if engine in self._weak else Kept.DISK
        return Kept.SERVER if engine.driver.caps.shared else Kept.PROCESS

    def _storages(self, up: list[Engine]) -> None:
        """Whether they can do what is asked, and keep what is confirmed."""
        for problem in self._opened.problems():
            self.contradiction("bus", problem)
        for engine in self._engines:
            kept = self._kept(engine)
            if kept is Kept.PROCESS:
                self.contradiction(
                    engine.url,
                    "it keeps nothing: all of it is lost with the process, however it was confirmed; write "
                    "sqlite:///shop.db, or a server's URL (in tests, bus.testing() uses memory whatever the URL is)",
                )
            elif kept is Kept.SERVER and engine in up and engine not in self._weak | self._noted:
                self.contradiction(engine.url, "as its server is set, what was confirmed may be gone when that dies")
        for engine in self._opened.databases:
            if engine.outbox is None:
                self.contradiction(
                    engine.url, "databases= names it, but it takes no messages in transactions: nothing to relay there"
                )

    def _names(self) -> None:
        """Whether the engine can hold the names and delays."""
        names = {("queue" if isinstance(one, Queue) else "topic", one.name) for one in self._bus.targets.values()}
        names |= {("queue", queue) for queue in self._queues}
        if self._bus.dead_letters_go == "queue":
            names |= {("queue", f"{queue}.dead") for queue in self._queues}
        caps = self._opened.driver.caps
        for kind, name in sorted(names):
            size = len(name.encode("utf-8", "surrogatepass"))
            if size > caps.max_name:
                self.contradiction(f"{kind} {name}", f"its name has {size} bytes; {caps.engine} holds {caps.max_name}")
        for target in self._bus.targets.values():
            if isinstance(target, Queue) and target.delay > caps.max_delay:
                longest = long(caps.max_delay)
                self.contradiction(f"queue {target.name}", f"delay={target.delay:g}; the engine's longest is {longest}")

    def _senders(self) -> None:
        """The promise of every way to send."""
        kept = self._kept(self._opened.engine)
        for target in sorted(self._bus.targets.values(), key=lambda one: one.key, reverse=True):
            kind = "queue" if isinstance(target, Queue) else "topic"
            says = sending(to_topic=kind == "topic", kept=kept)
            self.report.guarantees.append(Guarantee(name=f"{kind} {target.name}", how="send", says=says))
            if kind == "topic" and target.name in self._bus.answers:
                says = "published if the work took place: after a crash, `committed` is asked"
                if self._opened.storage.transactions is None:
                    says = "refused: nothing keeps its halves"
                self.report.guarantees.append(Guarantee(name=f"topic {target.name}", how="transaction", says=says))
        for engine in self._engines[0 if self._opened.storage is self._opened.engine else 1 :]:
            if engine.outbox is not None:
                says = f"published if, and only if, the transaction in {engine.url} commits"
                self.report.guarantees.append(Guarantee(name="any of them", how="within=", says=says))

    def _handlers(self) -> None:
        """The promise of every queue with handlers, and whether it remembers for long enough."""
        storage = self._opened.storage
        both = {self._kept(self._opened.engine), self._kept(storage)}
        kept = next(one for one in (Kept.PROCESS, Kept.SERVER, Kept.DISK) if one in both)
        for queue, definitions in self._queues.items():
            try:
                options = options_of(self._bus, queue, definitions)
            except ConfigurationError as error:
                self.contradiction(f"queue {queue}", str(error))
                continue
            self._options[queue] = options
            self._remembers(queue, options)
            dead = f"queue {queue}.dead" if self._bus.dead_letters_go == "queue" else storage.url
            says = handling(options, kept=kept, storage=storage.url)
            if self._lacking(options):
                says = "not handled: the bus is refused by its storage"
            rows = None if self._rate is None or options.dedupe is None else math.ceil(self._rate * options.keep)
            self.report.guarantees.append(
                Guarantee(
                    name=f"queue {queue}",
                    how="handle",
                    says=says,
                    failure=after_failure(options, dead),
                    remembered=None if options.dedupe is None else options.keep,
                    rows=rows,
                )
            )
            if options.unmatched == "ignore":
                self.note(f"queue {queue}", "unmatched='ignore': messages of a type without a function are dropped")

    def _lacking(self, options: HandlerOptions) -> bool:
        storage = self._opened.storage
        in_storage = self._bus.dead_letters_go == "storage"
        return (options.dedupe is not None and storage.idempotency is None) or (
            in_storage and storage.dead_letters is None
        )

    def _remembers(self, queue: str, options: HandlerOptions) -> None:
        if options.dedupe is None:
            return
        if options.horizon is None:
            self.note(
                f"queue {queue}",
                f"its retries declare no end, and handled messages are remembered for {long(options.keep)}: a copy "
                "that is retried for longer is handled again",
            )
        elif options.keep < options.horizon:
            enough = timedelta(seconds=math.ceil(options.horizon))
            self.contradiction(
                f"queue {queue}",
                f"handled messages are remembered for {long(options.keep)}, but retries and a lease last up to "
                f"{long(options.horizon)}: an older copy would be handled again; write dedupe=timedelta("
                f"seconds={enough.total_seconds():.0f}) or more, or retry for less long",
            )

    # ---------------------------------------------------------------------------------------- what start would refuse

    def _start_refuses(self) -> None:
        """Build what `bus.run()` would build, queue by queue: parameters, types and transactions are looked at."""
        for queue in self._options:
            try:
                Running(self._bus, self._opened, only=(queue,), concurrency=None)
            except NotOpen:
                continue  # an engine that begins transactions only when it is open
            except ConfigurationError as error:
                self.contradiction(f"queue {queue}", f"{error}{self._elsewhere(queue)}")

    def _elsewhere(self, queue: str) -> str:
        kind = self._options[queue].within
        storage = self._opened.storage
        if kind is None:
            return ""
        for engine in self._engines:
            try:
                there = engine is not storage and engine.transaction(kind) is not None
            except ConfigurationError:
                continue
            if there:
                return (
                    f"; it is one of {engine.url}, but handled messages are marked in {storage.url}, and the two "
                    "cannot commit together: make that database the bus's storage: Bus(url, storage=...)"
                )
        return ""

    async def _halves(self) -> None:
        storage = self._opened.storage.transactions
        if storage is None:
            return
        try:
            halves = await storage.find(self._bus.service, _HALVES)
        except EasybusError as error:
            self.note(self._opened.storage.url, f"its halves cannot be read: {error}")
            return
        for topic, count in sorted(Counter(half.topic for half in halves).items()):
            if topic not in self._bus.answers:
                self.contradiction(
                    f"topic {topic}",
                    f"{count} of its transactions were left behind, and nothing answers for them: write "
                    f"@bus.topic({topic!r}, ...).committed, or look: easybus tx list",
                )

    async def _topology(self) -> None:
        try:
            queues = {queue.name: queue.delay for queue in await self._opened.driver.queues()}
            topics = dict(await self._opened.driver.topics())
        except EasybusError as error:
            self.note(self._opened.engine.url, f"its queues and topics cannot be read: {error}")
            return
        for target in self._bus.targets.values():
            if isinstance(target, Queue):
                where, there = f"queue {target.name}", target.name in queues
                if there and target.declare and queues[target.name] != target.delay:
                    self.contradiction(
                        where, f"delay={target.delay:g} here, and it is there with a delay of {queues[target.name]:g} s"
                    )
            else:
                where, there = f"topic {target.name}", target.name in topics
                bound = topics.get(target.name) or any(one.target.key == target.key for one in self._bus.handlers)
                if not bound:
                    self.note(where, "no queue is bound to it yet: what is sent is kept nowhere")
            if not there and not target.declare:
                self.contradiction(where, "it is another service's (declare=False), and it does not exist yet")

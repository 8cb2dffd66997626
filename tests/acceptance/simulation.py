"""Processes that die, on engines that do not, in virtual time.

A process is a bus on engines that are shared by all processes of a world, through wires of its own. When it dies (at a
point, or in a handler) the wires are cut: nothing that it still does reaches an engine, the ledger, or the clock. Then
the next one starts at once, as under a supervisor. The world runs until nothing is left to happen, and is judged.

A plan says what goes wrong: where the first, second, … process dies; which calls to the engines fail, counted over all
processes or by their name (`settle:2`); where a process stalls, and for how long. A call `fails`: it does not happen;
it `loses` its reply: it happens, and raises all the same; `first fails`: of a published batch only the first does, and
what is `behind` it where the engine is `unbroken`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easybus import Bus, points
from easybus.clock import sleep
from easybus.engines import registry
from easybus.errors import Unavailable
from easybus.testing.virtual import VirtualClock

from .scenarios import Ledger, Scenario, Setting, Stock
from .wires import Died, ProcessClock, ProcessLedger, WiredEngine

ENGINES = ("apart", "copying", "unfenced", "fused")
"""Memory with keys apart; its moves a publish and an ack; its acks unfenced, too; keys and messages fused."""
_STEP = 2.0
_HORIZON = 600.0
_LIVES = 15
_create = registry.create


@dataclass(frozen=True)
class Plan:
    """What goes wrong."""

    deaths: Sequence[str] = ()
    calls: Mapping[int | str, str] = field(default_factory=dict)
    stalls: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the first process to get to a point stands still there."""
    unbroken: bool = True
    """Whether an engine that is `unbroken` says so, and is."""
    workers: int = 1
    stranger: bool = False
    """Whether another service uses the same storage, and knows none of our work."""
    stop_after: float | None = None
    """Seconds until the first process is stopped cleanly."""
    grace: float | None = None
    """Seconds that its handlers may still take."""

    tidy: bool = False
    """Whether the scenario's order is to be judged all the same."""

    @property
    def smooth(self) -> bool:
        return not (self.deaths or self.calls or self.stalls or self.stop_after is not None)


@dataclass
class Verdict:
    """What came of it."""

    wrong: list[str]
    reached: list[str]
    calls: Counter[str]
    deaths: list[str]
    ledger: Ledger
    took: float


_current: ContextVar[Process] = ContextVar("process")


class Process:
    """One process of the service."""

    def __init__(self, world: World, name: str, dies_at: str = "") -> None:
        self.world = world
        self.name = name
        self.dies_at = dies_at
        self.dead = False
        self.last_fault = ""
        self.clock = ProcessClock(self, world.clock)
        self.engine = WiredEngine(self, world.engine)
        self.asked_to_stop = asyncio.Event()
        self.failed: BaseException | None = None
        ledger = ProcessLedger(self, world.ledger)
        self.setting = Setting(
            "sim://", ledger, lambda seconds: sleep(self.clock, seconds), self.clock.time,
            database=world.database, name=name,
        )  # fmt: skip
        world.processes.append(self)
        self.task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        _current.set(self)
        bus = self.world.bus(self)
        restore = bus.pretend(url="sim://", clock=self.clock, provide=bus.provided)
        try:
            async with bus.handling(grace=self.world.plan.grace):
                acting = asyncio.create_task(self._act(bus))
                await self.asked_to_stop.wait()
                acting.cancel()
        finally:
            restore()

    async def _act(self, bus: Bus) -> None:
        try:
            await self.world.act(self, bus)
        except Exception as error:
            self.failed = error

    # ------------------------------------------------------------------------------------------- dying and failing

    def die(self, where: str) -> None:
        """Cut the wires here."""
        self.dead = True
        self.world.deaths.append(where)
        self.world.excuse()
        raise Died

    async def alive(self) -> None:
        """What a dead process does never ends."""
        if self.dead:
            await asyncio.get_running_loop().create_future()

    async def reach(self, point: str) -> None:
        await self.alive()
        self.world.reached.append(point)
        stalled = self.world.stalls.pop(point, None)
        if stalled is not None:
            await sleep(self.clock, stalled)
            await self.alive()
        if point == self.dies_at:
            self.die(point)

    def fault(self, name: str) -> str:
        """What goes wrong with this call."""
        world = self.world
        world.calls[name] += 1
        calls = world.plan.calls
        self.last_fault = calls.get(world.calls.total(), "") or calls.get(f"{name}:{world.calls[name]}", "")
        return self.last_fault

    async def call(self, name: str, target: Callable[[], Any]) -> Any:
        await self.alive()
        fault = self.fault(name)
        if fault == "fails":
            raise Unavailable(f"{name} fails")
        result = await self.surely(target)
        await self.alive()
        if fault == "loses":
            raise Unavailable(f"the reply of {name} is lost")
        return result

    async def surely(self, target: Callable[[], Any]) -> Any:
        self.world.under_way += 1
        try:
            return await target()
        finally:
            self.world.under_way -= 1

    async def fetching(self, name: str, target: Callable[[float], Any], wait: float) -> Any:
        """A fetch looks again every half second: one that sleeps in an engine would outlive its process."""
        await self.alive()
        fault = self.fault(name)
        if fault == "fails":
            raise Unavailable(f"{name} fails")
        until = self.clock.time() + wait
        while True:
            found = await self.surely(lambda: target(0.0))
            await self.alive()
            if found or self.clock.time() >= until:
                break
            await sleep(self.clock, 0.5, poll=True)
            await self.alive()
        if found and fault == "loses":
            raise Unavailable(f"the reply of {name} is lost")
        return found


class World:
    """Engines, a clock, a ledger, and one process after the other."""

    def __init__(self, scenario: Scenario, plan: Plan, kind: str, folder: Path | None = None) -> None:
        self.scenario = scenario
        self.plan = plan
        self.kind = kind
        self.clock = VirtualClock()
        self.ledger = Ledger()
        self.database = str(folder / "bus.db") if folder is not None else ""
        self.engine: Any = _create(f"sqlite:///{self.database}" if kind == "sqlite" else "memory://", self.clock)
        self.stock = Stock(
            self.engine.driver, self.engine.dead_letters, self.engine.transactions, self.engine.outbox, self.database
        )
        self.stalls = dict(plan.stalls)
        self.calls: Counter[str] = Counter()
        self.reached: list[str] = []
        self.deaths: list[str] = []
        self.excused: Counter[str] = Counter()
        """How often a process died between an effect and its DONE."""
        self.under_way = 0
        self.processes: list[Process] = []
        self._begun = 0

    def bus(self, process: Process) -> Bus:
        if process.name != "stranger":
            return self.scenario.bus(process.setting)
        bus = Bus("sim://", service="stranger")
        topic: Any = bus.topic("orders")

        @topic.committed
        async def committed(message: Any) -> bool:
            return False

        return bus

    async def act(self, process: Process, bus: Bus) -> None:
        if process.name != "stranger":
            await self.scenario.act(bus, process.setting)

    def excuse(self) -> None:
        """A process dies: what has its effect and is not DONE may be done again."""
        if self.kind == "sqlite":
            return
        for queue, keys in self.engine.idempotency._keys._queues.items():
            for name, key in keys.items():
                if key.state != "done":
                    effects = (name, f"{queue}:{name}")
                    self.excused.update(one for one in effects if self.ledger.count("effect", one))

    # ------------------------------------------------------------------------------------------------- from the start

    async def run(self) -> Verdict:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # dead tasks' errors are what is to be
        logger = logging.getLogger("easybus")
        logger.disabled, points.hook, registry.create = True, _reach, lambda *_: _current.get().engine
        if self.kind == "sqlite":
            self.scenario.prepare(self.database)
        await self.engine.open()
        try:
            return await self._judged()
        finally:
            await self._bury()
            await self.engine.close()
            logger.disabled, points.hook, registry.create = False, None, _create

    async def _judged(self) -> Verdict:
        begun = self.clock.time()
        alive = [self._begin() for _ in range(self.plan.workers)]
        if self.plan.stranger:
            Process(self, "stranger")
        wrong = ["nothing happened"]
        at_rest_since: float | None = None
        stop_at = None if self.plan.stop_after is None else begun + self.plan.stop_after
        rest = 60.0 if self.plan.stalls else 2.0
        while self.clock.time() < begun + _HORIZON and self._begun <= _LIVES:
            await self._settle()
            if stop_at is not None and self.clock.time() >= stop_at:
                stop_at = None
                alive[0].asked_to_stop.set()
                await self._settle_real(alive[0].task)
            if ended := [one for one in alive if one.dead or one.task.done()]:
                alive = [one for one in alive if one not in ended] + [self._begin() for _ in ended]
                at_rest_since = None
                continue
            await self.scenario.operate(self.stock, self.ledger, self.clock.time())
            wrong = await self.scenario.lost(self.stock, self.ledger)
            if wrong:
                at_rest_since = None
            else:
                at_rest_since = self.clock.time() if at_rest_since is None else at_rest_since
                if self.clock.time() >= at_rest_since + rest:
                    break
            due = self.clock.next_due(polls=False)
            now = self.clock.time()
            self.clock.advance_to(now + _STEP if due is None else max(now, min(due, now + _STEP)))
        wrong = wrong + self.scenario.doubled(self.stock, self.ledger, self.excused)
        took = (at_rest_since or self.clock.time()) - begun
        if self.plan.smooth and took > self.scenario.prompt:
            wrong.append(f"it took {took:.1f} s, and nothing went wrong")
        if self.plan.smooth or self.plan.tidy:
            wrong += self.scenario.untidy(self.ledger)
        wrong += [f"a process failed: {one.failed!r}" for one in alive if one.failed is not None]
        return Verdict(wrong, self.reached, self.calls, self.deaths, self.ledger, took)

    def _begin(self) -> Process:
        number, self._begun = self._begun, self._begun + 1
        deaths = self.plan.deaths
        return Process(self, f"p{number}", deaths[number] if number < len(deaths) else "")

    # ------------------------------------------------------------------------------------------------- letting it run

    async def _settle(self) -> None:
        """Until nothing moves by itself: the loop has nothing to run, and no engine is at work."""
        ready: Any = getattr(asyncio.get_running_loop(), "_ready", None)
        quiet = 0
        while quiet < (2 if ready is not None else 40):
            called = self.clock.run_due()
            await asyncio.sleep(0)
            if self.under_way:
                await asyncio.sleep(0.0002)
            quiet = 0 if called or ready or self.under_way else quiet + 1

    async def _settle_real(self, task: asyncio.Task[None]) -> None:
        """A stop that waits for the clock lets it go on; what it waits for otherwise is real."""
        while not task.done():
            await self._settle()
            await asyncio.sleep(0.01)
            due = self.clock.next_due(polls=False)
            if due is not None and not task.done():
                self.clock.advance_to(min(due, self.clock.time() + 0.5))

    async def _bury(self) -> None:
        """End what hangs in dead processes, and the living with them."""
        for one in self.processes:
            one.dead = True
        buried: set[asyncio.Task[Any]] = set()
        for _ in range(2000):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                break
            buried |= left
            for task in left:
                task.cancel()
            await asyncio.sleep(0.0002 if self.under_way else 0)
        else:
            raise AssertionError(f"tasks that do not end: {left}")
        for task in buried:
            # Python 3.11 hides a task's CancelledError from its garbage collector until somebody takes it: the world
            # that hangs on its traceback would stay, and thousands of them make `all_tasks` slow.
            with contextlib.suppress(BaseException):
                task.exception()


async def _reach(point: str) -> None:
    await _current.get().reach(point)


async def run(scenario: Scenario, plan: Plan | None = None, kind: str = "apart", folder: Path | None = None) -> Verdict:
    """Let it happen, and judge."""
    return await World(scenario, plan or Plan(), kind, folder).run()


def die_in(_: Setting) -> None:
    """The running process dies here: for handlers that kill."""
    _current.get().die("in a handler")

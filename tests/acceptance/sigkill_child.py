"""A process of a scenario's service, on any engine. It is forked by a server that has imported all of this already.

It kills itself with SIGKILL where its point is first reached; else it goes on until nothing is left to happen, and
then ends with 0. What is left after its patience is in the file `verdict`, and it ends with 1.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from easybus import connection, points
from easybus.clock import SystemClock
from easybus.engines.registry import create
from easybus.receiving import replay
from easybus.sending import checkback
from easybus.sending.relay import Relay

from .scenarios import (
    Chain,
    Checkback,
    Conflict,
    Dead,
    Deferred,
    FileLedger,
    Handle,
    Outbox,
    Poison,
    Replay,
    Retry,
    Scenario,
    Setting,
    Slow,
    Stock,
    Within,
)

_PATIENCE = 200
"""The scenario's seconds until it is given up, and real ones besides."""
_REAL_PATIENCE = 15.0


@dataclass(frozen=True)
class Life:
    """What a process is told."""

    folder: Path
    """Of its ledger, which the processes before it have begun."""
    scenario: str
    url: str
    storage: str | None = None
    """Of keys, letters and halves, where those are apart from the messages."""
    database: str = ""
    suffix: str = ""
    """Of its queues' and topics' names, where URLs do not keep them apart."""
    point: str = ""
    """Where it dies; empty: it lives."""
    second: float = 0.06
    """How long a scenario's second is: the busier the machine, the longer."""
    turns: int = 0
    """How many turns of the loop after the point it dies: by then the next step is on its way, its answer not read."""


class Brief(Checkback):
    """Its work takes little longer than its half lives unextended."""

    takes = 12.0


def die(_: Setting | None = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "handle": Handle,
    "handle-asking": lambda: Handle(asks=True),
    "slow": lambda: Slow(asks=True),
    "retry": lambda: Retry(asks=True),
    "dead": Dead,
    "replay": lambda: Replay(asks=True),
    "conflict": Conflict,
    "deferred": lambda: Deferred(asks=True),
    "checkback": lambda: Brief(asks=True),
    "outbox": lambda: Outbox(asks=True),
    "within": Within,
    "chain": Chain,
    "poison": lambda: Poison(die, asks=True),
    "poison-at-once": lambda: Poison(die, at_once=True, asks=True),
}


def live(life: Life) -> None:
    """The whole of a process."""
    errors = os.open(life.folder / "errors", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    short_leases(life.second)
    sys.exit(asyncio.run(Process(life).run()))


def hangs() -> None:
    """Tell what every task waits for, and end."""
    for task in asyncio.all_tasks():
        task.print_stack()
    os._exit(3)


def short_leases(second: float) -> None:
    """What takes half a minute in service takes ten of the scenario's seconds here."""
    replay._LEASE = checkback._LEASE = connection._PUMP_LEASE = 10 * second
    defaults = Relay.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lease"] = 10 * second


class Process:
    def __init__(self, life: Life) -> None:
        self._life = life
        self._scenario = SCENARIOS[life.scenario]()
        self._ledger = FileLedger(life.folder / "ledger")
        self._reached = False
        self._it = Setting(
            life.url, self._ledger, asyncio.sleep, time.time, storage=life.storage, database=life.database,
            second=life.second, name=str(os.getpid()), suffix=life.suffix,
        )  # fmt: skip

    async def _reach(self, point: str) -> None:
        if point == self._life.point and not self._reached:
            self._reached = True
            self._turn(self._life.turns)

    def _turn(self, left: int) -> None:
        if not left:
            die()
        asyncio.get_running_loop().call_soon(self._turn, left - 1)

    async def run(self) -> int:
        points.hook = self._reach
        patience = _REAL_PATIENCE + _PATIENCE * self._it.second
        deadline = time.monotonic() + patience
        asyncio.get_running_loop().call_later(patience + _REAL_PATIENCE, hangs)
        wrong = ["nothing happened"]
        while wrong and time.monotonic() < deadline:
            wrong = await self._handled(deadline)
        (self._life.folder / "verdict").write_text("\n".join(wrong))
        return 1 if wrong else 0

    async def _handled(self, deadline: float) -> list[str]:
        """What is wrong once nothing is left to happen, or at the deadline."""
        scenario, it = self._scenario, self._it
        bus = scenario.bus(it)
        async with bus.handling(grace=0.0):
            acting = asyncio.create_task(scenario.act(bus, it))
            storage, queues = bus.opened.storage, [one.queue for one in bus.handlers]
            stock = Stock(bus.driver, storage.dead_letters, storage.transactions, storage.outbox, it.database, queues)
            wrong = ["nothing happened"]
            while wrong and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                if acting.done():
                    acting.result()
                await scenario.operate(stock, it.ledger, it.now())
                wrong = await scenario.lost(stock, it.ledger)
            await asyncio.sleep(0.05)  # what comes after the last step
        wrong += scenario.doubled(stock, it.ledger, EXCUSED)
        if not stock.driver.caps.lists_queues:
            wrong += await self._returned(stock)
        return wrong

    async def _returned(self, stock: Stock) -> list[str]:
        """What was in flight, where the engine does not count that: ready again, now that nobody holds it."""
        engine = create(self._it.url, SystemClock())
        await engine.open()
        try:
            assert engine.driver is not None
            stock.driver = engine.driver
            return await stock.queued()
        finally:
            await engine.close()


class Everywhere(dict[str, int]):
    """The one death may have been between any effect and its DONE, where nobody is asked."""

    def get(self, key: str, default: int | None = None) -> int:  # type: ignore[override]
        return 1


EXCUSED = Everywhere()

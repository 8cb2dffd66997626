"""A process of a scenario's service, on SQLite files: `sigkill_child.py FOLDER SCENARIO APART POINT`.

It kills itself with SIGKILL where POINT (none: `-`) is first reached; else it goes on until nothing is left to happen,
and then ends with 0. What is left after its patience it prints, and ends with 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scenarios import (
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

from easybus import connection, points
from easybus.receiving import replay
from easybus.sending import checkback
from easybus.sending.relay import Relay

SECOND = 0.06
PATIENCE = 25.0


def die(_: Setting) -> None:
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
    "checkback": lambda: Checkback(asks=True),
    "outbox": lambda: Outbox(asks=True),
    "within": Within,
    "poison": lambda: Poison(die),
    "poison-at-once": lambda: Poison(die, at_once=True),
}


def setting(folder: Path, apart: bool) -> Setting:
    """Apart: messages in one file, keys, halves and outbox in another."""
    url, storage = f"sqlite:///{folder}/bus.db", f"sqlite:///{folder}/storage.db"
    return Setting(
        url,
        FileLedger(folder / "ledger"),
        asyncio.sleep,
        time.time,
        storage=storage if apart else None,
        database=f"{folder}/{'storage' if apart else 'bus'}.db",
        second=SECOND,
        name=str(os.getpid()),
    )


def short_leases() -> None:
    """What takes half a minute in service takes half a second here."""
    replay._LEASE = checkback._LEASE = connection._PUMP_LEASE = 10 * SECOND
    defaults = Relay.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lease"] = 10 * SECOND


async def main(folder: Path, scenario: Scenario, apart: bool, point: str) -> int:
    it = setting(folder, apart)
    reached: list[str] = []

    async def hook(name: str) -> None:
        reached.append(name)
        if name == point:
            die(it)

    points.hook = hook
    bus = scenario.bus(it)
    async with bus.handling(grace=0.0):
        acting = asyncio.create_task(scenario.act(bus, it))
        storage = bus.opened.storage
        stock = Stock(bus.driver, storage.dead_letters, storage.transactions, storage.outbox, it.database)
        wrong = ["nothing happened"]
        deadline = time.monotonic() + PATIENCE
        while wrong and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            if acting.done():
                acting.result()
            await scenario.operate(stock, it.ledger, it.now())
            wrong = await scenario.lost(stock, it.ledger)
        await asyncio.sleep(0.05)  # what comes after the last step
    wrong += scenario.doubled(stock, it.ledger, EXCUSED)
    print(json.dumps({"wrong": wrong, "reached": reached}))
    return 1 if wrong else 0


class Everywhere(dict[str, int]):
    """The one death may have been between any effect and its DONE, where nobody is asked."""

    def get(self, key: str, default: int | None = None) -> int:  # type: ignore[override]
        return 1


EXCUSED = Everywhere()

if __name__ == "__main__":
    short_leases()
    sys.exit(asyncio.run(main(Path(sys.argv[1]), SCENARIOS[sys.argv[2]](), sys.argv[3] == "apart", sys.argv[4])))

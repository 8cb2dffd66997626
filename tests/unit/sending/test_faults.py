"""Every fault and every pair of faults at every call of a check-back: published if, and only if, the work took place.

A call fails, or happens and loses its reply, or its process dies before or after it, or it takes so long that every
lease and timeout passes meanwhile, with another process's checker at work all the time. The judge is what reached the
queue, against whether the work landed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from easybus.clock import Clock, sleep
from easybus.connection import Publisher
from easybus.engines.contract import Ack, Binding, DeclareQueue, DeclareTopic
from easybus.engines.memory import create
from easybus.errors import Rollback, SendError, Unavailable
from easybus.message import Message
from easybus.sending.checkback import Checkback, CheckPolicy
from easybus.testing.virtual import VirtualClock

FAULTS = ("fails", "loses its reply", "dies before", "dies after", "stalls before", "stalls after")
STALL = 100.0  # past every lease and timeout
TIMEOUT = 30.0
ORDER = Message(id="m-1", payload=b"1")


class Faults:
    """Which calls, counted over all processes, do not go well."""

    def __init__(self, plan: dict[int, str]) -> None:
        self.plan = plan
        self.calls = 0

    def next(self) -> str:
        self.calls += 1
        return self.plan.get(self.calls, "")


class Wire:
    """One process's way to a storage or a driver."""

    def __init__(self, process: Process, target: Any) -> None:
        self._process = process
        self._target = target

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._target, name)
        if not callable(target):
            return target

        async def call(*args: Any, **kwargs: Any) -> Any:
            process = self._process
            fault = "" if process.dead.done() else process.faults.next()
            if fault == "fails":
                raise Unavailable("scripted")
            if process.dead.done() or fault == "dies before":
                await process.die()
            if fault == "stalls before":
                await sleep(process.clock, STALL)
            result = await target(*args, **kwargs)
            if fault == "loses its reply":
                raise Unavailable("scripted")
            if fault == "dies after":
                await process.die()
            if fault == "stalls after":
                await sleep(process.clock, STALL)
            return result

        return call


class Process:
    """A process of the service, with a checker that is told the truth."""

    def __init__(self, engine: Any, clock: Clock, faults: Faults, truth: Any) -> None:
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.forever = asyncio.Event()
        self.faults = faults
        self.clock = clock
        driver: Any = Wire(self, engine.driver)
        storage: Any = Wire(self, engine.transactions)
        logger = logging.getLogger("easybus.faults")
        logger.disabled = True
        self.checkback = Checkback(
            service="shop", storage=storage, publisher=Publisher(driver, clock), clock=clock, logger=logger
        )

        async def committed(message: Message) -> bool | None:
            return truth()

        self.checkback.answer("orders", committed, CheckPolicy(timeout=TIMEOUT, retry_delay=lambda attempt: 5.0))

    async def die(self) -> None:
        """Nothing of this process goes on."""
        if not self.dead.done():
            self.dead.set_result(None)
        await self.forever.wait()


class Run:
    """One send with its faults, and everything that happens until nothing is left to happen."""

    def __init__(self, ending: str, lands: bool, plan: dict[int, str]) -> None:
        self.clock = VirtualClock()
        self.engine = create("memory://", self.clock)
        self.faults = Faults(plan)
        self.ending = ending
        self.lands = lands
        self.state = "not begun"
        self.sent = False
        self.sender, self.other = (Process(self.engine, self.clock, self.faults, self.truth) for _ in range(2))
        self.raised: BaseException | None = None

    def truth(self) -> bool | None:
        if self.state == "landed":
            return True
        begins = self.state == "not begun" and not self.sent and not self.sender.dead.done()
        return None if begins or self.state == "under way" else False

    async def advance(self, seconds: float) -> None:
        until = self.clock.time() + seconds
        await settle()
        while (when := self.clock.next_due()) is not None and when <= until:
            self.clock.advance_to(when)
            self.clock.run_due()
            await settle()
        self.clock.advance_to(until)

    async def lives_through(self, process: Process, work: Coroutine[Any, Any, Any]) -> BaseException | None:
        """Let `process` do this until it ends or the process dies, while another one asks; returns what it raised."""
        task = asyncio.ensure_future(work)
        await settle()
        checking: asyncio.Future[Any] | None = None
        while not task.done() and not process.dead.done():
            if checking is None or checking.done():
                checking = asyncio.ensure_future(self.other.checkback.check_due())
                checking.add_done_callback(lambda done: done.cancelled() or done.exception())
            await self.advance(10)
        await self.advance(STALL)
        return task.exception() if task.done() else None

    async def send(self) -> None:
        async with self.sender.checkback.transaction("orders", ORDER):
            self.state = "under way"
            await sleep(self.clock, TIMEOUT / 2)
            if self.sender.dead.done():
                await self.sender.die()
            self.state = "landed" if self.lands else "failed"
            if self.ending == "raises":
                raise ConnectionError("the reply is lost")
            if self.ending == "rolls back":
                raise Rollback

    async def to_the_end(self) -> list[str]:
        await self.engine.open()
        await self.engine.driver.declare([DeclareTopic("orders"), DeclareQueue("seen"), Binding("orders", "seen")])
        self.raised = await self.lives_through(self.sender, self.send())
        self.sent = True
        if self.state == "under way":  # the process died, the work did not
            self.state = "landed" if self.lands else "failed"
        await self.lives_through(self.sender, self.sender.checkback.drained())
        restarted = Process(self.engine, self.clock, Faults({}), self.truth)
        for checker in (self.other, self.sender, self.other, self.sender, restarted, restarted):
            await self.lives_through(checker, checker.checkback.check_due())
        found = await self.engine.driver.fetch("seen", 100, 0, 30)
        await self.engine.driver.settle("seen", [Ack(delivery) for delivery in found])
        return [Message.from_bytes(delivery.body).id for delivery in found]


async def bury() -> None:
    """End what hangs in dead processes."""
    while dead := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in dead:
            task.cancel()
        await asyncio.wait(dead, timeout=0.01)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def judge(ending: str, lands: bool, plan: dict[int, str]) -> int:
    run = Run(ending, lands, plan)
    seen = await run.to_the_end()
    said = f"{plan}: work {run.state}, seen {seen}, raised {run.raised!r}"
    assert set(seen) == ({"m-1"} if run.state == "landed" else set()), said
    assert await run.engine.transactions.fetch("m-1") is None, f"a half is left; {said}"
    if run.state == "landed" and ending == "ends":
        assert not isinstance(run.raised, SendError), f"raised though the work is known done; {said}"
    assert run.raised is None or isinstance(run.raised, SendError | ConnectionError), said
    if isinstance(run.raised, SendError):
        assert run.raised.failed == [ORDER], said
        assert run.state == "not begun", said
    calls = run.faults.calls
    await bury()
    await run.engine.close()
    return calls


@pytest.mark.parametrize(
    ("ending", "lands"), [("ends", True), ("raises", True), ("raises", False), ("rolls back", False)], ids=str
)
async def test_published_if_and_only_if_the_work_took_place_whatever_fails(ending: str, lands: bool) -> None:
    calls = await judge(ending, lands, {})
    for at, fault in itertools.product(range(1, calls + 4), FAULTS):
        more = await judge(ending, lands, {at: fault})
        for second, another in itertools.product(range(at + 1, min(more, calls + 6) + 1), FAULTS):
            await judge(ending, lands, {at: fault, second: another})

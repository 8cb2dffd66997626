"""One process's sending on the memory engine and a virtual clock, with calls that fail or lose their replies."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.unit.turns import settle

from easybus import points
from easybus.connection import Publisher
from easybus.engines.contract import Ack, Binding, DeclareQueue, DeclareTopic, Half
from easybus.engines.memory import create
from easybus.errors import Unavailable
from easybus.message import Message
from easybus.sending.checkback import Checkback, CheckPolicy
from easybus.testing.virtual import VirtualClock

TIMEOUT = 60.0


class Died(BaseException):
    """The process died here."""


class Scripted:
    """A storage or driver whose next calls fail (`failing`) or happen and lose their reply (`losing`)."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._script: dict[str, deque[str]] = {}
        self.calls: list[str] = []
        self.down = False

    def failing(self, method: str, times: int = 1) -> None:
        self._script.setdefault(method, deque()).extend(["fail"] * times)

    def losing(self, method: str, times: int = 1) -> None:
        self._script.setdefault(method, deque()).extend(["lose"] * times)

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._target, name)
        if not asyncio.iscoroutinefunction(target):
            return target

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            script = self._script.get(name)
            step = script.popleft() if script else ""
            if self.down or step == "fail":
                raise Unavailable(f"scripted: {name} fails")
            result = await target(*args, **kwargs)
            if step == "lose":
                raise Unavailable(f"scripted: the reply of {name} is lost")
            return result

        return call


class World:
    """A broker with one bound queue, a transaction storage, and processes on them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.engine = create("memory://", self.clock)
        self.driver = Scripted(self.engine.driver)
        self.storage = Scripted(self.engine.transactions)
        self.publisher = Publisher(self.driver, self.clock)
        self.truth: bool | None = None
        self.asked: list[Message] = []
        self.reached: list[str] = []
        self.checkback = self.process()

    async def open(self) -> None:
        await self.engine.open()
        await self.publisher.prepare()
        await self.engine.driver.declare([DeclareTopic("orders"), DeclareQueue("seen"), Binding("orders", "seen")])

    def process(self, service: str = "shop", *, answers: bool = True, **policy: Any) -> Checkback:
        """What another process of `service` has; its checker is told `truth`."""
        checkback = Checkback(
            service=service,
            storage=self.storage,
            publisher=self.publisher,
            clock=self.clock,
            logger=logging.getLogger("easybus"),
        )
        if answers:
            checkback.answer("orders", self.committed, CheckPolicy(**{"timeout": TIMEOUT, **policy}))
        return checkback

    async def committed(self, message: Message) -> bool | None:
        self.asked.append(message)
        return self.truth

    async def arrived(self) -> list[Message]:
        """What reached the queue since the last look."""
        found = await self.engine.driver.fetch("seen", 1000, 0, 30)
        await self.engine.driver.settle("seen", [Ack(delivery) for delivery in found])
        return [Message.from_bytes(delivery.body) for delivery in found]

    async def half(self, id: str = "m-1") -> Half | None:
        return await self.engine.transactions.fetch(id)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, with everything that falls due in them."""
        until = self.clock.time() + seconds
        await settle()
        while (when := self.clock.next_due()) is not None and when <= until:
            self.clock.advance_to(when)
            self.clock.run_due()
            await settle()
        self.clock.advance_to(until)

    def at(self, point: str, action: Callable[[], Awaitable[None]]) -> None:
        """Do this when `point` is reached."""

        async def hook(name: str) -> None:
            self.reached.append(name)
            if name == point:
                await action()

        points.hook = hook

    def die_at(self, point: str) -> None:
        """The process dies at `point`: nothing of it goes on."""

        async def die() -> None:
            raise Died

        self.at(point, die)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.open()
    yield world
    points.hook = None
    await settle()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    left = [task.get_name() for task in others if task.get_name().startswith("easybus")]
    await world.engine.close()
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
def order() -> Message:
    return Message(id="m-1", payload=b'{"order":1}', route_key="paid.eu", headers={"type": "OrderPaid"})

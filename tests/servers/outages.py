"""What every engine's server goes through in tests: killed, restarted, frozen, cut off, gone for ten minutes.

An engine's tests subclass `ServerOutages` with fixtures `server` and `url`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from easybus import Bus, SendError
from easybus.clock import SystemClock
from easybus.engines.contract import Ack, DeclareQueue, Driver, Engine
from easybus.engines.registry import create
from easybus.errors import EngineError, Unavailable
from easybus.testing.driver_base import drain, fresh, publish, to_queue

from . import Server
from .proxy import Proxy

__all__ = ["ServerOutages", "eventually"]

T = TypeVar("T")


async def eventually(call: Callable[[], Awaitable[T]], within: float = 10.0) -> T:
    """What `call` returns, once it raises `Unavailable` no more."""
    deadline = time.monotonic() + within
    while True:
        try:
            return await call()
        except Unavailable:
            assert time.monotonic() < deadline, f"still unavailable after {within} s"
            await asyncio.sleep(0.02)


@pytest.mark.outages
class ServerOutages:
    """Errors are ours and in time, nothing that was confirmed is lost, and nothing has to be opened again."""

    noticed = 5.0
    """Seconds within which a server that stops answering is noticed, at the `url`'s timeouts."""

    @pytest.fixture
    def server(self) -> Server:
        raise NotImplementedError

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = create(url, SystemClock())
        await engine.open()
        yield engine
        await engine.close()

    @pytest.fixture
    async def driver(self, engine: Engine) -> Driver:
        assert engine.driver is not None
        await engine.driver.declare([DeclareQueue("jobs")])
        await drain(engine.driver, "jobs")
        return engine.driver

    async def test_calls_fail_fast_while_the_server_is_down_and_work_by_themselves_when_it_is_back(
        self, driver: Driver, server: Server
    ) -> None:
        await publish(driver, [to_queue("jobs", b"before")])
        (held,) = await driver.fetch("jobs", 1, 5.0, 30.0)
        waiting = asyncio.create_task(driver.fetch("jobs", 1, 60.0, 30.0))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.kill)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await waiting
        for _ in range(3):
            assert await self._refuses(driver)
            with pytest.raises(Unavailable):
                await driver.fetch("jobs", 1, 5.0, 30.0)
            with pytest.raises(Unavailable):
                await driver.declare([DeclareQueue("jobs")])
            with pytest.raises(Unavailable):
                await driver.stats("jobs")
        assert time.monotonic() - began < self.noticed
        await asyncio.to_thread(server.start)
        began = time.monotonic()
        await eventually(lambda: _sent(driver, b"after"))
        found = {held.body}
        while b"after" not in found:
            batch = await eventually(lambda: driver.fetch("jobs", 10, 1.0, 30.0))
            found |= {one.body for one in batch}
            await driver.settle("jobs", [Ack(one) for one in batch])
        assert time.monotonic() - began <= 5.0

    async def test_what_was_confirmed_outlives_a_server_killed_at_that_instant(
        self, driver: Driver, server: Server
    ) -> None:
        confirmed: list[bytes] = []

        async def send(part: int) -> None:
            for at in range(10_000):
                body = b"%d/%d" % (part, at)
                try:
                    (result,) = await driver.publish([to_queue("jobs", body)])
                except Unavailable:
                    return
                if isinstance(result, Unavailable):
                    return
                assert not isinstance(result, Exception)
                confirmed.append(body)

        senders = [asyncio.create_task(send(part)) for part in range(5)]
        while len(confirmed) < 100:
            await asyncio.sleep(0)
        server.kill()
        await asyncio.gather(*senders)
        await asyncio.to_thread(server.start)
        assert set(await eventually(lambda: drain(driver, "jobs", 1.0), within=20.0)) >= set(confirmed)

    async def test_a_server_that_stops_answering_is_noticed_within_the_timeout(
        self, driver: Driver, server: Server
    ) -> None:
        await publish(driver, [to_queue("jobs", b"before")])
        await drain(driver, "jobs")
        waiting = asyncio.create_task(driver.fetch("jobs", 1, 60.0, 30.0))
        await asyncio.sleep(0.1)
        server.freeze()
        try:
            began = time.monotonic()
            assert await self._refuses(driver)
            assert await self._refuses(driver)  # and a new connection is not waited for longer
            with pytest.raises(Unavailable):
                await waiting
            assert time.monotonic() - began < self.noticed
        finally:
            server.thaw()
        await eventually(lambda: _sent(driver, b"after"))
        assert b"after" in await eventually(lambda: drain(driver, "jobs"))

    async def test_closing_while_the_server_is_frozen_ends(self, url: str, server: Server) -> None:
        engine = create(url, SystemClock())
        await engine.open()
        assert engine.driver is not None
        await engine.driver.declare([DeclareQueue("jobs")])
        waiting = asyncio.create_task(engine.driver.fetch("jobs", 1, 60.0, 30.0))
        await asyncio.sleep(0.1)
        server.freeze()
        try:
            async with asyncio.timeout(2 * self.noticed):
                await engine.close()
                await asyncio.gather(waiting, return_exceptions=True)
        finally:
            server.thaw()

    async def test_a_publish_cut_in_the_middle_of_a_frame_is_there_if_it_was_confirmed(
        self, driver: Driver, server: Server, url: str
    ) -> None:
        async with Proxy(server.port) as proxy:
            engine = create(url.replace(f":{server.port}", f":{proxy.port}"), SystemClock())
            await engine.open()
            cut, confirmed = engine.driver, set[bytes]()
            assert cut is not None
            for at, budget in enumerate((1, 7, 8, 30, 60, 100, 150, 200, 300, 400)):
                await eventually(lambda: _sent(cut, b"warm"))
                proxy.budget = budget
                body = b"%d" % at + b"x" * 200
                try:
                    (result,) = await cut.publish([to_queue("jobs", body)])
                except EngineError as error:
                    result = error
                if isinstance(result, Exception):
                    assert isinstance(result, Unavailable)
                else:
                    confirmed.add(body)
                proxy.budget = None
            await eventually(lambda: _sent(cut, b"last"))
            await engine.close()
            assert proxy.cuts >= 4
        assert set(await drain(driver, "jobs", 1.0)) >= {*confirmed, b"last"}

    @pytest.mark.parametrize("how", ["restarted", "gone for seconds", "frozen"])
    async def test_a_bus_goes_on_by_itself_and_says_it_once(
        self, url: str, server: Server, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def outage() -> None:
            if how == "frozen":
                server.freeze()
                await asyncio.sleep(self.noticed + 1.0)
                server.thaw()
                return
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(5.0 if how == "gone for seconds" else 0.0)
            await asyncio.to_thread(server.start)

        await self._survived(url, outage, caplog)

    @pytest.mark.long
    @pytest.mark.timeout(900)
    async def test_a_bus_goes_on_by_itself_after_ten_minutes(
        self, url: str, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def outage() -> None:
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(600.0)
            await asyncio.to_thread(server.start)

        await self._survived(url, outage, caplog)

    async def _refuses(self, driver: Driver) -> bool:
        try:
            (result,) = await driver.publish([to_queue("jobs", b"refused")])
        except Unavailable:
            return True
        return isinstance(result, Unavailable)

    async def _survived(
        self, url: str, outage: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bus that sends and handles all the while loses nothing, is back in five seconds, and says two lines."""
        handled: set[int] = set()
        confirmed: list[tuple[int, float]] = []
        slowest, stopping = 0.0, False
        holds_keys = create(url, SystemClock()).idempotency is not None
        bus = Bus(url, service=fresh("service"), storage=None if holds_keys else f"memory://{fresh('keys')}")
        jobs = bus.queue(fresh("jobs"), int)

        @jobs.handler(lease=5)  # what a fetch took whose reply was lost comes again after that
        async def handle(number: int) -> None:
            handled.add(number)

        async def send() -> None:
            nonlocal slowest
            number = 0
            while not stopping:
                number, began = number + 1, time.monotonic()
                try:
                    await jobs.send(number)
                    confirmed.append((number, began))
                except SendError:
                    await asyncio.sleep(0.1)
                slowest = max(slowest, time.monotonic() - began)
                await asyncio.sleep(0.01)

        async with bus.handling():
            with caplog.at_level(logging.WARNING, "easybus"):
                sending = asyncio.create_task(send())
                await _until(lambda: len(handled) > 20, 20.0)
                await outage()
                back = time.monotonic()
                await _until(lambda: any(at > back and number in handled for number, at in confirmed), 5.0)
                await _until(lambda: "up again" in caplog.text, 10.0)
                stopping = True
                await sending
                await _until(lambda: handled >= {number for number, _ in confirmed}, 40.0)
        said = [line for line in caplog.messages if ": down" in line or "up again" in line]
        assert ["up again" in line for line in said] == [False, True], said
        assert slowest < self.noticed + 1.0, "a send takes longer than its timeout"


async def _sent(driver: Driver, body: bytes) -> None:
    (result,) = await driver.publish([to_queue("jobs", body)])
    if isinstance(result, Exception):
        raise result


async def _until(condition: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.01)

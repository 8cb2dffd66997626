"""What goes wrong: cancelled fetches, closed connections, killed servers; and the fused steps under late hands."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..engines.contract import (
    Ack,
    Busy,
    Claim,
    Claimed,
    Conflict,
    Delivery,
    Done,
    Driver,
    Engine,
    Finish,
    FusedDriver,
    Nack,
    Settled,
)
from ..errors import EasybusError, EngineError
from .driver_base import DriverBase, bodies, drain, fresh, needs, publish, receive, to_queue, topology

__all__ = ["DriverFaults", "DriverFused"]

SHORT = 0.4
"""Seconds of the leases that these tests wait for."""
Restart = Callable[[], Awaitable[None]]


class DriverFaults(DriverBase):
    """Cancelling, closing, killing."""

    async def test_a_cancelled_fetch_ends_within_a_second_and_leaks_nothing(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        assert await driver.fetch(queue, 1, 0.05, 30.0) == []  # what lives as long as the driver does is there now
        tasks, threads = asyncio.all_tasks(), threading.active_count()
        fetches = [asyncio.create_task(driver.fetch(queue, 10, 60.0, 30.0)) for _ in range(10)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        for fetch in fetches:
            fetch.cancel()
        await asyncio.wait(fetches, timeout=5.0)
        assert all(fetch.done() for fetch in fetches)
        assert time.monotonic() - began <= 1.0
        left = asyncio.all_tasks() - tasks
        if left:
            await asyncio.wait(left, timeout=1.0)
        assert asyncio.all_tasks() <= tasks
        assert threading.active_count() <= threads

    async def test_ten_that_leave_at_once_take_nothing_with_them(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(50)
        await topology(driver, [queue])
        fetches = [asyncio.create_task(driver.fetch(queue, 1, 60.0, SHORT)) for _ in range(10)]
        await asyncio.sleep(0.05)
        for fetch in fetches:
            fetch.cancel()
        await publish(driver, [to_queue(queue, body) for body in sent])
        await asyncio.gather(*fetches, return_exceptions=True)
        got = {one.body for one in await receive(driver, queue, 50, within=SHORT + 5.0)}
        assert got == set(sent)

    async def test_a_fetch_cancelled_as_its_message_comes_loses_nothing(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        for number in range(20):
            fetch = asyncio.create_task(driver.fetch(queue, 1, 5.0, SHORT))
            await asyncio.sleep(0)
            sending = asyncio.create_task(publish(driver, [to_queue(queue, b"%d" % number)]))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            fetch.cancel()
            await sending
            with contextlib.suppress(asyncio.CancelledError):
                await driver.settle(queue, [Ack(one) for one in await fetch])
                continue
            (one,) = await receive(driver, queue, 1, within=SHORT + 1.0)
            assert one.body == b"%d" % number

    async def test_a_waiting_fetch_is_passed_by_no_message_when_its_neighbour_leaves(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        leaving = asyncio.create_task(driver.fetch(queue, 1, 10.0, SHORT))
        await asyncio.sleep(0.01)
        staying = asyncio.create_task(driver.fetch(queue, 1, 10.0, SHORT))
        await asyncio.sleep(0.05)
        await publish(driver, [to_queue(queue, b"for whoever stays")])
        leaving.cancel()
        async with asyncio.timeout(SHORT + 1.0):
            await asyncio.wait([leaving, staying], return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not leaving.cancelled():
                staying.cancel()  # it was handed over before the cancellation came
            else:
                assert [one.body for one in await staying] == [b"for whoever stays"]

    async def test_twenty_reopenings_lose_nothing(self, engine: Engine, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(2_000)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        got: set[bytes] = set()
        for _ in range(20):
            batch = await driver.fetch(queue, 60, 5.0, SHORT)
            acked = batch[: len(batch) // 2]
            await driver.settle(queue, [Ack(one) for one in acked])
            got |= {one.body for one in acked}
            await engine.close()
            await engine.open()
        while len(got) < len(sent):
            got |= {one.body for one in await receive(driver, queue, 1, within=SHORT + 5.0)}
        assert got == set(sent)

    async def test_closing_twice_is_no_error_and_ends_a_waiting_fetch(self, engine: Engine, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        fetch = asyncio.create_task(driver.fetch(queue, 1, 60.0, 30.0))
        await asyncio.sleep(0.05)
        await engine.close()
        await engine.close()
        async with asyncio.timeout(2.0):
            with contextlib.suppress(EasybusError, asyncio.CancelledError):
                assert await fetch == []
        await engine.open()
        await publish(driver, [to_queue(queue, b"after")])
        assert await drain(driver, queue) == [b"after"]

    async def test_a_confirmed_publish_outlives_a_killed_server(
        self, engine: Engine, driver: Driver, restart: Restart | None
    ) -> None:
        needs(driver, "durable")
        if restart is None:
            pytest.skip("no server to kill is given (fixture `restart`)")
        queue, sent = fresh("queue"), bodies(100)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        await restart()
        await _connected(engine)
        got = await receive(driver, queue, 100)
        assert {one.body for one in got} == set(sent)

    async def test_attempts_and_delays_outlive_a_killed_server(
        self, engine: Engine, driver: Driver, restart: Restart | None
    ) -> None:
        needs(driver, "durable")
        if restart is None:
            pytest.skip("no server to kill is given (fixture `restart`)")
        queue, delayed = fresh("queue"), fresh("delayed")
        await topology(driver, [queue, delayed])
        await publish(driver, [to_queue(queue, b"held")])
        await receive(driver, queue, 1, ack=False, lease=SHORT)
        began = time.time()
        await publish(driver, [to_queue(delayed, b"later", 2.0)])
        await restart()
        await _connected(engine)
        assert [one.attempt for one in await receive(driver, queue, 1)] >= [2]
        assert [one.body for one in await receive(driver, delayed, 1)] == [b"later"]
        assert time.time() - began >= 1.995


async def _connected(engine: Engine) -> None:
    await engine.close()
    async with asyncio.timeout(5.0):
        while True:
            try:
                return await engine.open()
            except EngineError:
                await asyncio.sleep(0.05)


class DriverFused(DriverBase):
    """Where the engine holds the keys too: fetch with claim, and completion with ack, in one step each."""

    @pytest.fixture
    def fused(self, driver: Driver) -> FusedDriver:
        if not isinstance(driver, FusedDriver):
            pytest.skip(f"{driver.caps.engine} does not fuse fetch with claim")
        return driver

    async def test_what_is_taken_is_claimed_and_finishing_completes_and_acks(
        self, engine: Engine, driver: Driver, fused: FusedDriver
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"1"), to_queue(queue, b"2")])
        taken = await _take(fused, queue, 2)
        assert [(one.claim.before, one.claim.starts) for one in taken if isinstance(one.claim, Claimed)] == [
            (False, 1),
            (False, 1),
        ]
        assert [one.parsed for one in taken] == [("parsed", b"1"), ("parsed", b"2")]
        finished = await fused.finish(queue, [Finish(one.delivery, _token(one.claim), 60.0) for one in taken])
        assert finished == [True, True]
        assert await drain(driver, queue) == []
        assert engine.idempotency is not None
        assert [await engine.idempotency.lookup(queue, one) for one in ("1", "2")] == ["done", "done"]

    async def test_copies_are_told_apart_in_one_batch(self, driver: Driver, fused: FusedDriver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in (b"a", b"a", b"a conflict", b"no claim")])
        claims = [one.claim for one in await _take(fused, queue, 4)]
        assert isinstance(claims[0], Claimed)
        assert isinstance(claims[1], Busy)
        assert isinstance(claims[2], Conflict)
        assert claims[3] is None

    async def test_a_copy_of_what_is_done_is_done(self, driver: Driver, fused: FusedDriver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"a")])
        (first,) = await _take(fused, queue, 1)
        await fused.finish(queue, [Finish(first.delivery, _token(first.claim), 60.0)])
        await publish(driver, [to_queue(queue, b"a")])
        (copy,) = await _take(fused, queue, 1)
        assert isinstance(copy.claim, Done)

    async def test_a_late_finish_does_neither(self, engine: Engine, driver: Driver, fused: FusedDriver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"a")])
        (late,) = await _take(fused, queue, 1, lease=SHORT)
        async with asyncio.timeout(SHORT + 5.0):
            (holder,) = await _take(fused, queue, 1, wait=SHORT + 1.0)
            while isinstance(holder.claim, Busy):  # the claim may end a moment after the delivery's lease
                assert await driver.settle(queue, [Nack(holder.delivery)]) == [Settled.DONE]
                (holder,) = await _take(fused, queue, 1)
        assert isinstance(holder.claim, Claimed)
        assert (holder.claim.before, holder.claim.starts) == (True, 2)
        assert await fused.finish(queue, [Finish(late.delivery, _token(late.claim), 60.0)]) == [False]
        assert engine.idempotency is not None
        assert await engine.idempotency.lookup(queue, "a") == "claimed"
        assert await driver.settle(queue, [Ack(holder.delivery)]) == [Settled.DONE]

    async def test_one_late_finish_does_not_fail_its_batch(self, driver: Driver, fused: FusedDriver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"a"), to_queue(queue, b"b")])
        first, second = await _take(fused, queue, 2)
        finishes = [Finish(first.delivery, "no token", 60.0), Finish(second.delivery, _token(second.claim), 60.0)]
        assert await fused.finish(queue, finishes) == [False, True]


def _parse(delivery: Delivery) -> tuple[Claim | None, Any]:
    """The body's first letter is its id; what follows is another payload."""
    if delivery.body == b"no claim":
        return None, None
    return Claim(delivery.queue, delivery.body[:1].decode(), delivery.body, SHORT), ("parsed", delivery.body)


async def _take(fused: FusedDriver, queue: str, number: int, wait: float = 2.0, lease: float = 30.0) -> list[Any]:
    taken = await fused.take(queue, number, wait, lease, _parse)
    assert len(taken) == number
    return taken


def _token(claim: Any) -> str:
    assert isinstance(claim, Claimed)
    return claim.token

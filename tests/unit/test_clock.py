"""Clocks: what waits on one wakes by it, and a virtual one keeps its order."""

import asyncio
from math import inf, nan

import pytest

from easybus.clock import SystemClock, sleep, wait
from easybus.testing.virtual import VirtualClock


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_virtual_clock_starts_at_2026_and_stands_still() -> None:
    clock = VirtualClock()
    assert clock.time() == 1_767_225_600.0 == VirtualClock().time()
    assert VirtualClock(5.0).time() == 5.0


def test_due_calls_are_made_in_the_order_of_their_times_then_of_their_asking() -> None:
    clock, called = VirtualClock(0), []
    for delay, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (-3.0, "now"), (9.0, "later")):
        clock.call_later(delay, lambda name=name: called.append(name))
    assert clock.next_due() == 0.0
    clock.advance_to(2.0)
    assert called == []
    assert clock.run_due() == 4
    assert called == ["now", "a", "b", "c"]
    assert clock.next_due() == 9.0
    assert clock.run_due() == 0


def test_time_never_goes_back() -> None:
    clock = VirtualClock(10)
    clock.advance_to(5)
    assert clock.time() == 10


def test_a_cancelled_call_is_never_made_even_by_one_due_at_the_same_time() -> None:
    clock, called = VirtualClock(0), []
    gone = clock.call_later(1.0, lambda: called.append("gone"))
    gone.cancel()
    assert clock.next_due() is None
    clock.call_later(1.0, lambda: last.cancel())  # noqa: PLW0108 - it is not there yet
    last = clock.call_later(1.0, lambda: called.append("last"))
    clock.advance_to(1.0)
    assert clock.run_due() == 1
    assert called == []
    last.cancel()


def test_what_a_call_asks_for_waits_for_the_next_run() -> None:
    clock, called = VirtualClock(0), []

    def again() -> None:
        called.append(clock.time())
        clock.call_later(0.0, again)

    again()
    assert clock.run_due() == 1
    assert clock.run_due() == 1
    assert len(called) == 3


def test_a_call_that_raises_leaves_the_others_due() -> None:
    clock, called = VirtualClock(0), []
    clock.call_later(0.0, lambda: 1 / 0)
    clock.call_later(0.0, lambda: called.append("other"))
    with pytest.raises(ZeroDivisionError):
        clock.run_due()
    assert clock.run_due() == 1
    assert called == ["other"]


@pytest.mark.parametrize("delay", [inf, nan])
def test_a_call_that_would_never_come_is_refused(delay: float) -> None:
    with pytest.raises(ValueError, match="never"):
        VirtualClock().call_later(delay, print)


async def test_sleep_ends_when_its_clock_says_so() -> None:
    clock = VirtualClock(0)
    sleeper = asyncio.create_task(sleep(clock, 60.0))
    await settle()
    clock.advance_to(59.9)
    clock.run_due()
    await settle()
    assert not sleeper.done()
    clock.advance_to(60.0)
    clock.run_due()
    await sleeper


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = VirtualClock(0)
    sleeper = asyncio.create_task(sleep(clock, 60.0))
    await settle()
    sleeper.cancel()
    await asyncio.gather(sleeper, return_exceptions=True)
    assert clock.next_due() is None


async def test_wait_says_whether_the_future_came_and_leaves_it_alone() -> None:
    clock = VirtualClock(0)
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait(clock, future, 1.0))
    await settle()
    clock.advance_to(1.0)
    clock.run_due()
    assert await waiting is False
    assert not future.cancelled()
    waiting = asyncio.create_task(wait(clock, future, None))
    await settle()
    future.set_exception(ValueError("its own"))
    assert await waiting is True
    assert await wait(clock, future, 1.0) is True
    assert clock.next_due() is None
    assert isinstance(future.exception(), ValueError)


async def test_the_systems_clock_calls_later_and_not_when_cancelled() -> None:
    clock, called = SystemClock(), asyncio.Event()
    never = clock.call_later(0.0, lambda: pytest.fail("it was cancelled"))
    never.cancel()
    began = clock.time()
    clock.call_later(0.05, called.set)
    async with asyncio.timeout(2):
        await called.wait()
    assert clock.time() - began >= 0.045

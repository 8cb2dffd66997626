"""Time, so that a test can own it.

Everything that waits in easybus waits on a `Clock`; only `bus.testing()` gives one that a test moves by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Clock", "SystemClock", "Timer", "sleep", "wait"]


class Timer(Protocol):
    """A call that was asked for later."""

    def cancel(self) -> None:
        """Never call, if it has not been called yet."""


class Clock(Protocol):
    """The time now, and calls at a later time."""

    def time(self) -> float:
        """Seconds since 1970."""
        ...

    def call_later(self, delay: float, callback: Callable[[], Any], *, poll: bool = False) -> Timer:
        """Call `callback` on the running loop in `delay` seconds. `poll`: it only looks whether anything is to be
        done, so that a test's clock may pass over it."""
        ...


class SystemClock:
    """The computer's own clock."""

    def time(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], Any], *, poll: bool = False) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)


async def sleep(clock: Clock, seconds: float, *, poll: bool = False) -> None:
    """Sleep for `seconds` of `clock`."""
    await wait(clock, asyncio.get_running_loop().create_future(), seconds, poll=poll)


async def wait(clock: Clock, future: asyncio.Future[Any], seconds: float | None, *, poll: bool = False) -> bool:
    """Wait until `future` is done, `seconds` of `clock` at most; says whether it is done.

    The future itself is left alone: not cancelled by the time-out, its error not raised.
    """
    if future.done():
        return True
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = None if seconds is None else clock.call_later(max(0.0, seconds), wake, poll=poll)
    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
    return future.done()

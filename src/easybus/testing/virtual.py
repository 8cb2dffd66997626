"""A clock that a test moves by hand."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import isfinite
from typing import Any

__all__ = ["VirtualClock", "VirtualTimer"]

START = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""


class VirtualTimer:
    """A call that a `VirtualClock` owes; one that was made or cancelled is `None`."""

    __slots__ = ("callback", "poll")

    def __init__(self, callback: Callable[[], Any], poll: bool) -> None:
        self.callback: Callable[[], Any] | None = callback
        self.poll = poll

    def cancel(self) -> None:
        """Never call, if it has not been called yet."""
        self.callback = None


class VirtualClock:
    """Time that stands still until it is moved. Calls come in the order of their times, then of their asking.

        while (when := clock.next_due()) is not None and when <= until:
            clock.advance_to(when)
            clock.run_due()
            ...  # let the event loop run until nothing more happens

    Moving it and calling are two steps, so that a test can look between them.
    """

    def __init__(self, start: float = START) -> None:
        """`start`: seconds since 1970."""
        self._now = float(start)
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._order = count()

    def time(self) -> float:
        """Seconds since 1970."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], Any], *, poll: bool = False) -> VirtualTimer:
        """Owe a call in `delay` seconds; one that is not after now is due at once, and still waits for `run_due`.
        `poll`: it only looks around, and `next_due` may pass over it.

        Raises:
            ValueError: the delay is not a finite number.
        """
        if not isfinite(delay):
            raise ValueError(f"a call in {delay} seconds would never come, or never rest")
        timer = VirtualTimer(callback, poll)
        heappush(self._timers, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    def next_due(self, *, polls: bool = True) -> float | None:
        """When the next call is owed (seconds since 1970), or None if none is; without those that only look around."""
        while self._timers and self._timers[0][2].callback is None:
            heappop(self._timers)
        if not polls:
            return min((when for when, _, timer in self._timers if timer.callback and not timer.poll), default=None)
        return self._timers[0][0] if self._timers else None

    def advance_to(self, when: float) -> None:
        """Move to `when` (seconds since 1970), calling nothing; a time that is past moves nothing."""
        self._now = max(self._now, when)

    def run_due(self) -> int:
        """Make the calls that are due, and return how many; those that they ask for wait for the next time."""
        called, first_new = 0, next(self._order)
        while (when := self.next_due()) is not None and when <= self._now and self._timers[0][1] < first_new:
            timer = heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                called += 1
        return called

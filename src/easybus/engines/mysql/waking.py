"""Who waits for which queue, and how long until they look again: the server pushes nothing.

publish in this process    → its watchers look at once
publish in another process → they find it when they next look
something falls due        → they look then
nothing is found           → the next look is after 20 ms, then 40, … 500 ms at most; something found: 20 ms again
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias, TypeVar

from ...clock import Clock, wait

T = TypeVar("T")
Watcher: TypeAlias = "asyncio.Future[None]"

OUTBOX = 0
"""What those wait for who wait for outbox rows; no queue has this id."""
SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two looks."""
_SLACK = 0.0005
"""Seconds past a due time, so that rounding does not wake us before it."""


class Watchers:
    """Futures by the id of what they wait for, each woken once; and the pause between two looks at it."""

    def __init__(self) -> None:
        self._by_id: dict[int, set[Watcher]] = {}
        self._pauses: dict[int, float] = {}

    def watch(self, number: int) -> Watcher:
        """A future that the next wake of `number` sets."""
        watcher: Watcher = asyncio.get_running_loop().create_future()
        self._by_id.setdefault(number, set()).add(watcher)
        return watcher

    def forget(self, number: int, watcher: Watcher) -> None:
        """Wait no longer."""
        there = self._by_id.get(number)
        if there is not None:
            there.discard(watcher)
            if not there:
                del self._by_id[number]

    def wake(self, numbers: Iterable[int]) -> None:
        """Wake all who wait for any of these: something of theirs was committed here."""
        for number in numbers:
            self._pauses.pop(number, None)
            for watcher in self._by_id.pop(number, ()):
                if not watcher.done():
                    watcher.set_result(None)

    def wake_all(self) -> None:
        """Wake all."""
        self.wake(list(self._by_id))

    def pause(self, number: int, *, found: bool) -> float:
        """Seconds until the next look, after one that found something, or nothing."""
        if found:
            self._pauses.pop(number, None)
            return 0.0
        pause = self._pauses.get(number, SHORTEST)
        self._pauses[number] = min(pause * 2, LONGEST)
        return pause


async def until_found(
    watchers: Watchers,
    clock: Clock,
    seconds: float,
    number: int,
    attempt: Callable[[], Awaitable[tuple[list[T], float | None, int]]],
) -> list[T]:
    """What `attempt` finds, tried again on every wake, due time and pause; nothing after `seconds`.

    `attempt` returns what it found, the seconds until the next row is due (None: none is known), and the id to wait
    for. A watcher is registered before the attempt that may find nothing, so that no commit in between is missed.
    """
    end = clock.time() + seconds
    while True:
        watching = number
        watcher = watchers.watch(watching)
        try:
            found, due, number = await attempt()
            pause = watchers.pause(watching, found=bool(found))
            left = end - clock.time()
            if found or left <= 0:
                return found
            if number == watching:
                if due is not None:  # past due and not found: another's just now
                    pause = min(pause, due + _SLACK if due > 0 else SHORTEST)
                await wait(clock, watcher, max(_SLACK, min(left, pause)))
        finally:
            watchers.forget(watching, watcher)

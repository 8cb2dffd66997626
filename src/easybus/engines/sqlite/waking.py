"""Who waits for what, and the wait itself: woken in the process at commit, across processes by the writer's polling.

A watcher is registered before the attempt that may find nothing, so that a commit in between is never missed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeAlias, TypeVar

from ...clock import Clock, wait

T = TypeVar("T")
Watcher: TypeAlias = "asyncio.Future[None]"


class Watchers:
    """Futures of many event loops, by the name of what they wait for; each is woken once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, set[Watcher]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def watch(self, name: str) -> Watcher:
        """A future of the running loop that the next commit concerning `name` sets."""
        watcher: Watcher = asyncio.get_running_loop().create_future()
        with self._lock:
            self._by_name.setdefault(name, set()).add(watcher)
        return watcher

    def forget(self, name: str, watcher: Watcher) -> None:
        """Wait no longer."""
        with self._lock:
            there = self._by_name.get(name)
            if there is not None:
                there.discard(watcher)
                if not there:
                    del self._by_name[name]

    def take(self, names: Iterable[str]) -> list[Watcher]:
        """Those who wait for any of `names`, to be woken on their loops."""
        if not self._by_name:
            return []
        with self._lock:
            return [watcher for name in names for watcher in self._by_name.pop(name, ())]

    def take_all(self) -> list[Watcher]:
        """All who wait."""
        with self._lock:
            found = [watcher for there in self._by_name.values() for watcher in there]
            self._by_name.clear()
            return found


async def until_found(
    watchers: Watchers, clock: Clock, name: str, seconds: float, attempt: Callable[[], Awaitable[tuple[list[T], float]]]
) -> list[T]:
    """What `attempt` finds, tried again on every wake and due time; nothing after `seconds`.

    `attempt` returns what it found, and the unix time of the next due row (0: none is known).
    """
    end = clock.time() + seconds
    while True:
        watcher = watchers.watch(name)
        try:
            found, due = await attempt()
            now = clock.time()
            if found or now >= end:
                return found
            # What is due beyond the end has its timer too: a test's clock stops for that, and not for each look. No
            # later than due: where that clock stands still, nobody would come for what is ready by then.
            timer = clock.call_later(max(0.0, due - now), partial(_wake, watcher)) if due else None
            try:
                await wait(clock, watcher, end - now, poll=True)
            finally:
                if timer is not None:
                    timer.cancel()
        finally:
            watchers.forget(name, watcher)


def _wake(watcher: Watcher) -> None:
    if not watcher.done():
        watcher.set_result(None)

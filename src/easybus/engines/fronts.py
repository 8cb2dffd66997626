"""Where each queue in a table was last taken from.

What lies before that in the index is mostly gone, and every fetch would step over it until the server has cleared it
away. What has come there since (committed late) is found by the fetches that begin at the beginning: four a second,
and each one after a fetch that found less than it asked for.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

__all__ = ["Fronts"]

At = TypeVar("At")
_LOOK_BACK = 0.25


class Fronts(Generic[At]):
    """The fronts of one driver, by the queue's number. `At` is a row's due time, as the database gives it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[At, float]] = {}

    def since(self, queue: int) -> At | None:
        """Where the next fetch may begin; None: at the beginning."""
        known = self._known.get(queue)
        if known is None or known[1] + _LOOK_BACK < asyncio.get_running_loop().time():
            return None
        return known[0]

    def reached(self, queue: int, at: At | None, since: At | None) -> None:
        """A fetch that began at `since` has taken up to `at`; None: it found less than it asked for."""
        if at is None:
            self._known.pop(queue, None)
        elif since is None or queue not in self._known:
            self._known[queue] = at, asyncio.get_running_loop().time()
        else:
            self._known[queue] = at, self._known[queue][1]

"""How many messages are claimed before there is a slot for them, so that the engine and the handlers work side by side.

    handlers slow, or nothing known yet    none: a claim is taken when a slot is free
    quick: each takes less than 50 ms      what is begun in 50 ms, but no more than twice the slots, and about 4 MiB
    one has waited for half a second       all that have not begun go back, uncounted, and for a second none is claimed

A claim so waits for about 50 ms until its handler begins, and what a death interrupts is at most three times what is at
work. Rates are read from the bus's clock: one that a test moves by hand shows none.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..clock import Clock
from ..engines.contract import Taken

__all__ = ["Ahead"]

_HORIZON = 0.05
"""Seconds of work that are claimed ahead, if that is as much as all slots hold: fewer make small batches."""
_WINDOW = 0.02
"""Seconds that a rate is taken over, at least."""
_SLOTS = 2
"""Times the slots that may be claimed ahead."""
_BYTES = 4 << 20
"""Bytes that may be, if the next messages are as large as the last lot's."""
_PATIENCE = 0.5
"""Seconds that one may wait to be begun."""
_AFTER_BACK = 1.0
"""Seconds without any, after some have waited in vain."""


class Ahead:
    """One receiver's reckoning."""

    def __init__(self, slots: int, lease: float, clock: Clock, *, never: bool = False) -> None:
        """`never`: the engine's driver looks ahead itself."""
        self.patience = min(_PATIENCE, lease / 4)
        """Seconds that what is claimed may wait before it goes back."""
        self._slots = slots
        self._at_most = 0 if never else slots * _SLOTS
        self._clock = clock
        self._since = clock.time()
        self._most = 0
        self._size = 0.0
        self._taken = 0
        self._begun = 0
        self._none_until = 0.0

    def took(self, taken: Sequence[Taken]) -> None:
        """These were taken, and wait for slots."""
        self._taken += len(taken)
        self._size = sum(len(one.delivery.body) for one in taken) / len(taken)

    def most(self, waiting: int) -> int:
        """How many may wait, now that so many do."""
        now = self._clock.time()
        passed = now - self._since
        if passed >= _WINDOW or passed < 0:
            begun = self._taken - waiting
            rate = (begun - self._begun) / passed if passed > 0 else 0.0
            self._since, self._begun = now, begun
            quick = rate * _HORIZON >= self._slots
            self._most = min(int(rate * _HORIZON), self._at_most, int(_BYTES / (self._size or 1))) if quick else 0
        return 0 if now < self._none_until else self._most

    @property
    def paused(self) -> bool:
        """Whether what waited in vain went back a moment ago."""
        return self._clock.time() < self._none_until

    def went_back(self, count: int) -> None:
        """So many waited in vain."""
        self._taken -= count
        self._most = 0
        self._none_until = self._clock.time() + _AFTER_BACK

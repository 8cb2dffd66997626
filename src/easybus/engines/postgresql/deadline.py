"""The time that a call on a connection may take, again and again."""

from __future__ import annotations

import asyncio
import math
from typing import Any


class Deadline:
    """Cuts a connection that has a call for too long. One timer serves many calls: one for each, set and cancelled,
    would cost more than a call's own work here."""

    def __init__(self, connection: Any) -> None:
        self.passed = False
        """Whether it has cut the connection."""
        self._connection = connection
        self._ends = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """A call begins, which may take so long."""
        loop = asyncio.get_running_loop()
        self._ends = loop.time() + seconds
        if self._timer is None or self._timer.when() > self._ends:
            self._set(loop)

    def end(self) -> None:
        """It has ended."""
        self._ends = math.inf

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._ends, self._look)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._ends == math.inf:
            return
        if self._ends > loop.time():
            self._set(loop)
        else:
            self.passed = True
            self._connection.terminate()

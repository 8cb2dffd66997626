"""One log line when something goes down and one when it is up again, and how long to pause in between."""

from __future__ import annotations

import logging

__all__ = ["Outage"]

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Outage:
    """Whether `what` is down, as a loop that survives it sees it."""

    def __init__(self, what: str, logger: logging.Logger) -> None:
        self._what = what
        self._logger = logger
        self._pause = 0.0

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return self._pause > 0

    def failed(self, error: BaseException) -> float:
        """A call failed: how many seconds to pause, longer each time."""
        if not self.down:
            self._logger.error("%s: down, trying again until it is up: %s: %s", self._what, type(error).__name__, error)
        self._pause = min(self._pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        return self._pause

    def over(self) -> None:
        """A call succeeded."""
        if self.down:
            self._logger.warning("%s: up again", self._what)
        self._pause = 0.0

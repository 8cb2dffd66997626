"""What of a bus is cut off: one log line when its first loop is, one when the last goes on; and the pauses in between.

Many loops depend on one server: every queue's, the relays, the checker. Each survives its outage by itself.
"""

from __future__ import annotations

import logging

from .shown import described

__all__ = ["Outage", "Outages"]

_FIRST_PAUSE = 0.1


class Outages:
    """Those of one bus."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._down: set[Outage] = set()

    def failed(self, outage: Outage, error: BaseException) -> None:
        """This one is down."""
        if not self._down:
            self._logger.error("%s: down, trying again until it is up: %s", outage.what, described(error))
        self._down.add(outage)

    def over(self, outage: Outage) -> None:
        """This one is up again."""
        if outage in self._down:
            self._down.remove(outage)
            if not self._down:
                self._logger.warning("%s: up again", outage.what)

    def ended(self, outage: Outage) -> None:
        """This one is looked at no more."""
        self._down.discard(outage)


class Outage:
    """Whether `what` is down, as the loop that survives it sees it."""

    def __init__(self, what: str, outages: Outages, longest_pause: float = 5.0) -> None:
        self.what = what
        self._outages = outages
        self._longest_pause = longest_pause
        self._pause = 0.0

    def failed(self, error: BaseException) -> float:
        """A call failed: how many seconds to pause, longer each time."""
        self._outages.failed(self, error)
        self._pause = min(self._pause * 2 or _FIRST_PAUSE, self._longest_pause)
        return self._pause

    def over(self) -> None:
        """A call succeeded."""
        if self._pause:
            self._outages.over(self)
        self._pause = 0.0

    def ended(self) -> None:
        """Its loop ends, up or down."""
        self._outages.ended(self)
        self._pause = 0.0

"""Times as the tables hold them: whole microseconds since 1970, rounded so that nothing is ever early."""

from __future__ import annotations

import math

FOREVER = (1 << 63) - 1


def to_microseconds(seconds: float) -> int:
    """Seconds as microseconds, rounded up; never beyond what SQLite holds."""
    return FOREVER >> 1 if seconds > 4e12 else math.ceil(seconds * 1e6)


def from_microseconds(stamp: int) -> float:
    """Microseconds as seconds."""
    return stamp / 1e6


def stamp_at(seconds: float) -> int:
    """The last stamp that has come at this time: a timer to `from_microseconds(stamp)` never finds it ahead."""
    stamp = round(seconds * 1e6)
    return stamp if from_microseconds(stamp) <= seconds else stamp - 1

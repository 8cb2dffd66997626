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

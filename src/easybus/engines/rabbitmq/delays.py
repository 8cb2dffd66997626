"""Delays: one exchange and one queue per bit of the delay in milliseconds, so that a long one never holds up a short.

    key  b34.b33. … .b0.kind.token[.route key]       kind q: a queue, t: a topic
    exchange n:  bit n is 1 → queue n, which holds 2^n ms → exchange n-1        bit n is 0 → exchange n-1
    exchange 0 → easybus:due → the queue, or the topic's own exchange

A message enters at its highest bit. Each hop costs a write to a quorum queue, so a delay is rounded up where that saves
hops: by a quarter or 64 ms at most, from 64 seconds on by a thousandth.
"""

from __future__ import annotations

import math

__all__ = ["DUE", "LEVELS", "NOWHERE", "bits", "bits_of", "level_name", "milliseconds"]

LEVELS = 35
"""2^35 ms are 397 days."""
DUE = "easybus:due"
NOWHERE = "easybus:nowhere"
_ROUND = 64


def milliseconds(delay: float) -> int:
    """The delay that is used for `delay` seconds: never shorter."""
    exact = math.ceil(delay * 1000)
    # The server's clock has whole milliseconds: each hop may end up to one early.
    exact += min(exact.bit_count(), 8)
    most = max(min(_ROUND, exact // 4), exact // 1000)
    for zeros in range(most.bit_length(), 0, -1):
        unit = 1 << zeros
        rounded = -(-exact // unit) * unit
        if rounded - exact <= most:
            return rounded
    return exact


def bits(number: int) -> str:
    """The first words of a key: a bit each, the highest first."""
    return ".".join(format(number, f"0{LEVELS}b"))


def bits_of(number: int) -> list[int]:
    """The bits that are set."""
    return [bit for bit in range(LEVELS) if number >> bit & 1]


def level_name(bit: int) -> str:
    """The exchange and the queue of a bit."""
    return f"easybus:delay:{bit:02}"

"""What is due by its row and what is due by a timer is due at the same instant."""

from __future__ import annotations

import math
import random

from easybus.engines.sqlite.stamps import from_microseconds, stamp_at


def test_a_stamp_has_come_exactly_when_a_timer_to_it_has() -> None:
    dice = random.Random(7)
    for stamp in [0, 1, *(dice.randrange(4_000_000_000_000_000) for _ in range(10_000))]:  # to the year 2096
        due = from_microseconds(stamp)
        assert stamp_at(due) >= stamp, stamp
        assert stamp_at(math.nextafter(due, -math.inf)) < stamp, stamp

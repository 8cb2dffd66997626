"""`bus.testing()` where its storage is a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus, ConfigurationError
from easybus.testing.virtual import VirtualClock


async def test_a_long_idle_time_on_a_file_makes_few_stops(tmp_path: Path) -> None:
    """What only looks around (relays, fetches, replays) makes no stop of its own; what is due does."""
    bus = Bus("memory://")
    got: list[int] = []
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        got.append(number)

    stops: list[float] = []

    class Clock(VirtualClock):
        def advance_to(self, when: float) -> None:
            stops.append(when)
            super().advance_to(when)

    harness = bus.testing(storage=f"sqlite:///{tmp_path}/shop.db")
    harness.clock = Clock()
    async with harness as t:
        sent = t.clock.time()
        await numbers.send(7, delay=3000.25)
        await t.advance(hours=1)
    assert got == [7]
    assert any(0 <= when - sent - 3000.25 < 0.1 for when in stops), "what is due is handled at its time"
    assert len(stops) < 110


async def test_on_a_server_what_is_due_is_handled_and_time_cannot_be_moved(postgresql_server: PostgresqlServer) -> None:
    bus = Bus("memory://")
    got: list[int] = []
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        got.append(number)

    async with bus.testing(storage=postgresql_server.schema()) as t:
        await numbers.send(7)
        await t.drain()
        assert got == [7]
        with pytest.raises(ConfigurationError, match=r"drain\(\) works there"):
            await t.advance(minutes=1)

"""`bus.testing()`: what it promises on memory, and where its storage is a file or a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus, ConfigurationError, Queue, Unavailable, fixed, never, schedule
from easybus.engines.memory.dead_letters import MemoryDeadLetters
from easybus.testing import harness
from easybus.testing.virtual import VirtualClock


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"


@pytest.mark.parametrize("delay", [1.1, 60])
@pytest.mark.parametrize("kind", ["queue", "topic", "retry"])
async def test_what_is_due_when_an_advance_ends_is_handled_by_it(storage: str | None, kind: str, delay: float) -> None:
    bus = Bus("memory://")
    got: list[int] = []
    topic, queue = bus.topic("numbers", int), bus.queue("queued", int)

    @topic.handler("takers")
    @queue.handler(retry=fixed(delay, attempts=2))
    async def take(number: int) -> None:
        if kind == "retry" and not t.failures:
            raise ConnectionError("busy")
        got.append(number)

    async with bus.testing(storage=storage) as t:
        await bus.send(topic if kind == "topic" else queue, 7, delay=0 if kind == "retry" else delay)
        await t.drain()
        await t.advance(seconds=delay * 0.9)
        assert got == []
        await t.advance(seconds=delay - delay * 0.9)
        assert got == [7]


async def test_retries_one_after_the_other_have_all_come_after_their_delays_sum(storage: str | None) -> None:
    bus = Bus("memory://", retry=schedule(1.1, 5.7, 30.3))
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        raise ConnectionError("busy")

    async with bus.testing(storage=storage) as t:
        await numbers.send(7)
        await t.advance(seconds=1.1 + 5.7 + 30.3)
        assert [letter.attempts for letter in t.dead("numbers")] == [4]


async def test_many_short_advances_are_as_good_as_a_long_one(storage: str | None) -> None:
    bus = Bus("memory://")
    got: list[int] = []
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        got.append(number)

    async with bus.testing(storage=storage) as t:
        await numbers.send(7, delay=1)
        for _ in range(10):
            await t.advance(seconds=0.1)
        assert got == [7]


async def test_what_falls_due_where_the_clock_stops_anyway_is_handled_there(storage: str | None) -> None:
    """A long advance stops at each hundredth of its span."""
    bus = Bus("memory://")
    at: list[float] = []
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        at.append(t.clock.time())

    async with bus.testing(storage=storage) as t:
        sent = t.clock.time()
        await numbers.send(7, delay=1)
        await t.advance(seconds=100)
        assert [when - sent for when in at] == [1]


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

    under_test = bus.testing(storage=f"sqlite:///{tmp_path}/shop.db")
    under_test.clock = Clock()
    async with under_test as t:
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


async def test_dead_letters_that_go_to_queues_are_looked_at_in_tests(storage: str | None) -> None:
    bus = Bus("amqp://there", dedupe=None, dead_letters="queue", retry=never())
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        raise ConnectionError("busy")

    async with bus.testing(storage=storage) as t:
        await numbers.send(7)
        await t.drain()
        assert [letter.error for letter in t.dead("numbers")] == ["busy"]

    with pytest.raises(AssertionError, match=r"1 dead letters that the test did not look at"):  # noqa: PT012 - the end of the block raises
        async with bus.testing() as t:
            await numbers.send(7)
            await t.drain()
    assert bus.dead_letters_go == "queue"


async def test_an_engine_that_keeps_no_dead_letters_is_refused_with_what_to_write() -> None:
    url = "nats://me:secret@127.0.0.1:4222"
    bus = Bus(url, dedupe=None, dead_letters="queue")
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"storage='sqlite:///test\.db'") as refusal:
        async with bus.testing(storage=url):
            raise AssertionError("unreachable")
    assert "secret" not in str(refusal.value)


async def test_a_bus_that_could_not_be_drained_at_the_start_can_be_tested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path}/shop.db"
    bus = Bus(storage)
    numbers = bus.queue("numbers", int)
    hanging = asyncio.Event()

    @numbers.handler
    async def take(number: int) -> None:
        await hanging.wait()

    async with bus.testing(storage=storage):
        await numbers.send(7)
    monkeypatch.setattr(harness, "_PATIENCE", 0.2)
    with pytest.raises(TimeoutError, match="take on"):
        await bus.testing(storage=storage).__aenter__()
    assert not bus.is_open
    assert bus.url == storage
    hanging.set()
    async with bus.testing() as t:
        await numbers.send(7)
        await t.drain()


async def test_a_bus_whose_dead_letters_cannot_be_looked_at_in_the_end_can_be_tested_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise Unavailable("the disk is gone")

    bus = Bus("sqlite:///shop.db")
    with pytest.raises(Unavailable, match="the disk is gone"):
        async with bus.testing():
            monkeypatch.setattr(MemoryDeadLetters, "find", fails)
    assert not bus.is_open
    assert bus.url == "sqlite:///shop.db"
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - a test's own error is the one that is shown
        async with bus.testing():
            monkeypatch.setattr(MemoryDeadLetters, "find", fails)
            raise ZeroDivisionError


async def test_what_other_services_own_is_there_in_tests(storage: str | None) -> None:
    bus = Bus("sqlite:///shop.db")
    shipments, refunds = bus.topic("shipments", int, declare=False), bus.topic("refunds", int, declare=False)
    parcels = bus.bind(Queue("parcels", int, declare=False))
    got: list[int] = []

    @shipments.handler("mails")
    async def mail(number: int) -> None:
        got.append(number)

    async with bus.testing(storage=storage) as t:
        await shipments.send(7)
        await refunds.send(8)  # queues of other services may take it: none of this one need be bound
        await parcels.send(9)
        await t.drain()
        assert got == [7]
        assert t.sent(refunds).values == [8]
        assert t.sent(parcels).values == [9]


async def test_what_fails_again_when_it_is_replayed_was_not_looked_at_yet(storage: str | None) -> None:
    bus = Bus("memory://", retry=never())
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None:
        raise ConnectionError("busy")

    with pytest.raises(AssertionError, match=r"(?s)1 dead letters that the test did not look at.*busy"):  # noqa: PT012
        async with bus.testing(storage=storage) as t:
            await numbers.send(7)
            await t.drain()
            assert len(t.dead("numbers")) == 1
            assert await t.retry("numbers") == 1
    async with bus.testing() as t:
        await numbers.send(7)
        await t.drain()
        await t.retry("numbers")
        assert len(t.dead("numbers")) == 1


async def test_a_handler_whose_timeout_is_over_when_an_advance_ends_is_settled_by_it(storage: str | None) -> None:
    bus = Bus("memory://", retry=never())
    numbers = bus.queue("numbers", int)

    @numbers.handler(timeout=5)
    async def take(number: int) -> None:
        await asyncio.Event().wait()

    async with bus.testing(storage=storage) as t:
        await numbers.send(7)
        await t.advance(seconds=5)
        assert [letter.error_type for letter in t.dead("numbers")] == ["builtins.TimeoutError"]

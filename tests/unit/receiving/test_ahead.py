"""What is claimed ahead of its slot: only where handlers are quick, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from easybus.engines.contract import Delivery, Taken
from easybus.message import Message
from easybus.receiving.ahead import Ahead
from easybus.testing.virtual import VirtualClock

from .conftest import LEASE, Room


def lot(size: int, count: int) -> list[Taken]:
    body = b"x" * size
    return [Taken(Delivery("jobs", body, 1, number), None, None) for number in range(count)]


def reckoned(seconds: float, count: int, *, slots: int = 10, size: int = 300) -> int:
    """How many may wait, when so many were begun in so many seconds."""
    clock = VirtualClock()
    ahead = Ahead(slots, LEASE, clock)
    ahead.took(lot(size, count))
    clock.advance_to(clock.time() + seconds)
    return ahead.most(0)


@pytest.mark.parametrize(
    ("seconds", "count", "most"),
    [
        (1.0, 199, 0),  # ten slots, each message over 50 ms
        (1.0, 200, 10),  # 50 ms of 200 a second
        (0.1, 30, 15),
        (0.1, 1000, 20),  # twice the slots, however quick
        (0.01, 1000, 0),  # too short a time to tell
    ],
)
def test_so_many_are_claimed_ahead_as_begin_in_50_ms(seconds: float, count: int, most: int) -> None:
    assert reckoned(seconds, count) == most


def test_a_driver_that_looks_ahead_itself_is_left_to_it() -> None:
    clock = VirtualClock()
    ahead = Ahead(10, LEASE, clock, never=True)
    ahead.took(lot(300, 1000))
    clock.advance_to(clock.time() + 1.0)
    assert ahead.most(0) == 0


def test_large_messages_are_not_gathered() -> None:
    assert reckoned(0.1, 1000, size=1 << 20) == 4
    assert reckoned(0.1, 1000, size=8 << 20) == 0


def test_what_waits_is_not_counted_as_begun() -> None:
    clock = VirtualClock()
    ahead = Ahead(10, LEASE, clock)
    ahead.took(lot(300, 1000))
    clock.advance_to(clock.time() + 1.0)
    assert ahead.most(950) == 0


def test_a_clock_that_was_set_back_shows_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    ahead = Ahead(10, LEASE, clock)
    ahead.took(lot(300, 1000))
    clock.advance_to(clock.time() + 0.1)
    assert ahead.most(0) == 20
    earlier = clock.time() - 3600
    monkeypatch.setattr(clock, "time", lambda: earlier)
    assert ahead.most(0) == 0


def quick_then_stuck(room: Room, quick: int, begun: list[str]) -> Callable[[Message], Any]:
    """A handler of a millisecond, which after so many messages never returns."""

    async def handle(message: Message) -> None:
        begun.append(message.id)
        if len(begun) > quick:
            await asyncio.Event().wait()
        room.clock.advance_to(room.clock.time() + 0.001)

    return handle


async def _all_begun(room: Room, begun: list[str], count: int) -> None:
    for _ in range(20):
        await room.advance(0.0)
    assert len(begun) == count


async def test_quick_handlers_have_the_next_ones_waiting(room: Room) -> None:
    begun: list[str] = []
    for number in range(60):
        await room.send(f"m{number}")
    room.process(quick_then_stuck(room, 40, begun), concurrency=2)
    await _all_begun(room, begun, 42)
    ready, in_flight, _ = await room.stats()
    assert ready is not None
    assert in_flight is not None
    assert 2 < in_flight <= 6, "two at work, and up to twice as many ahead"
    assert ready + in_flight == 20


async def test_a_slow_handlers_claims_are_taken_when_a_slot_is_free(room: Room) -> None:
    async def handle(_: Message) -> None:
        room.clock.advance_to(room.clock.time() + 0.06)
        await asyncio.sleep(0)

    for number in range(30):
        await room.send(f"m{number}")
    room.process(handle, concurrency=2)
    seen: set[int | None] = set()
    for _ in range(40):
        await asyncio.sleep(0)
        seen.add((await room.stats())[1])
    assert max(number or 0 for number in seen) == 2


async def test_what_waits_in_vain_goes_back_uncounted_and_another_process_handles_it(room: Room) -> None:
    begun: list[str] = []
    elsewhere: list[Message] = []
    names = [f"m{number}" for number in range(60)]
    for name in names:
        await room.send(name)
    room.process(quick_then_stuck(room, 40, begun), concurrency=2)
    await _all_begun(room, begun, 42)
    in_flight = (await room.stats())[1]
    assert in_flight is not None
    assert in_flight > 2
    await room.advance(0.4)
    assert (await room.stats())[1] == in_flight
    await room.advance(0.2)
    assert await room.stats() == (18, 2, 0), "only what is at work is held"
    starts = {name: room.engine.idempotency._keys._queues["jobs"].get(name) for name in names[42:]}
    assert {key.starts for key in starts.values() if key is not None} == {0}
    await room.advance(0.9)
    assert (await room.stats())[1] == 2

    async def other(message: Message) -> None:
        elsewhere.append(message)

    room.process(other, concurrency=2)
    await room.advance(0.1)
    assert sorted(message.id for message in elsewhere) == sorted(set(names) - set(begun))
    assert len(begun) == 42


async def test_a_claim_that_lapsed_before_its_handler_began_is_given_back_and_taken_anew(room: Room) -> None:
    begun: list[tuple[str, list[str]]] = []

    async def handle(message: Message) -> None:
        begun.append((message.id, room.calls[:]))
        if len(begun) == 1:
            room.clock.advance_to(room.clock.time() + LEASE)  # it holds up its loop for longer than a lease

    await room.send("a")
    await room.send("b")
    room.calls.clear()
    room.process(handle, concurrency=2)
    await room.advance(1.0)
    (first, before), (second, between) = begun
    assert (first, second) == ("a", "b")
    assert "release" not in before
    assert between.index("release") < between.index("Nack") < len(between) - between[::-1].index("claim")
    assert await room.state("b") == "done"


async def test_beside_a_suspect_that_waits_no_other_is_kept_and_its_starts_stay_as_they_were(room: Room) -> None:
    async def never(_: Message) -> None:
        raise AssertionError("nothing is handled here")

    receiver = room.process(never)
    await receiver.stop(0.0)
    for name in ("a", "b"):
        await room.begun(name, 2)
        await room.send(name)
    [first], [second] = [await receiver._intake.take(1, 0.0) for _ in range(2)]
    assert await receiver._pipeline.one_suspect([first], []) == [first]
    assert await receiver._pipeline.one_suspect([second], [first]) == []
    keys = room.engine.idempotency._keys._queues["jobs"]
    assert [keys[name].starts for name in ("a", "b")] == [3, 2]


async def test_nothing_is_claimed_ahead_while_a_message_runs_alone(room: Room) -> None:
    begun: list[str] = []
    await room.begun("suspect", 1)
    for name in (*(f"m{number}" for number in range(38)), "suspect", *(f"n{number}" for number in range(20))):
        await room.send(name)

    async def handle(message: Message) -> None:
        begun.append(message.id)
        if message.id == "suspect":
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        room.clock.advance_to(room.clock.time() + 0.001)

    room.process(handle, concurrency=2)
    await _all_begun(room, begun, 39)
    assert begun[-1] == "suspect"
    assert (await room.stats())[1] == 2, "the one that runs, and one that waits beside it for a slot"


async def test_a_stop_in_the_middle_of_giving_back_leaves_nothing_to_its_lease(room: Room) -> None:
    begun: list[str] = []
    for number in range(60):
        await room.send(f"m{number}")
    receiver = room.process(quick_then_stuck(room, 40, begun), concurrency=2)
    await _all_begun(room, begun, 42)
    arrived = room.keys.held["release"] = asyncio.Event()
    room.calls.clear()
    await room.advance(0.6)
    assert room.calls == ["release"]
    stopping = asyncio.ensure_future(receiver.stop(0.0))
    await asyncio.wait([receiver._loops[0]])  # it looks for messages no more
    assert receiver.settling
    arrived.set()
    await stopping
    assert await room.stats() == (20, 0, 0)


async def test_a_stop_while_suspects_go_back_leaves_none_to_its_lease(room: Room) -> None:
    for name in ("a", "b"):
        await room.begun(name, 1)
        await room.send(name)
    arrived = room.keys.held["release"] = asyncio.Event()

    async def never(_: Message) -> None:
        raise AssertionError("its neighbour has not gone back")

    receiver = room.process(never)
    await room.advance(0.0)
    assert "release" in room.calls
    stopping = asyncio.ensure_future(receiver.stop(0.0))
    await asyncio.wait([receiver._loops[0]])
    arrived.set()
    await stopping
    ready, in_flight, delayed = await room.stats()
    assert (ready or 0) + (delayed or 0) == 2
    assert in_flight == 0
    keys = room.engine.idempotency._keys._queues["jobs"]
    assert [keys[name].starts for name in ("a", "b")] == [1, 1]


async def test_a_suspect_begins_only_when_all_that_did_not_begin_has_gone_back(room: Room) -> None:
    receiver = room.process(lambda message: None)
    await receiver.stop(0.0)
    await room.begun("suspect", 1)
    for name in ("plain", "suspect"):
        await room.send(name)
    [plain], [suspect] = [await receiver._intake.take(1, 0.0) for _ in range(2)]
    arrived = room.keys.held["release"] = asyncio.Event()
    receiver._settler.not_begun([plain])
    looked = asyncio.ensure_future(receiver._pipeline.one_suspect([suspect], []))
    await room.advance(0.0)
    assert not looked.done()
    arrived.set()
    assert await looked == [suspect]
    assert room.engine.idempotency._keys._queues["jobs"]["plain"].starts == 0


async def test_a_fault_of_ours_while_messages_go_back_is_said(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = room.process(lambda message: None)
    await receiver.stop(0.0)
    await room.send("a")

    async def broken(_: object) -> list[bool]:
        raise ValueError("a fault")

    taken = await receiver._intake.take(1, 0.0)
    monkeypatch.setattr(room.engine.idempotency, "release", broken)
    receiver._settler.not_begun(taken)
    await receiver._settler.drained()
    await room.advance(0.0)
    assert "queue 'jobs': messages are left to their leases" in caplog.text
    assert "a fault" in caplog.text

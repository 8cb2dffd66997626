"""What is particular to memory:// : its clock, its sharing, what it forgets."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import (
    Ack,
    Binding,
    Claim,
    Claimed,
    DeadLetter,
    DeclareQueue,
    DeclareTopic,
    Delivery,
    Driver,
    Engine,
    Extend,
    Finish,
    FusedDriver,
    Half,
    Publication,
    QueueStats,
    Settled,
)
from easybus.engines.contract import Engine as EngineContract
from easybus.engines.memory import create
from easybus.engines.memory.engine import MemoryEngine
from easybus.errors import BadDelay, ConfigurationError, NotDeclared, NotOpen, NotSupported
from easybus.testing.virtual import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def engine(clock: VirtualClock) -> AsyncIterator[MemoryEngine]:
    engine = create("memory://", clock)
    await engine.open()
    await engine.driver.declare([DeclareQueue("q")])
    yield engine
    await engine.close()


async def rest() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def move(clock: VirtualClock, seconds: float) -> None:
    """Step through everything that is due until then."""
    until = clock.time() + seconds
    await rest()
    while (when := clock.next_due()) is not None and when <= until:
        clock.advance_to(when)
        clock.run_due()
        await rest()
    clock.advance_to(until)


def put(body: bytes, delay: float | None = None) -> Publication:
    return Publication(False, "q", body, delay=delay)


async def started(work: Coroutine[Any, Any, list[Delivery]]) -> "asyncio.Task[list[Delivery]]":
    task = asyncio.create_task(work)
    await rest()
    return task


def test_it_is_an_engine_with_fused_steps_and_no_outbox(clock: VirtualClock) -> None:
    engine = create("memory://", clock)
    assert isinstance(engine, EngineContract)
    assert isinstance(engine.driver, FusedDriver)
    assert engine.outbox is None
    assert engine.transaction(dict) is None
    with pytest.raises(NotSupported, match="sqlite:///"):
        engine.idempotency.completion("token", 1.0)


# ------------------------------------------------------------------------------------------- its clock


async def test_a_waiting_fetch_ends_at_its_time_of_the_given_clock(engine: MemoryEngine, clock: VirtualClock) -> None:
    fetch = await started(engine.driver.fetch("q", 1, 30.0, 60.0))
    await move(clock, 29.9)
    assert not fetch.done()
    await move(clock, 0.1)
    assert await fetch == []
    assert clock.next_due() is None


async def test_a_delayed_message_comes_exactly_when_it_is_due(engine: MemoryEngine, clock: VirtualClock) -> None:
    await engine.driver.publish([put(b"later", 3600.0)])
    fetch = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await move(clock, 3599.999)
    assert not fetch.done()
    await move(clock, 0.001)
    assert [one.body for one in await fetch] == [b"later"]


async def test_a_shorter_delay_published_later_wakes_who_sleeps_for_a_longer(
    engine: MemoryEngine, clock: VirtualClock
) -> None:
    await engine.driver.publish([put(b"long", 100.0)])
    fetch = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await engine.driver.publish([put(b"short", 1.0)])
    await move(clock, 1.0)
    assert [one.body for one in await fetch] == [b"short"]


async def test_a_lease_ends_exactly_then_and_wakes_who_waits(engine: MemoryEngine, clock: VirtualClock) -> None:
    waiting = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    other = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await engine.driver.publish([put(b"held")])
    await rest()
    assert waiting.done()
    await move(clock, 59.999)
    assert not other.done()
    await move(clock, 0.001)
    (again,) = await other
    assert (again.body, again.attempt) == (b"held", 2)
    assert await engine.driver.settle("q", [Ack(waiting.result()[0]), Ack(again)]) == [Settled.STALE, Settled.DONE]


async def test_a_shortened_lease_wakes_who_waits(engine: MemoryEngine, clock: VirtualClock) -> None:
    await engine.driver.publish([put(b"held")])
    (held,) = await engine.driver.fetch("q", 1, 0.0, 3600.0)
    other = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await engine.driver.settle("q", [Extend(held, 5.0)])
    await move(clock, 5.0)
    assert other.done()


async def test_what_is_due_and_what_was_let_go_come_in_the_order_of_their_times(
    engine: MemoryEngine, clock: VirtualClock
) -> None:
    await engine.driver.publish([put(b"held")])
    await engine.driver.fetch("q", 1, 0.0, 2.0)
    await engine.driver.publish([put(b"at 3", 3.0), put(b"at 1", 1.0)])
    await move(clock, 5.0)
    await engine.driver.publish([put(b"at 5")])
    found = await engine.driver.fetch("q", 10, 0.0, 60.0)
    assert [one.body for one in found] == [b"at 1", b"held", b"at 3", b"at 5"]


async def test_every_waiting_fetch_gets_its_message_from_one_batch(engine: MemoryEngine) -> None:
    fetches = [await started(engine.driver.fetch("q", 1, 1e6, 60.0)) for _ in range(5)]
    await engine.driver.publish([put(b"%d" % at) for at in range(5)])
    await rest()
    assert [[one.body for one in await fetch] for fetch in fetches] == [[b"%d" % at] for at in range(5)]


async def test_a_fetch_woken_and_cancelled_at_once_passes_the_message_on(engine: MemoryEngine) -> None:
    first = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    second = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await engine.driver.publish([put(b"one")])
    first.cancel()
    await rest()
    assert first.cancelled()
    assert [one.body for one in await second] == [b"one"]


async def test_dropping_a_queue_ends_a_waiting_fetch_and_makes_deliveries_stale(engine: MemoryEngine) -> None:
    await engine.driver.publish([put(b"old")])
    (old,) = await engine.driver.fetch("q", 1, 0.0, 60.0)
    fetch = await started(engine.driver.fetch("q", 1, 1e6, 60.0))
    await engine.driver.drop([DeclareQueue("q")])
    with pytest.raises(NotDeclared):
        await fetch
    assert await engine.driver.settle("q", [Ack(old)]) == [Settled.STALE]
    await engine.driver.declare([DeclareQueue("q")])
    assert await engine.driver.settle("q", [Ack(old)]) == [Settled.STALE]
    assert await engine.driver.stats("q") == QueueStats(0, 0, 0)


async def test_a_finish_past_the_lease_completes_and_leaves_the_delivery_to_come_again(
    engine: MemoryEngine, clock: VirtualClock
) -> None:
    await engine.driver.publish([put(b"m")])
    claim = Claim("q", "m", b"d", 60.0)
    (taken,) = await engine.driver.take("q", 1, 0.0, 60.0, lambda _: (claim, None))
    assert isinstance(taken.claim, Claimed)
    await move(clock, 61.0)
    assert await engine.driver.finish("q", [Finish(taken.delivery, taken.claim.token, 3600.0)]) == [True]
    assert [one.attempt for one in await engine.driver.fetch("q", 1, 0.0, 60.0)] == [2]
    assert await engine.idempotency.lookup("q", "m") == "done"


async def test_a_refused_finish_leaves_nothing_for_a_purge_to_trip_over(
    engine: MemoryEngine, clock: VirtualClock
) -> None:
    await engine.driver.publish([put(b"m")])
    (held,) = await engine.driver.fetch("q", 1, 0.0, 60.0)
    assert await engine.driver.finish("q", [Finish(held, "no token", 1.0)]) == [False]
    await move(clock, 2.0)
    assert await engine.idempotency.purge() == 0


async def test_a_delayed_topic_send_is_refused_since_it_would_be_routed_at_once(engine: MemoryEngine) -> None:
    await engine.driver.declare([DeclareTopic("t"), Binding("t", "q")])
    delayed, now = await engine.driver.publish(
        [Publication(True, "t", b"a", delay=1.0), Publication(True, "t", b"b", delay=0.0)]
    )
    assert isinstance(delayed, NotSupported)
    assert now == 1


async def test_an_extension_by_nothing_is_refused(engine: MemoryEngine) -> None:
    await engine.driver.publish([put(b"m")])
    (held,) = await engine.driver.fetch("q", 1, 0.0, 60.0)
    for lease in (0.0, -1.0, float("nan")):
        with pytest.raises(BadDelay):
            await engine.driver.settle("q", [Extend(held, lease)])


async def test_a_free_key_is_forgotten_after_a_day_and_a_done_one_when_it_expires(
    engine: MemoryEngine, clock: VirtualClock
) -> None:
    keys = engine.idempotency
    free, done = await keys.claim([Claim("q", "free", b"d", 60.0), Claim("q", "done", b"d", 60.0)])
    assert isinstance(free, Claimed)
    assert isinstance(done, Claimed)
    await keys.release([free.token])
    await keys.complete([(done.token, 3600.0)])
    await move(clock, 3601.0)
    assert await keys.purge() == 1
    await move(clock, 86_400.0)
    assert await keys.purge() == 1
    (again,) = await keys.claim([Claim("q", "free", b"d", 60.0)])
    assert isinstance(again, Claimed)
    assert not again.before


# ------------------------------------------------------------------------------------------- its sharing


async def test_an_engine_without_a_name_is_alone_and_one_of_a_name_is_shared(clock: VirtualClock) -> None:
    async def sees(first: Engine, second: Engine) -> bool:
        await first.open()
        await second.open()
        assert isinstance(first, MemoryEngine)
        assert isinstance(second, MemoryEngine)
        await first.driver.declare([DeclareQueue("shared?")])
        await first.dead_letters.store(DeadLetter(queue="shared?", body=b"b", reason="r"))
        await first.transactions.store(Half(id="h", service="s", topic="t", body=b"b"), 0.0)
        await first.idempotency.claim([Claim("shared?", "1", b"d", 60.0)])
        seen = [
            DeclareQueue("shared?") in await second.driver.queues(),
            await second.dead_letters.count() == {"shared?": 1},
            await second.transactions.fetch("h") is not None,
            await second.idempotency.lookup("shared?", "1") == "claimed",
        ]
        assert len(set(seen)) == 1
        return seen[0]

    assert not await sees(create("memory://", clock), create("memory://", clock))
    assert not await sees(create("memory://test-a", clock), create("memory://test-b", clock))
    assert await sees(create("memory://test-c", clock), create("memory://test-c", clock))


async def test_a_message_wakes_a_fetch_on_another_threads_loop() -> None:
    ours = create("memory://test-threads", SystemClock())
    await ours.open()
    await ours.driver.declare([DeclareQueue("q")])
    waits, got = threading.Event(), list[bytes]()

    async def elsewhere() -> None:
        theirs = create("memory://test-threads", SystemClock())
        await theirs.open()
        fetch = await started(theirs.driver.fetch("q", 1, 20.0, 60.0))
        waits.set()
        got.extend(one.body for one in await fetch)
        await theirs.close()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    assert await asyncio.to_thread(waits.wait, 5)
    await ours.driver.publish([put(b"across")])
    await asyncio.to_thread(thread.join, 5)
    assert got == [b"across"]
    await ours.close()


async def test_a_fetch_whose_loop_is_closed_holds_up_nobody() -> None:
    ours = create("memory://test-closed-loop", SystemClock())
    await ours.open()
    await ours.driver.declare([DeclareQueue("q")])

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        theirs = create("memory://test-closed-loop", SystemClock())
        loop.run_until_complete(theirs.open())
        fetch = loop.create_task(theirs.driver.fetch("q", 1, 1e6, 60.0))
        loop.run_until_complete(asyncio.sleep(0.01))
        fetch._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    await asyncio.to_thread(abandon)
    fetch = await started(ours.driver.fetch("q", 1, 5.0, 60.0))
    await ours.driver.publish([put(b"ours")])
    assert [one.body for one in await fetch] == [b"ours"]
    await ours.close()


async def test_four_threads_on_one_name_lose_and_double_nothing() -> None:
    ours = create("memory://test-four", SystemClock())
    await ours.open()
    await ours.driver.declare([DeclareQueue("q")])
    got: list[bytes] = []

    async def work(number: int) -> None:
        engine = create("memory://test-four", SystemClock())
        await engine.open()
        for at in range(100):
            await engine.driver.publish([put(b"%d/%d" % (number, at))])
            found = await engine.driver.fetch("q", 3, 0.0, 60.0)
            got.extend(one.body for one in found)
            assert await engine.driver.settle("q", [Ack(one) for one in found]) == [Settled.DONE] * len(found)
        await engine.close()

    await asyncio.gather(*(asyncio.to_thread(lambda at=at: asyncio.run(work(at))) for at in range(4)))
    got += [one.body for one in await ours.driver.fetch("q", 1_000, 0.0, 60.0)]
    assert sorted(got) == sorted(b"%d/%d" % (number, at) for number in range(4) for at in range(100))
    await ours.close()


async def test_what_is_there_stays_when_it_is_closed_and_opened(engine: MemoryEngine) -> None:
    await engine.driver.publish([put(b"kept")])
    await engine.close()
    with pytest.raises(NotOpen, match="async with bus"):
        await engine.driver.publish([put(b"lost")])
    with pytest.raises(NotOpen):
        await engine.idempotency.lookup("q", "1")
    await engine.open()
    assert [one.body for one in await engine.driver.fetch("q", 10, 0.0, 60.0)] == [b"kept"]


@pytest.mark.parametrize("url", ["memory://a/b", "memory://a?x=1", "memory://user@a", "memory://a#b", "memory:///a"])
def test_a_url_with_more_than_a_name_is_refused(url: str, clock: VirtualClock) -> None:
    with pytest.raises(ConfigurationError, match="memory://shop"):
        create(url, clock)


# ------------------------------------------------------------------------------------------- what it forgets


async def test_settled_messages_are_forgotten_long_before_their_leases_end(engine: MemoryEngine) -> None:
    driver: Driver = engine.driver
    for _ in range(200):
        await driver.publish([put(b"x" * 1_000) for _ in range(100)])
        await driver.settle("q", [Ack(one) for one in await driver.fetch("q", 100, 0.0, 86_400.0)])
    gc.collect()
    queue = engine._space.queues["q"]
    assert queue.leased <= 2_000
    assert sum(len(items) for _, _, items in queue.leases) == queue.leased


async def test_settling_most_keeps_the_leases_of_the_rest(engine: MemoryEngine, clock: VirtualClock) -> None:
    driver, held = engine.driver, 0
    for _ in range(100):
        await driver.publish([put(b"m") for _ in range(100)])
        batch = await driver.fetch("q", 100, 0.0, 60.0)
        await driver.settle("q", [Ack(one) for one in batch[1:]])
        held += 1
    assert await driver.stats("q") == QueueStats(0, held, 0)
    await move(clock, 60.0)
    assert await driver.stats("q") == QueueStats(held, 0, 0)


async def test_a_lease_extended_all_day_is_remembered_once(engine: MemoryEngine) -> None:
    await engine.driver.publish([put(b"long work")])
    (held,) = await engine.driver.fetch("q", 1, 0.0, 60.0)
    for at in range(5_000):
        await engine.driver.settle("q", [Extend(held, 60.0 + at)])
    assert engine._space.queues["q"].leased <= 1_100

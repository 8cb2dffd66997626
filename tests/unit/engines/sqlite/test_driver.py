"""What the SQLite driver promises beyond the public suite."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from easybus.engines.contract import (
    Ack,
    Binding,
    Claim,
    Claimed,
    DeclareQueue,
    DeclareTopic,
    Extend,
    Finish,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
)
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.errors import BadDelay, BadName, DeclaredOtherwise, NotDeclared, TooLarge, Unroutable


def to_queue(body: bytes, delay: float | None = None, queue: str = "q") -> Publication:
    return Publication(False, queue, body, delay=delay)


async def test_what_is_published_is_fetched_in_order_with_every_byte(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    bodies = [bytes(range(256)), b"", b"x" * 100_000, *(str(n).encode() for n in range(50))]
    assert await engine.driver.publish([to_queue(body) for body in bodies]) == [1] * len(bodies)
    found = await engine.driver.fetch("q", 100, 1, 30)
    assert [delivery.body for delivery in found] == bodies
    assert {delivery.attempt for delivery in found} == {1}
    assert await engine.driver.settle("q", [Ack(delivery) for delivery in found]) == [Settled.DONE] * len(found)
    assert await engine.driver.stats("q") == QueueStats(0, 0, 0)


async def test_a_failing_item_fails_alone_with_its_own_error(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q"), DeclareTopic("t")])
    results = await engine.driver.publish(
        [
            to_queue(b"1"),
            to_queue(b"", queue="missing"),
            Publication(True, "missing", b""),
            to_queue(b"", queue="\ud800"),
            to_queue(b"", delay=-1),
            to_queue(b"", delay=math.nan),
            to_queue(b"", delay=1e12),
            Publication(True, "t", b"", require=True),
            Publication(True, "t", b""),
            to_queue(b"2"),
        ]
    )
    assert [result if isinstance(result, int) else type(result) for result in results] == [
        1, NotDeclared, NotDeclared, BadName, BadDelay, BadDelay, BadDelay, Unroutable, 0, 1,
    ]  # fmt: skip
    assert [delivery.body for delivery in await engine.driver.fetch("q", 10, 1, 30)] == [b"1", b"2"]


async def test_a_body_over_the_limit_is_too_large(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    limit = engine.driver.caps.max_body
    over, exact = await engine.driver.publish([to_queue(bytes(limit + 1)), to_queue(bytes(limit))])
    assert isinstance(over, TooLarge)
    assert exact == 1
    (delivery,) = await engine.driver.fetch("q", 1, 1, 30)
    assert len(delivery.body) == limit


async def test_a_topic_reaches_each_bound_queue_once(engine: SqliteEngine) -> None:
    await engine.driver.declare(
        [Binding("t", "a", "x.#"), Binding("t", "a", "x.*"), Binding("t", "b"), DeclareTopic("t")]
        + [DeclareQueue(name) for name in "ab"]
    )
    assert await engine.driver.publish([Publication(True, "t", b"1", "x.y"), Publication(True, "t", b"2", "z")]) == [
        2,
        1,
    ]
    assert [delivery.body for delivery in await engine.driver.fetch("a", 9, 1, 9)] == [b"1"]
    assert [delivery.body for delivery in await engine.driver.fetch("b", 9, 1, 9)] == [b"1", b"2"]
    await engine.driver.drop([Binding("t", "b")])
    assert await engine.driver.publish([Publication(True, "t", b"3", "z")]) == [0]


async def test_declaring_again_never_empties_and_another_delay_is_refused(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q", 0.0)])
    await engine.driver.publish([to_queue(b"1")])
    await engine.driver.declare([DeclareQueue("q", 0.0)])
    with pytest.raises(DeclaredOtherwise):
        await engine.driver.declare([DeclareQueue("q", 5.0)])
    assert (await engine.driver.stats("q")).ready == 1
    with pytest.raises(NotDeclared):
        await engine.driver.declare([Binding("missing", "q")])
    await engine.driver.drop([DeclareQueue("q")])
    with pytest.raises(NotDeclared):
        await engine.driver.fetch("q", 1, 0, 1)


async def test_a_delayed_message_is_never_early_and_wakes_a_waiting_fetch(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q", 1.5)])
    before = time.time()
    await engine.driver.publish([to_queue(b"default"), to_queue(b"own", delay=0.05), to_queue(b"long", delay=100)])
    waits = []
    for expected in (b"own", b"default"):
        (delivery,) = await engine.driver.fetch("q", 5, 10, 30)
        assert delivery.body == expected
        waits.append(time.time() - before)
    assert waits[0] >= 0.05
    assert 1.5 <= waits[1] < 8, "it was woken, and did not wait to its end"
    assert await engine.driver.stats("q") == QueueStats(0, 2, 1)


async def test_a_late_ack_settles_nothing_that_was_delivered_to_another(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(b"1")])
    (late,) = await engine.driver.fetch("q", 1, 1, 0.02)
    (held,) = await engine.driver.fetch("q", 1, 2, 30)
    assert held.attempt == 2
    stale = [Ack(late), Nack(late), Extend(late, 9), Move(late, b"2", 0)]
    assert await engine.driver.settle("q", stale) == [Settled.STALE] * 4
    assert await engine.driver.settle("q", [Ack(held), Ack(held)]) == [Settled.DONE, Settled.STALE]
    # the row's number is used again: the old fences still hold
    await engine.driver.publish([to_queue(b"new")])
    await engine.driver.fetch("q", 1, 1, 30)
    assert await engine.driver.settle("q", [*stale, Ack(held)]) == [Settled.STALE] * 5
    assert (await engine.driver.stats("q")).in_flight == 1


async def test_a_move_takes_the_place_of_its_delivery(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(b"1"), to_queue(b"2")])
    one, two = await engine.driver.fetch("q", 2, 1, 30)
    assert await engine.driver.settle("q", [Move(one, b"again", 2.0), Nack(two)]) == [Settled.DONE] * 2
    (back,) = await engine.driver.fetch("q", 5, 1, 30)
    assert (back.body, back.attempt) == (b"2", 2)
    (moved,) = await engine.driver.fetch("q", 5, 10, 30)
    assert (moved.body, moved.attempt) == (b"again", 1)


async def test_extending_keeps_a_delivery_past_its_first_lease(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(b"1")])
    (delivery,) = await engine.driver.fetch("q", 1, 1, 1.0)
    assert await engine.driver.settle("q", [Extend(delivery, 30)]) == [Settled.DONE]
    assert await engine.driver.fetch("q", 1, 1.2, 1) == []


async def test_a_cancelled_fetch_gives_back_what_it_had_taken(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    for at in range(40):
        await engine.driver.publish([to_queue(b"1")])
        fetch = asyncio.create_task(engine.driver.fetch("q", 1, 5, 3600))
        await asyncio.sleep(0)
        time.sleep(at % 4 * 0.0005)  # the thread goes on: nothing yet, under way, arrived, or handed over
        for _ in range(at % 3):
            await asyncio.sleep(0)
        fetch.cancel()
        await asyncio.wait([fetch])
        (delivery,) = await engine.driver.fetch("q", 1, 2, 30) if fetch.cancelled() else fetch.result()
        await engine.driver.settle("q", [Ack(delivery)])


async def test_take_claims_and_finish_completes_in_one_step_each(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(body) for body in (b"a", b"b", b"a", b"none")])
    taken = await engine.driver.take(
        "q", 10, 1, 30, lambda d: (None if d.body == b"none" else Claim("q", d.body.decode(), b"d", 30), d.body * 2)
    )
    assert [item.parsed for item in taken] == [b"aa", b"bb", b"aa", b"nonenone"]
    assert [type(item.claim).__name__ for item in taken] == ["Claimed", "Claimed", "Busy", "NoneType"]
    tokens = [item.claim.token for item in taken[:2] if isinstance(item.claim, Claimed)]
    results = await engine.driver.finish(
        "q", [Finish(taken[0].delivery, tokens[0], 60), Finish(taken[1].delivery, "1-stale", 60)]
    )
    assert results == [True, False]
    assert await engine.idempotency.lookup("q", "a") == "done"
    assert await engine.idempotency.lookup("q", "b") == "claimed"
    assert (await engine.driver.stats("q")).in_flight == 3


async def test_a_finish_whose_delivery_is_stale_still_writes_done(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(b"a")])

    def parse(delivery: object) -> tuple[Claim, None]:
        return Claim("q", "a", b"d", 30), None

    (first,) = await engine.driver.take("q", 1, 1, 0.02, parse)
    (second,) = await engine.driver.take("q", 1, 1, 30, parse)
    assert type(second.claim).__name__ == "Busy"
    assert isinstance(first.claim, Claimed)
    assert await engine.driver.finish("q", [Finish(first.delivery, first.claim.token, 60)]) == [True]
    assert await engine.idempotency.lookup("q", "a") == "done"
    assert await engine.driver.settle("q", [Ack(second.delivery)]) == [Settled.DONE]


async def test_names_hold_any_unicode_and_none_collide(engine: SqliteEngine) -> None:
    names = ["a", "A", "a ", " a", "\u00e9", "e\u0301", "x\0y", "x", "'\";--", "😀", "é" * 127, "a" * 255]
    await engine.driver.declare([DeclareQueue(name) for name in names])
    assert await engine.driver.publish([to_queue(name.encode(), queue=name) for name in names]) == [1] * len(names)
    for name in names:
        assert [delivery.body for delivery in await engine.driver.fetch(name, 9, 1, 9)] == [name.encode()]
    assert {queue.name for queue in await engine.driver.queues()} == set(names)
    for bad in ("", "é" * 128, "a" * 256):
        with pytest.raises(BadName):
            await engine.driver.declare([DeclareQueue(bad)])


async def test_purge_leaves_what_is_in_flight(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.driver.publish([to_queue(b"1"), to_queue(b"2"), to_queue(b"3", delay=100)])
    (held,) = await engine.driver.fetch("q", 1, 1, 30)
    assert await engine.driver.purge("q") == 2
    assert await engine.driver.settle("q", [Ack(held)]) == [Settled.DONE]


async def test_topics_lists_each_topic_with_its_bindings(engine: SqliteEngine) -> None:
    await engine.driver.declare([DeclareTopic("t"), DeclareTopic("u"), DeclareQueue("q"), Binding("t", "q", "a.*")])
    assert await engine.driver.topics() == [("t", [Binding("t", "q", "a.*")]), ("u", [])]

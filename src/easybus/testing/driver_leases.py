"""Time: delays, leases and the fences of deliveries."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from math import inf, nan

import pytest

from ..engines.contract import (
    Ack,
    Binding,
    DeclareQueue,
    DeclareTopic,
    Driver,
    Extend,
    Move,
    Nack,
    Publication,
    Settled,
)
from ..errors import BadDelay, TooLarge
from .driver_base import DriverBase, drain, fresh, needs, publish, receive, to_queue, topology

__all__ = ["DriverLeases"]

SHORT = 0.4
"""Seconds of the leases that these tests wait for."""
PassTime = Callable[[float], Awaitable[None]]


class DriverLeases(DriverBase):
    """What happens when, and to whom a delivery belongs."""

    @pytest.mark.parametrize("delay", [0.1, 1.0])
    async def test_a_delayed_message_is_never_early_and_hardly_late(self, driver: Driver, delay: float) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        began = time.time()
        await publish(driver, [to_queue(queue, b"%d" % number, delay) for number in range(20)])
        confirmed = time.time()
        seen: list[float] = []
        while len(seen) < 20:
            batch = await driver.fetch(queue, 20, 3.0, 30.0)
            seen += [time.time()] * len(batch)
            await driver.settle(queue, [Ack(one) for one in batch])
            assert batch, f"not there {time.time() - confirmed:.1f} s after a send with a delay of {delay} s"
        assert min(seen) - began >= delay - 0.005
        assert max(seen) - confirmed <= delay + 0.3

    async def test_a_long_delay_does_not_hold_up_a_short_one(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"long", 3600.0), to_queue(queue, b"short", 0.5)])
        assert [one.body for one in await receive(driver, queue, 1, within=1.5)] == [b"short"]

    async def test_a_sends_own_delay_replaces_the_queues(self, driver: Driver, pass_time: PassTime) -> None:
        queue, topic = fresh("queue"), fresh("topic")
        await driver.declare([DeclareQueue(queue, 0.5), DeclareTopic(topic), Binding(topic, queue)])
        await publish(
            driver,
            [
                to_queue(queue, b"by default"),
                to_queue(queue, b"now", 0.0),
                to_queue(queue, b"never", 3600.0),
                Publication(to_topic=True, name=topic, body=b"routed, by default"),
                Publication(to_topic=True, name=topic, body=b"routed, now", delay=0.0),
            ],
        )
        assert await drain(driver, queue, 0.0) == [b"now", b"routed, now"]
        await pass_time(0.6)
        assert await drain(driver, queue) == [b"by default", b"routed, by default"]

    @pytest.mark.parametrize("delay", [-0.001, nan, inf])
    async def test_a_delay_that_is_none_is_refused(self, driver: Driver, delay: float) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        (result,) = await driver.publish([to_queue(queue, b"", delay)])
        assert isinstance(result, BadDelay)

    async def test_the_longest_delay_is_taken_and_a_longer_one_refused(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        longest = driver.caps.max_delay
        kept, refused = await driver.publish([to_queue(queue, b"", longest), to_queue(queue, b"", longest + 1)])
        assert not isinstance(kept, Exception)
        assert isinstance(refused, BadDelay)

    async def test_a_nacked_message_comes_again_with_its_attempt_counted(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"twice bad")])
        for attempt in (1, 2):
            (one,) = await receive(driver, queue, 1, ack=False)
            assert one.attempt == attempt
            assert await driver.settle(queue, [Nack(one)]) == [Settled.DONE]
        (one,) = await receive(driver, queue, 1)
        assert (one.body, one.attempt) == (b"twice bad", 3)
        assert await drain(driver, queue) == []

    async def test_a_nack_with_a_delay_waits_so_long(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"later")])
        (one,) = await receive(driver, queue, 1, ack=False)
        began = time.time()
        await driver.settle(queue, [Nack(one, 0.5)])
        await receive(driver, queue, 1)
        assert 0.495 <= time.time() - began <= 1.0

    async def test_what_is_not_settled_comes_again_after_its_lease(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"held")])
        began = time.time()
        (first,) = await receive(driver, queue, 1, ack=False, lease=SHORT)
        (second,) = await receive(driver, queue, 1, ack=False)
        assert SHORT - 0.005 <= time.time() - began <= SHORT + 1.0
        assert second.body == first.body
        assert second.attempt == 2

    async def test_a_late_ack_settles_nothing_of_anothers(self, driver: Driver, pass_time: PassTime) -> None:
        needs(driver, "fenced")
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"fenced")])
        (late,) = await receive(driver, queue, 1, ack=False, lease=SHORT)
        await pass_time(SHORT + 0.1)
        (holder,) = await receive(driver, queue, 1, ack=False, lease=SHORT)
        for settlement in (Ack(late), Nack(late), Extend(late, 60.0), Move(late, b"copy", 0.0)):
            assert await driver.settle(queue, [settlement]) == [Settled.STALE]
        await pass_time(SHORT + 0.1)
        (again,) = await receive(driver, queue, 1)  # the holder's own lease was not extended, nor its message moved
        assert again.body == holder.body == b"fenced"
        assert await drain(driver, queue) == []

    async def test_a_second_ack_changes_nothing(self, driver: Driver) -> None:
        needs(driver, "fenced")
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"a"), to_queue(queue, b"b")])
        (one,) = await receive(driver, queue, 1, ack=False)
        assert await driver.settle(queue, [Ack(one)]) == [Settled.DONE]
        assert await driver.settle(queue, [Ack(one)]) == [Settled.STALE]
        assert await drain(driver, queue) == [b"b"]

    async def test_an_extended_lease_keeps_the_message(self, driver: Driver, pass_time: PassTime) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"long work")])
        (one,) = await receive(driver, queue, 1, ack=False, lease=SHORT)
        for _ in range(6):  # three leases long
            await pass_time(SHORT / 2)
            assert await driver.settle(queue, [Extend(one, SHORT)]) == [Settled.DONE]
            assert await driver.fetch(queue, 1, 0.0, 30.0) == []
        assert await driver.settle(queue, [Ack(one)]) == [Settled.DONE]
        await pass_time(SHORT + 0.1)
        assert await drain(driver, queue) == []

    async def test_an_extension_ends_too(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"work")])
        (one,) = await receive(driver, queue, 1, ack=False)
        assert await driver.settle(queue, [Extend(one, SHORT)]) == [Settled.DONE]
        assert [again.attempt for again in await receive(driver, queue, 1, within=SHORT + 1.0)] == [2]

    async def test_a_move_puts_new_bytes_in_and_the_delivery_away(self, driver: Driver, pass_time: PassTime) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"r0")])
        (one,) = await receive(driver, queue, 1, ack=False, lease=SHORT)
        assert await driver.settle(queue, [Move(one, b"r1", 0.5)]) == [Settled.DONE]
        assert await driver.fetch(queue, 1, 0.0, 30.0) == []
        (moved,) = await receive(driver, queue, 1, ack=False)
        assert (moved.body, moved.attempt) == (b"r1", 1)
        assert await driver.settle(queue, [Move(moved, b"r2", 0.0)]) == [Settled.DONE]
        assert await drain(driver, queue) == [b"r2"]
        await pass_time(SHORT)
        assert await drain(driver, queue) == []

    async def test_a_refused_move_leaves_the_delivery_as_it_was(self, driver: Driver) -> None:
        needs(driver, "atomic_move")
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"a"), to_queue(queue, b"b")])
        first, second = await receive(driver, queue, 2, ack=False)
        with pytest.raises(TooLarge):
            await driver.settle(queue, [Ack(first), Move(second, b"x" * (driver.caps.max_body + 1), 0.0)])
        with pytest.raises(BadDelay):
            await driver.settle(queue, [Ack(first), Nack(second, -1.0)])
        assert await driver.settle(queue, [Ack(first), Ack(second)]) == [Settled.DONE, Settled.DONE]
        assert await drain(driver, queue) == []

    async def test_settlements_of_one_batch_are_answered_in_their_order(self, driver: Driver) -> None:
        needs(driver, "fenced")
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"%d" % number) for number in range(6)])
        held = await receive(driver, queue, 6, ack=False)
        await driver.settle(queue, [Ack(held[1]), Ack(held[4])])
        results = await driver.settle(
            queue,
            [
                Ack(held[0]),
                Ack(held[1]),
                Nack(held[2]),
                Move(held[3], b"moved", 0.0),
                Nack(held[4]),
                Extend(held[5], 60.0),
            ],
        )
        done, stale = Settled.DONE, Settled.STALE
        assert results == [done, stale, done, done, stale, done]
        assert await drain(driver, queue) == sorted([held[2].body, b"moved"])

    async def test_many_delays_at_once_all_come(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        sent = [b"%d" % number for number in range(200)]
        await publish(driver, [to_queue(queue, body, (number * 37 % 100) / 100) for number, body in enumerate(sent)])
        got: list[bytes] = []
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:

            async def consume() -> None:
                while len(got) < len(sent):
                    batch = await driver.fetch(queue, 10, 0.5, 30.0)
                    got.extend(one.body for one in batch)
                    await driver.settle(queue, [Ack(one) for one in batch])

            for _ in range(5):
                group.create_task(consume())
        assert sorted(got) == sorted(sent)

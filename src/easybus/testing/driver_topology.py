"""Queues, topics, bindings and their names; what is declared, dropped, listed, counted."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ..engines.contract import Ack, Binding, DeclareQueue, DeclareTopic, Driver, Engine, Extend, Nack, QueueStats
from ..errors import BadDelay, BadName, DeclaredOtherwise, NotDeclared
from .driver_base import DriverBase, bodies, drain, fresh, needs, publish, to_queue, to_topic, topology

__all__ = ["DriverTopology"]

NAMES = [
    "dots.in.it", "UPPER", "upper", "trailing ", " leading", "snow☃", "emoji\U0001f600", "é", "e\u0301",
    "quote'", 'quote"', "semi;--", "%41", "A", "a/b", "a\\b", "{a}", "a*", "a#", "a>", "$a", "a:b", "a\tb", "a\nb",
]  # fmt: skip


class DriverTopology(DriverBase):
    """Declaring and looking."""

    async def test_twenty_identical_declares_at_once_all_succeed(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await asyncio.gather(*(topology(driver, [queue], topic) for _ in range(20)))
        await publish(driver, [to_topic(topic, b"once")])
        assert await drain(driver, queue) == [b"once"]

    async def test_declaring_again_never_empties(self, driver: Driver) -> None:
        topic, queue, sent = fresh("topic"), fresh("queue"), bodies(10)
        await topology(driver, [queue], topic)
        await publish(driver, [to_topic(topic, body) for body in sent])
        await topology(driver, [queue], topic)
        assert await drain(driver, queue) == sorted(sent)

    async def test_another_delay_for_a_standing_queue_is_refused(self, driver: Driver) -> None:
        queue = fresh("queue")
        await driver.declare([DeclareQueue(queue, 1.0)])
        with pytest.raises(DeclaredOtherwise):
            await driver.declare([DeclareQueue(queue, 2.0)])
        await driver.declare([DeclareQueue(queue, 1.0)])

    async def test_a_negative_delay_for_a_queue_is_refused(self, driver: Driver) -> None:
        with pytest.raises(BadDelay):
            await driver.declare([DeclareQueue(fresh("queue"), -1.0)])

    async def test_a_binding_needs_its_queue_and_its_topic(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        with pytest.raises(NotDeclared):
            await driver.declare([Binding(topic, fresh("queue"))])
        with pytest.raises(NotDeclared):
            await driver.declare([Binding(fresh("topic"), queue)])
        other = fresh("queue")
        await driver.declare([Binding(topic, other), DeclareQueue(other)])  # in any order

    async def test_what_is_not_declared_is_an_error_and_no_hang(self, driver: Driver) -> None:
        queue, topic = fresh("queue"), fresh("topic")
        async with asyncio.timeout(10):
            for result in await driver.publish([to_queue(queue, b""), to_topic(topic, b"")]):
                assert isinstance(result, NotDeclared)
            for call in (driver.stats, driver.purge):
                with pytest.raises(NotDeclared):
                    await call(queue)
            with pytest.raises(NotDeclared):
                await driver.fetch(queue, 1, 5.0, 30.0)

    async def test_unsubscribing_keeps_what_was_queued_and_routes_nothing_new(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        await publish(driver, [to_topic(topic, b"before")])
        await driver.drop([Binding(topic, queue), Binding(topic, queue, "not.there")])
        await publish(driver, [to_topic(topic, b"after")])
        assert await drain(driver, queue) == [b"before"]

    async def test_a_new_binding_is_seen_by_the_next_publish_anywhere(
        self, driver: Driver, reopen: Callable[[], Awaitable[Engine]] | None
    ) -> None:
        if reopen is None:
            pytest.skip("no second connection is given (fixture `reopen`)")
        topic, first, second = fresh("topic"), fresh("queue"), fresh("queue")
        await topology(driver, [first], topic)
        other = await reopen()
        try:
            assert other.driver is not None
            await publish(other.driver, [to_topic(topic, b"1")])
            await topology(driver, [second], topic)
            await publish(other.driver, [to_topic(topic, b"2")])
            await driver.drop([Binding(topic, first)])
            await publish(other.driver, [to_topic(topic, b"3")])
        finally:
            await other.close()
        assert await drain(driver, first) == [b"1", b"2"]
        assert await drain(driver, second) == [b"2", b"3"]

    async def test_a_dropped_queue_is_gone_with_its_messages_and_bindings(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        await publish(driver, [to_queue(queue, b"old")])
        await driver.drop([DeclareQueue(queue), DeclareQueue(fresh("never"))])
        with pytest.raises(NotDeclared):
            await driver.fetch(queue, 1, 0.0, 30.0)
        (reached,) = await driver.publish([to_topic(topic, b"new")])
        assert reached in (0, None)
        await driver.declare([DeclareQueue(queue, 0.0)])
        assert await drain(driver, queue) == []

    async def test_a_dropped_topic_is_gone_with_its_bindings(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        await driver.drop([DeclareTopic(topic), DeclareTopic(fresh("never"))])
        (result,) = await driver.publish([to_topic(topic, b"lost")])
        assert isinstance(result, NotDeclared)
        await driver.declare([DeclareTopic(topic)])
        await publish(driver, [to_topic(topic, b"unbound")])
        assert await drain(driver, queue) == []

    async def test_unicode_names_are_kept_apart(self, driver: Driver) -> None:
        mark = fresh("")
        queues = [name + mark for name in NAMES]
        for name in queues:
            await topology(driver, [name], topic=name)
        await publish(driver, [to_topic(name, name.encode()) for name in queues])
        for name in queues:
            assert await drain(driver, name, 0.02) == [name.encode()], name

    async def test_the_longest_name_is_held_and_one_byte_more_is_refused(self, driver: Driver) -> None:
        longest = (fresh("é") + "é" * driver.caps.max_name).encode()[: driver.caps.max_name].decode(errors="ignore")
        longest += "x" * (driver.caps.max_name - len(longest.encode()))
        await topology(driver, [longest], topic=longest)
        await publish(driver, [to_topic(longest, b"here")])
        assert await drain(driver, longest) == [b"here"]
        for change in (DeclareQueue(longest + "x"), DeclareTopic(longest + "x")):
            with pytest.raises(BadName):
                await driver.declare([change])

    @pytest.mark.parametrize("name", ["", "half\ud800"])
    async def test_what_no_utf8_can_say_is_refused(self, driver: Driver, name: str) -> None:
        for change in (DeclareQueue(name), DeclareTopic(name)):
            with pytest.raises(BadName):
                await driver.declare([change])
        for result in await driver.publish([to_queue(name, b""), to_topic(name, b"")]):
            assert isinstance(result, (BadName, NotDeclared))

    async def test_a_route_key_that_no_utf8_can_say_is_refused(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        bad, good = await driver.publish([to_topic(topic, b"bad", "half\ud800"), to_topic(topic, b"good", "snow☃")])
        assert isinstance(bad, BadName)
        assert not isinstance(good, Exception)
        with pytest.raises(BadName):
            await driver.declare([Binding(topic, queue, "half\ud800")])
        assert await drain(driver, queue) == [b"good"]

    async def test_queues_and_topics_are_listed_by_name(self, driver: Driver) -> None:
        needs(driver, "lists_queues")
        topic, queue, slow = fresh("topic"), fresh("queue"), fresh("slow")
        await driver.declare([DeclareQueue(queue), DeclareQueue(slow, 2.5), DeclareTopic(topic)])
        await driver.declare([Binding(topic, queue, "a.#"), Binding(topic, slow)])
        queues, topics = await driver.queues(), await driver.topics()
        assert DeclareQueue(queue) in queues
        assert DeclareQueue(slow, 2.5) in queues
        assert [one.name for one in queues] == sorted(one.name for one in queues)
        assert set(dict(topics)[topic]) == {Binding(topic, queue, "a.#"), Binding(topic, slow)}
        assert [name for name, _ in topics] == sorted(name for name, _ in topics)

    async def test_stats_are_exact_where_declared(self, driver: Driver) -> None:
        needs(driver, "counts")
        queue = fresh("queue")
        await topology(driver, [queue])
        assert await driver.stats(queue) == QueueStats(0, 0, 0)
        await publish(driver, [to_queue(queue, body, delay) for body in bodies(5) for delay in (None, 3600.0)])
        assert await driver.stats(queue) == QueueStats(ready=5, in_flight=0, delayed=5)
        first, second, third = await driver.fetch(queue, 3, 1.0, 30.0)
        assert await driver.stats(queue) == QueueStats(ready=2, in_flight=3, delayed=5)
        await driver.settle(queue, [Ack(first), Nack(second), Extend(third, 60.0)])
        assert await driver.stats(queue) == QueueStats(ready=3, in_flight=1, delayed=5)
        await driver.settle(queue, [Nack(third, 3600.0)])
        assert await driver.stats(queue) == QueueStats(ready=3, in_flight=0, delayed=6)

    async def test_purging_removes_all_but_what_is_in_flight(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body, delay) for body in bodies(3) for delay in (None, 3600.0)])
        (held,) = await driver.fetch(queue, 1, 1.0, 30.0)
        purged = await driver.purge(queue)
        assert purged == 5 or (2 <= purged < 5 and not driver.caps.counts)
        if driver.caps.counts:
            assert await driver.stats(queue) == QueueStats(ready=0, in_flight=1, delayed=0)
        assert await drain(driver, queue) == []
        await driver.settle(queue, [Nack(held)])
        assert await drain(driver, queue) == [held.body]

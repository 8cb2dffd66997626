"""Messages through queues and topics: all arrive, once, whole, and nowhere else."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import random

import pytest
from msgspec.structs import replace

from ..engines.contract import Ack, Binding, DeclareQueue, DeclareTopic, Driver, Nack, Publication
from ..errors import BadDelay, NotDeclared, TooLarge, Unroutable
from ..routing import Routes
from .driver_base import DriverBase, bodies, drain, fresh, needs, publish, receive, to_queue, to_topic, topology

__all__ = ["DriverMessages"]


class DriverMessages(DriverBase):
    """Publishing, routing, consuming."""

    async def test_a_hundred_messages_arrive_byte_for_byte_and_nothing_else(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(100)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        assert await drain(driver, queue) == sorted(sent)

    async def test_fifty_consumers_get_each_message_once(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(5_000)
        await topology(driver, [queue])
        got: list[bytes] = []

        async def consume() -> None:
            while len(got) < len(sent):
                batch = await driver.fetch(queue, 20, 0.2, 60.0)
                got.extend(delivery.body for delivery in batch)
                await driver.settle(queue, [Ack(delivery) for delivery in batch])

        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(consume())
            await publish(driver, [to_queue(queue, body) for body in sent])
        assert sorted(got) == sorted(sent)

    async def test_twenty_topics_do_not_cross(self, driver: Driver) -> None:
        pairs = [(fresh("topic"), fresh("queue")) for _ in range(20)]
        sent = {queue: bodies(100) for _, queue in pairs}
        for topic, queue in pairs:
            await topology(driver, [queue], topic)
        await publish(driver, [to_topic(topic, sent[queue][number]) for number in range(100) for topic, queue in pairs])
        for _, queue in pairs:
            assert await drain(driver, queue, 0.05) == sorted(sent[queue])

    async def test_each_queue_on_a_topic_gets_every_message_once(self, driver: Driver) -> None:
        topic, first, second, sent = fresh("topic"), fresh("queue"), fresh("queue"), bodies(20)
        await topology(driver, [first, second], topic)
        await driver.declare([Binding(topic, first, "a.*"), Binding(topic, first, "a.#")])  # three ways to one queue
        await publish(driver, [to_topic(topic, body, "a.b") for body in sent])
        assert await drain(driver, first) == sorted(sent)
        assert await drain(driver, second) == sorted(sent)

    async def test_patterns_match_as_the_reference_does(self, driver: Driver) -> None:
        chance = random.Random(20260101)

        def words(alphabet: list[str]) -> str:
            return ".".join(chance.choices(alphabet, k=chance.randint(0, 4)))

        patterns = {words(["a", "b", "*", "#", ""]) for _ in range(40)} | {"", "#", "*", "#.#", "a.#.b", ".", "*.*"}
        keys = list({words(["a", "b", "c", ""]) for _ in range(60)} | {"", "a", ".", "a.b"})
        topic = fresh("topic")
        bound = [(fresh("queue"), pattern) for pattern in sorted(patterns)]
        await driver.declare(
            [DeclareTopic(topic)]
            + [DeclareQueue(queue) for queue, _ in bound]
            + [Binding(topic, queue, pattern) for queue, pattern in bound]
        )
        routes = Routes(bound)
        results = await driver.publish([to_topic(topic, key.encode(), key) for key in keys])
        for key, result in zip(keys, results, strict=True):
            number = len(routes.queues(key))
            assert result in (({number, None} if number else {0}) if driver.caps.counts_routes else {None}), key
        for queue, pattern in bound:
            expected = sorted(key.encode() for key in keys if queue in routes.queues(key))
            assert await drain(driver, queue, 0.1) == expected, pattern

    async def test_one_consumer_sees_the_order_of_publishing(self, driver: Driver) -> None:
        needs(driver, "ordered")
        queue, sent = fresh("queue"), bodies(1_000)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        assert [delivery.body for delivery in await receive(driver, queue, len(sent))] == sent

    async def test_no_more_is_taken_than_was_asked_for(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(10)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        first = await driver.fetch(queue, 3, 1.0, 30.0)
        assert 1 <= len(first) <= 3
        assert sorted([*await drain(driver, queue), *(delivery.body for delivery in first)]) == sorted(sent)

    async def test_a_slow_queue_does_not_hold_up_another(self, driver: Driver) -> None:
        slow, quick = fresh("slow"), fresh("quick")
        await topology(driver, [slow, quick])
        await publish(driver, [to_queue(slow, body) for body in bodies(500)])
        held = await driver.fetch(slow, 10, 1.0, 30.0)
        waiting = asyncio.create_task(driver.fetch(quick, 1, 5.0, 30.0))
        await asyncio.sleep(0)
        await publish(driver, [to_queue(quick, b"now")])
        async with asyncio.timeout(2.0):
            assert [delivery.body for delivery in await waiting] == [b"now"]
        assert held

    async def test_a_waiting_fetch_gets_what_is_published_meanwhile(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        fetch = asyncio.create_task(driver.fetch(queue, 10, 10.0, 30.0))
        await asyncio.sleep(0.1)
        await publish(driver, [to_queue(queue, b"late")])
        async with asyncio.timeout(2.0):
            assert [delivery.body for delivery in await fetch] == [b"late"]

    async def test_a_fetch_of_an_empty_queue_ends_with_nothing(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        async with asyncio.timeout(3.0):
            assert await driver.fetch(queue, 1, 0.0, 30.0) == []
            assert await driver.fetch(queue, 1, 0.2, 30.0) == []

    async def test_nacks_among_good_ones_lose_nothing(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(200)
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body) for body in sent])
        left = dict.fromkeys(sent[::2], 3)
        done: list[bytes] = []
        async with asyncio.timeout(20):
            while len(done) < len(sent):
                batch = await driver.fetch(queue, 50, 1.0, 30.0)
                bad = {delivery.body for delivery in batch if left.get(delivery.body, 0)}
                await driver.settle(queue, [Nack(one) if one.body in bad else Ack(one) for one in batch])
                done += [one.body for one in batch if one.body not in bad]
                for body in bad:
                    left[body] -= 1
        assert sorted(done) == sorted(sent)

    async def test_twenty_publishers_at_once_lose_nothing(self, driver: Driver) -> None:
        queue, sent = fresh("queue"), bodies(10_000)
        await topology(driver, [queue])

        async def send(part: list[bytes]) -> None:
            for at in range(0, len(part), 50):
                await publish(driver, [to_queue(queue, body) for body in part[at : at + 50]])

        await asyncio.gather(*(send(sent[at::20]) for at in range(20)))
        assert sorted(one.body for one in await receive(driver, queue, len(sent), within=40)) == sorted(sent)

    async def test_a_bound_queue_without_a_consumer_keeps_its_messages(self, driver: Driver) -> None:
        topic, used, unused, sent = fresh("topic"), fresh("used"), fresh("unused"), bodies(50)
        await topology(driver, [used, unused], topic)
        await publish(driver, [to_topic(topic, body) for body in sent])
        assert len(await drain(driver, used)) == 50
        assert await drain(driver, unused) == sorted(sent)

    async def test_a_topic_without_queues_keeps_nothing_and_says_so(self, driver: Driver) -> None:
        topic = fresh("topic")
        await topology(driver, [], topic)
        async with asyncio.timeout(5.0):
            (reached,) = await driver.publish([to_topic(topic, b"nobody")])
        assert reached == (0 if driver.caps.counts_routes else None)

    async def test_require_fails_a_send_that_reaches_no_queue(self, driver: Driver) -> None:
        needs(driver, "counts_routes")
        topic, queue = fresh("topic"), fresh("queue")
        await driver.declare([DeclareTopic(topic), DeclareQueue(queue), Binding(topic, queue, "a")])
        lost, kept = await driver.publish(
            [
                Publication(to_topic=True, name=topic, body=b"b", route_key="b", require=True),
                Publication(to_topic=True, name=topic, body=b"a", route_key="a", require=True),
            ]
        )
        assert isinstance(lost, Unroutable)
        assert kept in (1, None)
        assert await drain(driver, queue) == [b"a"]

    async def test_what_is_behind_a_refused_item_is_not_published(self, driver: Driver) -> None:
        needs(driver, "unbroken")
        queue, nowhere = fresh("queue"), fresh("nowhere")
        await topology(driver, [queue])
        batch = [to_queue(queue, b"1"), to_queue(nowhere, b"2"), to_queue(queue, b"3"), to_queue(queue, b"4")]
        batch = [batch[0], *(replace(item, behind=True) for item in batch[1:]), to_queue(queue, b"5")]
        results = await driver.publish(batch)
        assert [isinstance(result, NotDeclared) for result in results] == [False, True, True, True, False]
        found = [delivery.body for delivery in await receive(driver, queue, 2)]
        assert found == [b"1", b"5"]

    async def test_a_bad_item_fails_alone_in_its_batch(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        results = await driver.publish(
            [
                to_queue(queue, b"1"),
                to_queue(fresh("nowhere"), b"2"),
                to_queue(queue, b"3", -1.0),
                to_queue(queue, b"4"),
            ]
        )
        assert isinstance(results[1], NotDeclared)
        assert isinstance(results[2], BadDelay)
        assert not isinstance(results[0], Exception)
        assert not isinstance(results[3], Exception)
        assert await drain(driver, queue) == [b"1", b"4"]

    @pytest.mark.parametrize("size", [0, 1, 1024 * 1024])
    async def test_a_message_of_any_size_arrives(self, driver: Driver, size: int) -> None:
        queue, body = fresh("queue"), (bytes(range(256)) * (size // 256 + 1))[:size]
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, body)])
        assert await drain(driver, queue) == [body]

    async def test_the_largest_message_arrives_and_one_byte_more_is_refused(self, driver: Driver) -> None:
        queue, body = fresh("queue"), b"x" * driver.caps.max_body
        await topology(driver, [queue])
        kept, refused = await driver.publish([to_queue(queue, body), to_queue(queue, body + b"x")])
        assert not isinstance(kept, Exception)
        assert isinstance(refused, TooLarge)
        assert await drain(driver, queue) == [body]

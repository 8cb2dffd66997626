"""What a private RabbitMQ goes through besides the common outages, and what others declare on it."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pika
import pytest
from tests.servers.outages import eventually
from tests.servers.rabbitmq import RabbitmqServer

from easybus import Bus, Message, Retry
from easybus.clock import SystemClock
from easybus.engines.contract import (
    Ack,
    Binding,
    DeclareQueue,
    DeclareTopic,
    Driver,
    Engine,
    Extend,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
)
from easybus.engines.rabbitmq.confirms import _Batch
from easybus.engines.rabbitmq.driver import RabbitmqDriver
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, DeclaredOtherwise, NotDeclared, Refused, Unavailable
from easybus.testing.driver_base import drain, fresh, publish, receive, to_queue, to_topic, topology

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[3] / "data" / "golden.jsonl").read_text().splitlines()]


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


@pytest.fixture
async def engine(rabbitmq_server: RabbitmqServer) -> AsyncIterator[Engine]:
    engine = await opened(rabbitmq_server.url(heartbeat=2, timeout=5, settle=0))
    yield engine
    await engine.close()


@pytest.fixture
def driver(engine: Engine) -> Driver:
    assert engine.driver is not None
    return engine.driver


@pytest.fixture
def other(rabbitmq_server: RabbitmqServer) -> Any:
    """Another program: a plain client, blocking."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url() + "%2F"))
    yield connection.channel()
    if connection.is_open:
        connection.close()


class TestOutages:
    async def test_a_frozen_server_is_noticed_within_two_heartbeats(
        self, engine: Engine, driver: Driver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        fetch = asyncio.create_task(driver.fetch(queue, 1, 60.0, 30.0))
        await asyncio.sleep(0.1)
        rabbitmq_server.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await fetch
            assert time.monotonic() - began <= 2 * 2 + 0.5
            with pytest.raises(Unavailable):
                await driver.publish([to_queue(queue, b"x")])
        finally:
            rabbitmq_server.thaw()
        await eventually(lambda: publish_one(driver, queue, b"thawed"))
        assert await drain(driver, queue) == [b"thawed"]

    async def test_publishes_fail_in_time_while_the_server_is_short_of_memory_and_acks_still_get_through(
        self, driver: Driver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"before")])
        await asyncio.to_thread(rabbitmq_server.control, "set_vm_memory_high_watermark", "0.00001")
        try:
            began = time.monotonic()
            for _ in range(2):
                (result,) = await settled_publish(driver, to_queue(queue, b"blocked"))
                assert isinstance(result, Unavailable)
                assert "memory" in str(result)
            assert time.monotonic() - began < 5.0
            (one,) = await receive(driver, queue, 1)
            assert one.body == b"before"
        finally:
            await asyncio.to_thread(rabbitmq_server.control, "set_vm_memory_high_watermark", "0.8")
        await eventually(lambda: publish_one(driver, queue, b"after"))

    async def test_after_a_refusal_messages_go_by_a_new_channel(
        self, driver: RabbitmqDriver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        full = ("set_policy", "--apply-to", "queues", queue, f"^{queue}$", '{"max-length": 1}')
        await asyncio.to_thread(rabbitmq_server.control, *full)
        try:
            channels: set[Any] = set()
            async with asyncio.timeout(20):
                while len(channels) < 3:
                    (result,) = await settled_publish(driver, to_queue(queue, b"x"))
                    if isinstance(result, Unavailable):
                        channels.add(driver._confirms._publishing)
        finally:
            await asyncio.to_thread(rabbitmq_server.control, "clear_policy", queue)
        await eventually(lambda: publish_one(driver, queue, b"after"))

    async def test_a_channel_that_refused_gets_nothing_new_and_keeps_what_is_under_way(
        self, driver: RabbitmqDriver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"x")])
        first = driver._confirms._publishing
        assert first is not None
        under_way = _Batch([(("", queue), b"x", "", 0)])
        first._pending[1_000_000] = (under_way, 0)
        full = ("set_policy", "--apply-to", "queues", queue, f"^{queue}$", '{"max-length": 1}')
        await asyncio.to_thread(rabbitmq_server.control, *full)
        try:
            async with asyncio.timeout(20):
                while not isinstance((await settled_publish(driver, to_queue(queue, b"x")))[0], Unavailable):
                    pass
        finally:
            await asyncio.to_thread(rabbitmq_server.control, "clear_policy", queue)
        await eventually(lambda: publish_one(driver, queue, b"after"))
        assert driver._confirms._publishing is not first
        assert first.channel.why is None
        assert not under_way.done.done()

    async def test_a_host_that_is_away_is_passed_over(self, rabbitmq_server: RabbitmqServer) -> None:
        url = rabbitmq_server.url(timeout=2).replace(f"@127.0.0.1:{rabbitmq_server.port}", "@127.0.0.1:1,127.0.0.1:{}")
        engine = await opened(url.format(rabbitmq_server.port))
        await engine.close()

    async def test_tls_trusts_what_it_is_told_to_and_nothing_else(self, rabbitmq_server: RabbitmqServer) -> None:
        url = rabbitmq_server.url(port=rabbitmq_server.tls_port, timeout=5, settle=0).replace("amqp:", "amqps:")
        with pytest.raises(ConfigurationError, match="not trusted"):
            await opened(url)
        engine = await opened(f"{url}&cafile={rabbitmq_server.certificate}")
        queue = fresh("queue")
        await topology(engine.driver, [queue])
        await publish(engine.driver, [to_queue(queue, b"x" * 1_000_000)])
        assert await drain(engine.driver, queue) == [b"x" * 1_000_000]
        await engine.close()
        with pytest.raises(ConfigurationError, match="not for this host"):  # it is for 127.0.0.1
            await opened(f"{url}&cafile={rabbitmq_server.certificate}".replace("@127.0.0.1", "@localhost"))

    async def test_a_virtual_host_that_is_not_there_is_refused(self, rabbitmq_server: RabbitmqServer) -> None:
        with pytest.raises(ConfigurationError, match=r"vhost|virtual host"):
            await opened(rabbitmq_server.url() + "nowhere")


class TestConsumers:
    async def test_a_consumer_that_the_server_cancels_subscribes_again(self, driver: Driver, other: Any) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"held")])
        (held,) = await receive(driver, queue, 1, ack=False)
        fetch = asyncio.create_task(driver.fetch(queue, 1, 20.0, 30.0))
        await asyncio.sleep(0.1)
        other.queue_delete(queue)
        with pytest.raises(NotDeclared):
            await fetch
        await driver.declare([DeclareQueue(queue)])
        fetch = asyncio.create_task(driver.fetch(queue, 1, 20.0, 30.0))
        await publish(driver, [to_queue(queue, b"again")])
        assert [one.body for one in await fetch] == [b"again"]
        await driver.settle(queue, [Ack(held)])  # what was delivered by the queue that is gone disturbs nothing
        await publish(driver, [to_queue(queue, b"more")])
        assert [one.body for one in await receive(driver, queue, 1)] == [b"more"]

    async def test_what_nobody_asks_for_goes_to_others(self, driver: Driver, rabbitmq_server: RabbitmqServer) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        assert await driver.fetch(queue, 100, 0.0, 30.0) == []
        await publish(driver, [to_queue(queue, b"%d" % number) for number in range(50)])
        taker = await opened(rabbitmq_server.url())
        try:
            assert len({one.body for one in await receive(taker.driver, queue, 50, within=5.0)}) == 50
        finally:
            await taker.close()

    async def test_what_is_handled_quickly_is_fetched_ahead_and_goes_to_others_when_it_no_longer_is(
        self, driver: RabbitmqDriver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"%d" % number) for number in range(1000)])
        left, subscription = 1000, None
        async with asyncio.timeout(10):
            while subscription is None or subscription._capacity == 50:
                first = await driver.fetch(queue, 50, 1.0, 30.0)
                second = await driver.fetch(queue, 50, 1.0, 30.0) if subscription and subscription._turn < 0.1 else []
                await driver.settle(queue, [Ack(one) for one in (*first, *second)])
                left -= len(first) + len(second)
                subscription = driver._subscriptions[queue]
        assert subscription._capacity == 100
        async with asyncio.timeout(10):
            while subscription._capacity > 50:  # a message now and then is asked for, and held
                left -= len(await driver.fetch(queue, 1, 1.0, 30.0))
                await asyncio.sleep(0.05)
        taker = await opened(rabbitmq_server.url())
        try:
            await receive(taker.driver, queue, left - subscription._capacity, within=10.0)
        finally:
            await taker.close()

    async def test_a_count_of_attempts_that_is_no_number_is_none_and_holds_nothing_up(
        self, driver: Driver, other: Any
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        for headers in ({"easybus-attempts": "many"}, {"x-delivery-count": "1"}, {"easybus-attempts": -2}, None):
            other.basic_publish("", queue, str(headers).encode(), pika.BasicProperties(headers=headers))
        assert [one.attempt for one in await receive(driver, queue, 4)] == [1, 1, 1, 1]

    async def test_a_delivery_of_a_lost_connection_is_stale(
        self, engine: Engine, driver: Driver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"x")])
        (late,) = await receive(driver, queue, 1, ack=False)
        await asyncio.to_thread(rabbitmq_server.control, "close_all_connections", "test")
        (again,) = await eventually(lambda: receive(driver, queue, 1, ack=False))
        assert again.attempt == 2
        assert await driver.settle(queue, [Ack(late), Extend(late, 60.0)]) == [Settled.STALE, Settled.STALE]
        assert await driver.settle(queue, [Ack(again)]) == [Settled.DONE]

    async def test_a_nack_with_a_delay_keeps_the_count_of_attempts(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"x")])
        for attempt in (1, 2, 3):
            (one,) = await receive(driver, queue, 1, ack=False)
            assert one.attempt == attempt
            await driver.settle(queue, [Nack(one, 0.01 if attempt == 1 else 0.0)])

    async def test_acks_do_not_wait_for_the_copies_of_others_and_a_copy_whose_original_lapsed_is_not_called_done(
        self, driver: RabbitmqDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"1"), to_queue(queue, b"2"), to_queue(queue, b"3")])
        acked, put_back, moved = await receive(driver, queue, 3, ack=False, lease=0.3)
        subscription, send = driver._subscriptions[queue], driver._publish

        async def slow(*words: Any) -> Any:
            while subscription.holds(put_back.receipt) or subscription.holds(moved.receipt):
                await asyncio.sleep(0.01)
            return await send(*words)

        monkeypatch.setattr(driver, "_publish", slow)
        batch = [Ack(acked), Nack(put_back, 0.01), Move(moved, b"copy", 0.01)]
        assert await driver.settle(queue, batch) == [Settled.DONE, Settled.UNKNOWN, Settled.UNKNOWN]
        came = [one.body for one in await receive(driver, queue, 4)] + await drain(driver, queue)
        assert sorted(came) == [b"2", b"2", b"3", b"copy"]


class TestKilled:
    async def test_what_was_published_outlives_a_publisher_killed_at_once(
        self, driver: Driver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await killed(rabbitmq_server, "publish", queue)
        assert await drain(driver, queue, 1.0) == sorted(b"%d" % number for number in range(100))

    async def test_what_a_killed_consumer_held_comes_again_at_once(
        self, driver: Driver, rabbitmq_server: RabbitmqServer
    ) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        await publish(driver, [to_queue(queue, b"%d" % number) for number in range(5)])
        await killed(rabbitmq_server, "fetch", queue)
        again = await receive(driver, queue, 5, within=2.0)
        assert {one.attempt for one in again} == {2}


async def killed(server: RabbitmqServer, deed: str, queue: str) -> None:
    """Let a process do its deed and kill itself."""
    child = str(Path(__file__).with_name("child.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, child, server.url(settle=0), deed, queue)
    assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGKILL


class TestTopology:
    async def test_a_delayed_topic_send_is_routed_when_it_is_due(self, driver: Driver) -> None:
        topic, early, late = fresh("topic"), fresh("queue"), fresh("queue")
        await driver.declare([DeclareTopic(topic), DeclareQueue(early), DeclareQueue(late)])
        await driver.declare([Binding(topic, early, "a.*")])
        await publish(driver, [to_queue(early, b"warm", 0.7), to_queue(early, b"warm", 0.1)])
        await receive(driver, early, 2)
        began = time.time()
        later = Publication(to_topic=True, name=topic, body=b"later", route_key="a.b", delay=0.7)
        other = Publication(to_topic=True, name=topic, body=b"other", route_key="c", delay=0.1)
        await publish(driver, [later, other])
        await driver.declare([Binding(topic, late, "#.b")])
        for queue in (early, late):
            assert [one.body for one in await receive(driver, queue, 1)] == [b"later"]
            assert time.time() - began >= 0.695
        await driver.drop([Binding(topic, early, "a.*")])
        await publish(driver, [Publication(to_topic=True, name=topic, body=b"x", route_key="a.b", delay=0.0)])
        assert await drain(driver, early) == []
        assert b"x" in await drain(driver, late)

    async def test_a_topology_that_was_wiped_is_made_again(self, driver: Driver, other: Any) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        await publish(driver, [to_queue(queue, b"1", 0.05), to_topic(topic, b"2")])
        await receive(driver, queue, 2)
        for bit in range(7):
            other.queue_delete(f"easybus:delay:{bit:02}")
            other.exchange_delete(f"easybus:delay:{bit:02}")
        await publish(driver, [to_queue(queue, b"3", 0.05)])
        assert [one.body for one in await receive(driver, queue, 1)] == [b"3"]
        other.exchange_delete(topic)
        (gone,) = await driver.publish([to_topic(topic, b"4")])
        assert isinstance(gone, NotDeclared)
        await topology(driver, [queue], topic)
        await publish(driver, [to_topic(topic, b"5")])
        assert [one.body for one in await receive(driver, queue, 1)] == [b"5"]

    async def test_a_lost_topic_fails_no_other_message_of_its_batch(self, driver: Driver, other: Any) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        await publish(driver, [to_topic(topic, b"known")])
        await drain(driver, queue)
        other.exchange_delete(topic)
        results = await driver.publish([to_queue(queue, b"1"), to_topic(topic, b"lost"), to_queue(queue, b"2")])
        assert isinstance(results[1], NotDeclared)
        assert results[0] is results[2] is None
        assert set(await drain(driver, queue)) == {b"1", b"2"}

    async def test_a_queue_that_another_program_declared_otherwise_is_said(self, driver: Driver, other: Any) -> None:
        queue = fresh("queue")
        other.queue_declare(queue, durable=True)
        with pytest.raises(DeclaredOtherwise, match="declare it again"):
            await driver.declare([DeclareQueue(queue)])
        await publish(driver, [to_queue(queue, b"to it all the same")])
        assert (await driver.stats(queue)).ready == 1
        assert await drain(driver, queue) == [b"to it all the same"]

    async def test_what_is_ready_is_counted_and_the_rest_is_not_guessed(self, driver: Driver) -> None:
        queue = fresh("queue")
        await topology(driver, [queue])
        for number in range(1, 4):
            await publish(driver, [to_queue(queue, b"x", delay) for delay in (None, 3600.0)])
            assert await driver.stats(queue) == QueueStats(ready=number, in_flight=None, delayed=None)
        await driver.fetch(queue, 2, 1.0, 30.0)
        assert (await driver.stats(queue)).ready == 1

    async def test_a_route_key_that_amqp_cannot_hold_fails_alone(self, driver: Driver) -> None:
        topic, queue = fresh("topic"), fresh("queue")
        await topology(driver, [queue], topic)
        longest, over = await driver.publish([to_topic(topic, b"1", "k" * 255), to_topic(topic, b"2", "k" * 256)])
        assert longest is None
        assert isinstance(over, Refused)
        await driver.declare([Binding(topic, queue, "k" * 166)])
        with pytest.raises(Refused):
            await driver.declare([Binding(topic, queue, "k" * 167)])


class TestOtherPrograms:
    """The Go library's exchanges are durable and of type topic; its messages are `data/golden.jsonl`."""

    async def test_services_in_other_languages_share_a_topic_and_the_wire(self, driver: Driver, other: Any) -> None:
        topic, ours, theirs = fresh("orders"), fresh("ours"), fresh("theirs")
        other.exchange_declare(topic, "topic", durable=True)
        other.queue_declare(theirs, durable=True)
        other.queue_bind(theirs, topic, "#")
        await driver.declare([DeclareTopic(topic), DeclareQueue(ours), Binding(topic, ours, "#")])
        for golden in GOLDEN:
            other.basic_publish(topic, golden["route_key"], golden["wire"].encode())
        read = [Message.from_bytes(one.body) for one in await receive(driver, ours, len(GOLDEN))]
        assert [(one.id, one.retried, one.route_key) for one in read] == [
            (golden["id"], golden["retried"], golden["route_key"]) for golden in GOLDEN
        ]
        other.queue_purge(theirs)
        await publish(driver, [to_topic(topic, one.to_bytes(), one.route_key) for one in read])
        for golden in GOLDEN:
            method, properties, body = other.basic_get(theirs, auto_ack=True)
            assert json.loads(body) == json.loads(golden["wire"])
            assert method.routing_key == golden["route_key"]
            assert properties.delivery_mode == 2

    async def test_a_topic_that_only_another_program_declares_can_be_bound_and_sent_to(
        self, driver: Driver, other: Any
    ) -> None:
        topic, queue = fresh("orders"), fresh("queue")
        other.exchange_declare(topic, "topic", durable=True)
        await driver.declare([DeclareQueue(queue), Binding(topic, queue, "a")])
        delayed = Publication(to_topic=True, name=topic, body=b"delayed", route_key="a", delay=0.1)
        await publish(driver, [to_topic(topic, b"plain", "a"), delayed])
        assert {one.body for one in await receive(driver, queue, 2)} == {b"plain", b"delayed"}


class TestBus:
    @pytest.mark.parametrize(("seconds", "messages", "consumers"), [(0.2, 60, {1}), (0.0, 1000, {1, 2})])
    async def test_a_busy_handler_has_one_consumer_with_its_concurrency_as_prefetch_and_a_quick_one_two(
        self, rabbitmq_server: RabbitmqServer, other: Any, seconds: float, messages: int, consumers: set[int]
    ) -> None:
        queue, count, done = fresh("queue"), 0, asyncio.Event()
        bus = Bus(rabbitmq_server.url(settle=0), storage=f"memory://{fresh('storage')}")
        numbers = bus.queue(queue, int)

        @numbers.handler(concurrency=10)
        async def handle(number: int) -> None:
            nonlocal count
            await asyncio.sleep(seconds)
            count += 1
            if count == messages:
                done.set()

        async with bus.handling():
            await numbers.send_many(list(range(messages)))
            async with asyncio.timeout(20):
                await done.wait()
            assert other.queue_declare(queue, passive=True).method.consumer_count in consumers

    async def test_a_bus_handles_retries_and_keeps_dead_letters(self, rabbitmq_server: RabbitmqServer) -> None:
        topic_name, queue = fresh("topic"), fresh("queue")
        seen: list[tuple[int, int]] = []
        done = asyncio.Event()
        bus = Bus(rabbitmq_server.url(settle=0), storage=f"memory://{fresh('storage')}")
        numbers = bus.topic(topic_name, int)

        @numbers.handler(queue)
        async def handle(number: int, message: Message) -> None:
            seen.append((number, message.retried))
            if message.retried == 0:
                raise Retry(after=0.05)
            if len(seen) == 10:
                done.set()

        async with bus.handling():
            await numbers.send_many([0, 1, 2, 3, 4])
            async with asyncio.timeout(10):
                await done.wait()
        assert sorted(seen) == sorted((number, retried) for number in range(5) for retried in (0, 1))

    async def test_what_no_client_can_read_is_noted(self, rabbitmq_server: RabbitmqServer) -> None:
        report = await Bus(rabbitmq_server.url(settle=0), storage="memory://noted").check()
        assert [found.where for found in report.contradictions] == ["memory://noted"]
        assert ["cluster_status" in note.text for note in report.notes] == [True]


async def publish_one(driver: Any, queue: str, body: bytes) -> None:
    for result in await driver.publish([to_queue(queue, body)]):
        if isinstance(result, Exception):
            raise result


async def settled_publish(driver: Any, item: Publication) -> list[Any]:
    """Its results; an error of the whole counts for the item."""
    try:
        return await driver.publish([item])
    except Unavailable as error:
        return [error]

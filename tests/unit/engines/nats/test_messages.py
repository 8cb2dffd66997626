"""What lies at the server, when it comes, and what its duplicate filter drops."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.servers.nats import NatsServer
from tests.unit.engines.nats.conftest import Opener

from easybus.engines.contract import (
    Ack,
    Binding,
    DeclareQueue,
    Driver,
    Extend,
    Move,
    Nack,
    Publication,
    Settled,
)
from easybus.engines.nats.driver import NatsDriver
from easybus.engines.nats.failures import NO_STREAM, JetStreamError
from easybus.engines.nats.publishing import DELAY
from easybus.errors import NotDeclared, Unavailable, Unroutable
from easybus.testing.driver_base import drain, publish, receive, to_queue, topology


def to_queue_once(name: str, body: bytes, id: str, delay: float | None = None) -> Publication:
    return Publication(to_topic=False, name=name, body=body, delay=delay, dedupe_id=id)


async def test_a_send_that_is_sent_again_is_there_once(driver: Driver) -> None:
    await topology(driver, ["emails"])
    for delay in (None, None, 0.2, 1.5):
        await publish(driver, [to_queue_once("emails", b"x", "one id", delay)])
    assert await drain(driver, "emails", 2.0) == [b"x"]


async def test_a_delayed_send_that_is_sent_again_is_there_once(driver: Driver) -> None:
    await topology(driver, ["emails"])
    for _ in range(3):
        await publish(driver, [to_queue_once("emails", b"x", "id", 1.1)])
    assert await drain(driver, "emails", 1.8) == [b"x"]


async def test_a_retry_that_keeps_its_id_is_not_swallowed(driver: Driver) -> None:
    await topology(driver, ["emails"])
    await publish(driver, [to_queue_once("emails", b"r0", "a")])
    for number in range(1, 4):
        (one,) = await receive(driver, "emails", 1, ack=False)
        delay = (0.0, 0.1, 1.1)[number - 1]
        assert await driver.settle("emails", [Move(one, b"r%d" % number, delay, "a")]) == [Settled.DONE]
    assert await drain(driver, "emails", 2.0) == [b"r3"]


async def test_ids_that_differ_by_spaces_or_line_ends_are_two(driver: Driver) -> None:
    await topology(driver, ["emails"])
    ids = ["a", "a ", " a", "a\n", "a\r\nNats-Rollup: all", "é", "e\u0301"]
    await publish(driver, [to_queue_once("emails", one.encode(), one) for one in ids])
    assert await drain(driver, "emails") == sorted(one.encode() for one in ids)


async def test_another_message_under_the_same_id_is_not_swallowed(driver: Driver) -> None:
    """It is no copy: handling finds the conflict, and keeps it as a dead letter."""
    await topology(driver, ["emails"])
    await publish(driver, [to_queue_once("emails", body, "one id") for body in (b"x", b"y", b"x")])
    assert sorted(await drain(driver, "emails")) == [b"x", b"y"]


async def test_a_topic_send_reaches_every_queue_whatever_its_id(driver: Driver) -> None:
    await topology(driver, ["one", "two", "three"], "orders")
    send = Publication(to_topic=True, name="orders", body=b"x", dedupe_id="same")
    assert await driver.publish([send, send]) == [3, 3]
    for queue in ("one", "two", "three"):
        assert await drain(driver, queue) == [b"x"]


async def test_a_topic_send_that_fails_half_way_is_completed_by_sending_it_again(
    driver: Driver, nats_server: NatsServer
) -> None:
    await topology(driver, ["kept", "lost"], "orders")
    await driver._api.request(f"STREAM.DELETE.{driver._names.stream('lost')}")  # type: ignore[attr-defined]
    send = Publication(to_topic=True, name="orders", body=b"x", dedupe_id="id")
    (failed,) = await driver.publish([send])
    assert isinstance(failed, NotDeclared)
    await topology(driver, ["kept", "lost"], "orders")
    assert await driver.publish([send]) == [2]
    assert await drain(driver, "kept") == [b"x"]
    assert await drain(driver, "lost") == [b"x"]


async def test_a_send_waits_for_a_stream_that_nobody_answers_for(driver: NatsDriver) -> None:
    """As in a cluster, whose new streams, and those whose leader died, have none for a moment."""
    await topology(driver, ["kept", "away"], "orders")
    await driver._api.request(f"STREAM.DELETE.{driver._names.stream('away')}")  # type: ignore[attr-defined]
    send = Publication(to_topic=True, name="orders", body=b"x", dedupe_id="id")
    sending = asyncio.create_task(driver.publish([send, to_queue("kept", b"y")]))
    async with asyncio.timeout(3.0):
        assert sorted(await drain(driver, "kept")) == [b"x", b"y"]
    assert not sending.done()
    await driver._topology._make("away")  # type: ignore[attr-defined]
    async with asyncio.timeout(3.0):
        assert await sending == [2, 1]
    assert await drain(driver, "away") == [b"x"]


async def test_a_queue_that_was_waited_for_in_vain_is_asked_about_once_and_holds_up_others_no_more(
    opened: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await opened(f"{url}&timeout=1")
    assert isinstance(driver, NatsDriver)
    await topology(driver, ["kept", "away"])
    stream, subject = driver._names.stream("away"), driver._names.ready("away")
    info, ask, questions, rounds = driver._api.stream_info, driver._link.ask, list[str](), list[int]()

    async def asked(name: str) -> Any:
        if name == stream:
            questions.append(name)
        return await info(name)

    async def sent(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        if subject in {call[0] for call in calls}:
            rounds.append(len(calls))
        return await ask(calls, seconds, **others)

    monkeypatch.setattr(driver._api, "stream_info", asked)
    monkeypatch.setattr(driver._link, "ask", sent)
    batch = [to_queue("kept", b"x"), *[to_queue("away", b"%d" % number) for number in range(100)]]
    for _ in range(2):
        await driver._api.request(f"STREAM.DELETE.{stream}")
        kept, *failed = await driver.publish(batch)
        assert kept == 1
        assert {type(one) for one in failed} == {NotDeclared}
        assert len(questions) == 1
        assert len(rounds) > 1  # it was waited for
        rounds.clear()
        kept, *failed = await driver.publish(batch)
        assert kept == 1
        assert {type(one) for one in failed} == {Unavailable}
        assert "there is no queue 'away'" in str(failed[0])
        assert (rounds, questions) == ([101], [stream])
        await driver._topology._make("away")
        assert await driver.publish(batch) == [1] * 101
        rounds.clear()
        questions.clear()


async def test_a_publish_ends_in_time_though_nobody_says_why_its_queue_does_not_answer(
    opened: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await opened(f"{url}&timeout=1")
    assert isinstance(driver, NatsDriver)
    away = [f"away {number}" for number in range(5)]
    await topology(driver, away)
    info, streams = driver._api.stream_info, [driver._names.stream(queue) for queue in away]
    for stream in streams:
        await driver._api.request(f"STREAM.DELETE.{stream}")

    async def unanswered(name: str) -> Any:
        return await (asyncio.Event().wait() if name in streams else info(name))

    monkeypatch.setattr(driver._api, "stream_info", unanswered)
    began = time.monotonic()
    async with asyncio.timeout(5.0):
        results = await driver.publish([to_queue(queue, b"x") for queue in away])
    assert 0.8 < time.monotonic() - began < 2.0
    assert [type(one) for one in results] == [Unavailable] * 5
    assert "queue 'away 4' has no leader now" in str(results[4])


@pytest.mark.parametrize(("require", "expected"), [(True, Unroutable), (False, int)])
async def test_a_send_whose_last_queue_is_dropped_meanwhile_reaches_none(
    driver: NatsDriver, opened: Opener, monkeypatch: pytest.MonkeyPatch, require: bool, expected: type
) -> None:
    await topology(driver, ["only"], "orders")
    before, current = [await driver._topology.current()], driver._topology.current
    await (await opened()).drop([DeclareQueue("only")])

    async def as_it_was() -> Any:
        return before.pop() if before else await current()

    monkeypatch.setattr(driver._topology, "current", as_it_was)
    (result,) = await driver.publish([Publication(to_topic=True, name="orders", body=b"x", require=require)])
    assert not before
    assert type(result) is expected
    assert result == 0 or require


async def test_what_was_deleted_at_the_server_is_not_declared_until_it_is_again(driver: Driver) -> None:
    await topology(driver, ["emails"], "orders")
    waiting = asyncio.create_task(driver.fetch("emails", 1, 10.0, 30.0))
    await asyncio.sleep(0.2)
    for stream in (driver._names.stream("emails"), driver._names.bucket):  # type: ignore[attr-defined]
        await driver._api.request(f"STREAM.DELETE.{stream}")  # type: ignore[attr-defined]
    async with asyncio.timeout(8.0):
        with pytest.raises(NotDeclared):
            await waiting
    (result,) = await driver.publish([to_queue("emails", b"x")])
    assert isinstance(result, NotDeclared)
    await topology(driver, ["emails"], "orders")
    await publish(driver, [to_queue("emails", b"y")])
    assert await drain(driver, "emails") == [b"y"]


async def test_delays_are_never_early_and_p99_is_within_300_ms(driver: Driver) -> None:
    await topology(driver, ["later"])
    chance = random.Random(7)
    delays = [chance.choice([0.05, 0.2, 0.9, 1.0, 1.3, chance.uniform(0.1, 3.0)]) for _ in range(200)]
    began = time.time()
    await publish(driver, [to_queue("later", b"%f" % delay, delay) for delay in delays])
    confirmed = time.time()
    late: list[float] = []
    async with asyncio.timeout(10.0):
        while len(late) < len(delays):
            batch = await driver.fetch("later", 20, 2.0, 30.0)
            now = time.time()
            for one in batch:
                assert now - began >= float(one.body) - 0.005, f"{float(one.body)} s came after {now - began} s"
                late.append(now - confirmed - float(one.body))
            await driver.settle("later", [Ack(one) for one in batch])
    assert sorted(late)[int(len(late) * 0.99) - 1] <= 0.35


async def test_a_delay_that_is_no_number_is_none_and_holds_nothing_up(driver: NatsDriver) -> None:
    await topology(driver, ["later"])
    subject, told = driver._names.ready("later"), ["soon", "nan", "inf", "-1", ""]
    await driver._link.ask([(subject, one.encode(), {DELAY: one}) for one in told])
    await publish(driver, [to_queue("later", b"good")])
    assert [one.body for one in await receive(driver, "later", 6)] == [*[one.encode() for one in told], b"good"]


async def test_a_lease_is_as_long_as_was_asked_and_as_an_extension_says(driver: Driver) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"x")])
    began = time.monotonic()
    (one,) = await receive(driver, "work", 1, ack=False, lease=7.0)  # longer than the consumer's own
    assert await driver.fetch("work", 1, 5.6, 30.0) == []
    assert await driver.settle("work", [Extend(one, 0.5)]) == [Settled.DONE]
    await receive(driver, "work", 1, within=2.0)
    assert 6.0 <= time.monotonic() - began <= 7.0


async def test_past_its_lease_only_an_ack_is_sent(driver: Driver) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"x")])
    (late,) = await receive(driver, "work", 1, ack=False, lease=0.2)
    (holder,) = await receive(driver, "work", 1, ack=False)
    for settlement in (Nack(late), Extend(late, 0.1), Move(late, b"copy", 0.0)):
        assert await driver.settle("work", [settlement]) == [Settled.STALE]
    assert await driver.fetch("work", 1, 0.4, 30.0) == []
    assert await driver.settle("work", [Ack(holder)]) == [Settled.DONE]


@pytest.mark.parametrize("away", [True, False], ids=["the server is away", "no answer"])
async def test_a_lease_whose_extension_nobody_has_taken_ends_as_it_was(
    driver: NatsDriver, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"x")])
    (late,) = await receive(driver, "work", 1, ack=False, lease=0.3)

    async def unheard(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        if away:
            raise Unavailable("away")
        return [None]

    with monkeypatch.context() as patched:
        patched.setattr(driver._link, "ask", unheard)
        with contextlib.suppress(Unavailable):
            assert await driver.settle("work", [Extend(late, 60.0)]) == [Settled.UNKNOWN]
    (holder,) = await receive(driver, "work", 1, ack=False)
    assert await driver.settle("work", [Nack(late)]) == [Settled.STALE]
    assert await driver.fetch("work", 1, 0.4, 30.0) == []
    assert await driver.settle("work", [Ack(holder)]) == [Settled.DONE]


async def test_an_ack_that_could_not_be_sent_may_be_tried_again(
    driver: NatsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"x")])
    (one,) = await receive(driver, "work", 1, ack=False)

    async def away(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(driver._link, "ask", away)
        with pytest.raises(Unavailable):
            await driver.settle("work", [Ack(one)])
    assert await driver.settle("work", [Ack(one)]) == [Settled.DONE]


async def test_what_lapses_while_others_are_moved_is_not_put_back(
    driver: NatsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"1"), to_queue("work", b"2")])
    (late,) = await receive(driver, "work", 1, ack=False, lease=0.3)
    (moved,) = await receive(driver, "work", 1, ack=False)
    move, loop = driver._publishing.move, asyncio.get_running_loop()

    async def slow(*words: Any) -> Any:
        while loop.time() < late.receipt.deadline:
            await asyncio.sleep(0.01)
        return await move(*words)

    monkeypatch.setattr(driver._publishing, "move", slow)
    batch = [Nack(late), Extend(late, 60.0), Move(moved, b"copy", 0.0)]
    assert await driver.settle("work", batch) == [Settled.STALE, Settled.STALE, Settled.DONE]
    assert {one.body for one in await receive(driver, "work", 2)} == {b"1", b"copy"}


async def test_the_answer_that_tells_of_a_mixed_batch_is_an_acks(
    driver: NatsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster a put-back is answered before the acks that went ahead of it are agreed on."""
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"%d" % number) for number in range(4)])
    first, second, third, fourth = await receive(driver, "work", 4, ack=False)
    ask, asked = driver._link.ask, list[tuple[str, bytes, Any]]()

    async def noted(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        asked.extend(calls)
        return await ask(calls, seconds, **others)

    monkeypatch.setattr(driver._link, "ask", noted)
    batch = [Ack(first), Ack(second), Extend(third, 30.0), Nack(fourth)]
    assert await driver.settle("work", batch) == [Settled.DONE] * 4
    assert asked == [(second.receipt.ack.decode(), b"+ACK", None)]
    assert await drain(driver, "work") == [b"3"]


async def test_one_answer_tells_of_a_batch_of_acks(driver: NatsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", b"%d" % number) for number in range(200)])
    held = await receive(driver, "work", 200, ack=False)
    ask, answered = driver._link.ask, [False, True]

    async def counted(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        assert len(calls) == 1
        return await ask(calls, seconds, **others) if answered.pop(0) else [None]

    monkeypatch.setattr(driver._link, "ask", counted)
    acks = [Ack(one) for one in held]
    assert await driver.settle("work", acks) == [Settled.UNKNOWN] * 200
    assert await driver.settle("work", acks) == [Settled.DONE] * 200  # tried again: nothing of it is in doubt
    assert await driver.settle("work", acks) == [Settled.STALE] * 200
    monkeypatch.undo()
    async with asyncio.timeout(5.0):
        while (await driver._api.stream_info(driver._names.stream("work")))["state"]["messages"]:
            await asyncio.sleep(0.01)


async def test_two_prefixes_do_not_see_each_other(driver: Driver, nats_server: NatsServer, opened: Opener) -> None:
    other = await opened(nats_server.prefix())
    await topology(driver, ["emails"], "orders")
    assert await other.queues() == []
    await topology(other, ["emails"], "orders")
    await publish(driver, [to_queue("emails", b"x")])
    assert await drain(other, "emails") == []
    assert await drain(driver, "emails") == [b"x"]


async def test_stats_count_what_is_ready_held_and_delayed(driver: Driver) -> None:
    await topology(driver, ["emails"])
    await publish(driver, [to_queue("emails", b"x", delay) for delay in (None, None, None, 60.0, 60.0)])
    await receive(driver, "emails", 1, ack=False)
    stats = await driver.stats("emails")
    assert stats.delayed == 2
    assert (stats.ready or 0) + (stats.in_flight or 0) == 3
    assert stats.in_flight


CHILD = """
import asyncio, sys
from easybus.clock import SystemClock
from easybus.engines.contract import Binding, DeclareQueue, DeclareTopic, Publication
from easybus.engines.registry import create

async def main(url, name):
    engine = create(url, SystemClock())
    await engine.open()
    driver = engine.driver
    for number in range(20):
        own = f"own {name} {number}"
        await driver.declare([DeclareQueue("shared"), DeclareQueue(own), DeclareTopic("orders")])
        await driver.declare([Binding("orders", "shared"), Binding("orders", own, f"{name}.{number}")])
        sends = [
            Publication(True, "orders", f"{name}.{number}.{at}".encode(), f"{name}.{number}")
            for at in range(5)
        ]
        assert await driver.publish(sends) == [2] * 5
    await engine.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_that_declare_and_publish_at_once_lose_nothing(driver: Driver, url: str) -> None:
    source = Path(__file__).parents[4] / "src"
    names = ("a", "b")
    children = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, url, name, env={"PYTHONPATH": str(source)})
        for name in names
    ]
    async with asyncio.timeout(30.0):
        assert [await child.wait() for child in children] == [0, 0]
    sent = sorted(f"{name}.{number}.{at}".encode() for name in names for number in range(20) for at in range(5))
    assert await drain(driver, "shared") == sent
    for name in names:
        for number in range(20):
            assert await drain(driver, f"own {name} {number}", 0.02) == sorted(
                f"{name}.{number}.{at}".encode() for at in range(5)
            )
    bound = dict(await driver.topics())["orders"]
    assert len(bound) == len(set(bound)) == 41
    assert Binding("orders", "shared") in bound
    assert DeclareQueue("own a 0") in await driver.queues()


async def test_a_stream_that_was_set_up_to_forget_is_told(driver: Driver, opened: Opener) -> None:
    await topology(driver, ["kept"])
    api, names = driver._api, driver._names  # type: ignore[attr-defined]
    subjects = [names.ready("lost"), names.delayed("lost")]
    settings = {"name": names.stream("lost"), "subjects": subjects, "retention": "workqueue", "storage": "memory"}
    await api.request(f"STREAM.CREATE.{names.stream('lost')}", settings)
    await topology(driver, ["lost"])  # an operator's settings are left as they are
    await publish(driver, [to_queue("lost", b"x", 1.0)])
    assert await drain(driver, "lost", 1.8) == [b"x"]
    (told,) = await driver.durability()  # type: ignore[attr-defined]
    assert names.stream("lost") in told
    assert "memory" in told


async def test_a_request_that_nobody_answers_is_made_again(driver: NatsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, unanswered = driver._link.ask, ["STREAM.CREATE", "CONSUMER.DURABLE.CREATE", "STREAM.INFO"]

    async def deaf(calls: Any, seconds: float | None = None, **others: Any) -> Any:
        for what in unanswered:
            if what in calls[0][0]:
                unanswered.remove(what)
                return [None]
        return await ask(calls, seconds, **others)

    monkeypatch.setattr(driver._link, "ask", deaf)
    await topology(driver, ["emails"])
    await publish(driver, [to_queue("emails", b"x")])
    assert not unanswered
    assert await drain(driver, "emails") == [b"x"]


async def test_a_stream_that_the_server_asked_does_not_know_yet_is_looked_for_again(
    driver: NatsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, unknown = driver._api.consumer_info, [True, True]

    async def late(stream: str, consumer: str) -> Any:
        if unknown:
            unknown.pop()
            raise JetStreamError({"err_code": NO_STREAM, "description": "stream not found"})
        return await info(stream, consumer)

    monkeypatch.setattr(driver._api, "consumer_info", late)
    await topology(driver, ["emails"])
    await publish(driver, [to_queue("emails", b"x")])
    assert not unknown

"""A message that RabbitMQ refuses closes the channel that others are on: they go all the same, and none is blamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.servers.rabbitmq import RabbitmqServer
from tests.servers.urls import as_user

from easybus.clock import SystemClock
from easybus.engines.contract import Driver, Engine
from easybus.engines.rabbitmq.faults import blamed
from easybus.engines.registry import create
from easybus.errors import Refused, TooLarge, Unavailable
from easybus.testing.driver_base import drain, fresh, to_queue, to_topic, topology


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


@pytest.fixture
async def driver(rabbitmq_server: RabbitmqServer) -> AsyncIterator[Driver]:
    engine = await opened(rabbitmq_server.url(timeout=5, settle=0))
    assert engine.driver is not None
    yield engine.driver
    await engine.close()


async def test_a_topic_that_a_user_may_not_write_to_fails_no_other_message_of_the_batch(
    driver: Driver, rabbitmq_server: RabbitmqServer
) -> None:
    queue, mine, theirs = fresh("queue"), fresh("mine"), fresh("theirs")
    await topology(driver, [queue], mine)
    await topology(driver, [queue], theirs)
    control = lambda *words: asyncio.to_thread(rabbitmq_server.control, "-q", *words)  # noqa: E731
    await control("add_user", "half", "secret")
    try:
        await control("set_permissions", "half", ".*", f"^(amq.default|{mine})$", ".*")
        engine = await opened(as_user(rabbitmq_server.url(timeout=5, settle=0), "half:secret"))
        assert engine.driver is not None
        for _ in range(2):  # at first the topics are looked for, then they are known
            results = await engine.driver.publish(
                [to_queue(queue, b"1"), to_topic(theirs, b"2"), to_topic(mine, b"3"), to_topic(theirs, b"4")]
            )
            assert results[0] is results[2] is None
            for refused in (results[1], results[3]):
                assert isinstance(refused, Refused)
                assert theirs in str(refused)
        await engine.close()
    finally:
        await control("delete_user", "half")
    assert set(await drain(driver, queue)) == {b"1", b"3"}


async def test_a_message_over_the_servers_own_limit_fails_alone(rabbitmq_server: RabbitmqServer) -> None:
    queue = fresh("queue")
    setting = "application:{}(rabbit, max_message_size{})."  # read by each channel that is opened

    async def limit(size: str) -> None:
        words = ("-q", "eval", setting.format("set_env", f", {size}"))
        await asyncio.to_thread(rabbitmq_server.control, *words)

    standing = await asyncio.to_thread(rabbitmq_server.control, "-q", "eval", setting.format("get_env", ""))
    await limit("1000")
    try:
        engine = await opened(rabbitmq_server.url(timeout=5, settle=0))
        assert engine.driver is not None
        await topology(engine.driver, [queue])
        small, large, other = await engine.driver.publish(
            [to_queue(queue, b"1"), to_queue(queue, b"2" * 1001), to_queue(queue, b"3")]
        )
        assert set(await drain(engine.driver, queue)) == {b"1", b"3"}
        await engine.close()
    finally:
        await limit(standing.strip().removeprefix("{ok,").rstrip("}"))
    assert small is other is None
    assert isinstance(large, TooLarge)
    assert "1000" in str(large)


@pytest.mark.parametrize(
    ("said", "exchange", "key", "size", "is_blamed"),
    [
        ("access to exchange 'amq.default' in vhost '/' refused for user 'x'", "", "jobs", 1, True),
        ("access to exchange 'amq.default' in vhost '/' refused for user 'x'", "orders", "jobs", 1, False),
        ("access to topic 'a.b' in exchange 'orders' in vhost '/' refused for user 'x'", "orders", "a.b", 1, True),
        ("access to topic 'a.b' in exchange 'orders' in vhost '/' refused for user 'x'", "orders", "a.c", 1, False),
        ("something that a later server says", "orders", "a.c", 1, True),
    ],
)
def test_whom_the_server_blames(said: str, exchange: str, key: str, size: int, is_blamed: bool) -> None:
    assert blamed(Refused(said), exchange, key, b"x" * size) is is_blamed


async def test_a_message_that_others_took_the_channel_from_twice_may_be_tried_again(driver: Driver) -> None:
    queue = fresh("queue")
    await topology(driver, [queue])
    refusal = Refused("access to exchange 'others' in vhost '/' refused for user 'x'")

    async def send(parcels: list[object]) -> list[Exception]:
        return [refusal] * len(parcels)

    driver._confirms.send = send  # type: ignore[attr-defined]
    (result,) = await driver.publish([to_queue(queue, b"1")])
    assert isinstance(result, Unavailable)
    assert "may or may not be there" in str(result)

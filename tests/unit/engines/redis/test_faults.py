"""Servers that die, stop and come back, and connections that are cut: fast errors, and work again without a hand."""

import asyncio
import time

import pytest
from tests.servers.outages import ServerOutages
from tests.servers.redis import RedisServer

from easybus.engines.contract import Ack, Claim, Claimed, DeadLetter, Done, Half, Publication, Settled
from easybus.engines.redis.engine import RedisEngine
from easybus.errors import EngineError, Unavailable
from easybus.testing.driver_base import drain, publish, receive, to_queue, topology

pytestmark = pytest.mark.outages


async def again(engine: RedisEngine, queue: str) -> list[bytes]:
    """What the queue holds, as soon as the server answers."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await drain(engine.driver, queue)
            except EngineError:
                await asyncio.sleep(0.05)


async def test_a_waiting_fetch_survives_or_fails_fast_and_later_ones_are_woken_again(
    engine: RedisEngine, redis_server: RedisServer
) -> None:
    await topology(engine.driver, ["jobs"])
    waiting = asyncio.create_task(engine.driver.fetch("jobs", 1, 30.0, 30.0))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(redis_server.restart)
    async with asyncio.timeout(3):
        while not waiting.done():
            try:
                await engine.driver.publish([Publication(False, "jobs", b"after")])
                await waiting
            except Unavailable:
                await asyncio.sleep(0.02)
    await drain(engine.driver, "jobs")
    deadline = time.monotonic() + 5.0
    while True:  # subscribed again, whenever that is: then a message is there faster than by polling
        waiting = asyncio.create_task(engine.driver.fetch("jobs", 1, 5.0, 30.0))
        await asyncio.sleep(0.05)
        sent = time.monotonic()
        await publish(engine.driver, [to_queue("jobs", b"woken")])
        (one,) = await waiting
        took = time.monotonic() - sent
        await engine.driver.settle("jobs", [Ack(one)])
        if took < 0.04:
            break
        assert time.monotonic() < deadline, "announcements are heard no more"


async def test_a_cut_connection_costs_at_most_an_error_and_no_message(
    engine: RedisEngine, redis_server: RedisServer
) -> None:
    await topology(engine.driver, ["jobs"])
    sent = 0
    for at in range(20):
        await asyncio.to_thread(redis_server.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.to_thread(redis_server.ask, "CLIENT", "KILL", "TYPE", "pubsub")
        try:
            await publish(engine.driver, [to_queue("jobs", b"%d" % at)])
            sent += 1
        except Unavailable:
            continue
    assert sent >= 15  # a connection found dead is replaced before anything is sent on it
    async with asyncio.timeout(10):
        assert len(await again(engine, "jobs")) >= sent


async def test_keys_letters_halves_and_held_messages_are_there_after_a_restart(
    engine: RedisEngine, redis_server: RedisServer
) -> None:
    await topology(engine.driver, ["jobs"])
    await publish(engine.driver, [to_queue("jobs", b"held")])
    (held,) = await receive(engine.driver, "jobs", 1, ack=False)
    (done,) = await engine.idempotency.claim([Claim("jobs", "done", b"d", 60.0)])
    (claimed,) = await engine.idempotency.claim([Claim("jobs", "held", b"d", 60.0)])
    assert isinstance(done, Claimed)
    assert isinstance(claimed, Claimed)
    assert await engine.idempotency.complete([(done.token, 60.0)]) == [True]
    key = await engine.dead_letters.store(DeadLetter(queue="jobs", body=b"dead", reason="why"))
    token, _ = await engine.transactions.store(Half(id="h", service="shop", topic="orders", body=b"half"), 60.0)
    await asyncio.to_thread(redis_server.restart)
    await again(engine, "jobs")
    assert isinstance((await engine.idempotency.claim([Claim("jobs", "done", b"d", 60.0)]))[0], Done)
    assert await engine.idempotency.complete([(claimed.token, 60.0)]) == [True]
    letter = await engine.dead_letters.get("jobs", key)
    assert letter is not None
    assert letter.body == b"dead"
    assert await engine.transactions.remove("h", token)
    assert await engine.driver.settle("jobs", [Ack(held)]) == [Settled.DONE]


class TestOutages(ServerOutages):
    @pytest.fixture
    def server(self, redis_server: RedisServer) -> RedisServer:
        return redis_server

    @pytest.fixture
    def url(self, server: RedisServer) -> str:
        return server.url(timeout="1")

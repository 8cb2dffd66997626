"""A master that dies is followed by its replica: the engine finds it by Sentinel, and work goes on."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from tests.servers.redis import PASSWORD, RedisServer, SentinelServer

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, Publication
from easybus.engines.redis.engine import RedisEngine
from easybus.engines.registry import create
from easybus.errors import EngineError, Refused, Unavailable
from easybus.testing.driver_base import publish, receive, to_queue, topology

pytestmark = pytest.mark.outages


class Trio:
    """A master, its replica, and a Sentinel."""

    def __init__(self) -> None:
        self.master = RedisServer()
        self.replica = RedisServer("--replicaof", f"127.0.0.1 {self.master.port}")
        self.sentinel = SentinelServer(self.master)

    def start(self) -> None:
        self.master.start()
        self.replica.start()
        self.sentinel.start()
        deadline = time.monotonic() + 20
        while not self.ready():
            assert time.monotonic() < deadline, "the replica is not known to Sentinel"
            time.sleep(0.05)

    def ready(self) -> bool:
        """Whether Sentinel knows of the replica."""
        return self.sentinel.ask("SENTINEL", "REPLICAS", "mymaster") == "*1"

    def remove(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.remove()


@pytest.fixture
def trio() -> Iterator[Trio]:
    trio = Trio()
    try:
        trio.start()
        yield trio
    finally:
        trio.remove()


async def test_after_a_failover_the_same_engine_works_on_the_new_master(trio: Trio) -> None:
    engine = create(trio.sentinel.url(timeout="1"), SystemClock())
    assert isinstance(engine, RedisEngine)
    await engine.open()
    try:
        assert PASSWORD not in engine.url
        await topology(engine.driver, ["jobs"], topic="orders")
        await publish(engine.driver, [to_queue("jobs", b"%d" % at) for at in range(10)])
        (held,) = await receive(engine.driver, "jobs", 1, ack=False, lease=1.0)
        async with asyncio.timeout(20):
            while await engine.link().command("WAIT", 1, 500) == 0:  # the replica has all of it
                await publish(engine.driver, [to_queue("jobs", b"0")])
        trio.master.kill()
        async with asyncio.timeout(30):
            while True:
                try:
                    results = await engine.driver.publish([Publication(True, "orders", b"after")])
                    assert results == [1]
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
        got: set[bytes] = set()
        async with asyncio.timeout(10):
            while len(got) < 11:
                try:
                    batch = await engine.driver.fetch("jobs", 20, 2.0, 30.0)
                    await engine.driver.settle("jobs", [Ack(one) for one in batch])
                    got |= {one.body for one in batch}
                except EngineError:
                    await asyncio.sleep(0.1)
        assert got == {b"%d" % at for at in range(10)} | {b"after"}
        assert held.body in got
    finally:
        await engine.close()


async def test_sentinels_that_are_away_or_refuse_say_so(trio: Trio) -> None:
    wrong = create(trio.sentinel.url().replace(f"sentinel_password={PASSWORD}", "sentinel_password=no"), SystemClock())
    with pytest.raises((Unavailable, Refused)):
        await wrong.open()
    unknown = create(trio.sentinel.url().replace("/mymaster", "/another"), SystemClock())
    with pytest.raises(Unavailable, match="another"):
        await unknown.open()

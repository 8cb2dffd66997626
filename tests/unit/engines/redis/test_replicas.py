"""`replicas=`: what is confirmed is at so many replicas; where they are away nothing is confirmed."""

import re
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.servers.redis import RedisServer

from easybus.clock import SystemClock
from easybus.engines.contract import Claim, Claimed
from easybus.engines.redis.engine import RedisEngine
from easybus.engines.registry import create
from easybus.errors import Unavailable
from easybus.testing.driver_base import publish, receive, to_queue, topology


@pytest.fixture
def master() -> Iterator[RedisServer]:
    master = RedisServer("--repl-diskless-sync-delay", "0")
    try:
        master.start()
        yield master
    finally:
        master.remove()


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    replica = RedisServer("--replicaof", f"127.0.0.1 {master.port}")
    try:
        replica.start()
        deadline = time.monotonic() + 30.0
        while not _follows(master):
            assert time.monotonic() < deadline, master.talk("INFO", "replication")
            time.sleep(0.02)
        yield replica
    finally:
        replica.remove()


def _follows(master: RedisServer) -> bool:
    """Whether its replica is online and has confirmed something: it may be online, and still be loading a snapshot."""
    master.ask("PUBLISH", "nobody", "")  # goes to replicas, and leaves no key
    return re.search(r"state=online,offset=[1-9]", master.talk("INFO", "replication")) is not None


@pytest.fixture
async def waiting(master: RedisServer, replica: RedisServer) -> AsyncIterator[RedisEngine]:
    """An engine that waits for one replica, which is there."""
    engine = create(master.url(timeout="1", replicas="1"), SystemClock())
    assert isinstance(engine, RedisEngine)
    await engine.open()
    try:
        await topology(engine.driver, ["jobs"])
        yield engine
    finally:
        await engine.close()


async def test_what_is_confirmed_is_at_a_replica(waiting: RedisEngine, replica: RedisServer) -> None:
    await publish(waiting.driver, [to_queue("jobs", b"x")])
    name = waiting.link().names.queue("jobs")
    assert replica.ask("XLEN", f"{name}:s") == ":1"


async def test_while_no_replica_answers_nothing_is_confirmed_and_only_the_first_is_written(
    waiting: RedisEngine, replica: RedisServer
) -> None:
    replica.freeze()
    for body in (b"first", b"second", b"third"):
        with pytest.raises(Unavailable, match="0 of 1 replicas"):
            await waiting.driver.publish([to_queue("jobs", body)])
    replica.thaw()
    await publish(waiting.driver, [to_queue("jobs", b"after")])
    assert [one.body for one in await receive(waiting.driver, "jobs", 2)] == [b"first", b"after"]


async def test_a_claim_that_no_replica_has_is_given_back(waiting: RedisEngine, replica: RedisServer) -> None:
    replica.freeze()
    claim = Claim("jobs", "id", b"digest", 30.0)
    with pytest.raises(Unavailable, match="0 of 1 replicas"):
        await waiting.idempotency.claim([claim])
    replica.thaw()
    await publish(waiting.driver, [to_queue("jobs", b"x")])  # it is there again
    [found] = await waiting.idempotency.claim([claim])
    assert isinstance(found, Claimed)


async def test_an_audit_tells_of_replicas_that_are_not_there(waiting: RedisEngine, master: RedisServer) -> None:
    assert not await waiting.durability()
    wants_two = create(master.url(replicas="2"), SystemClock())
    assert isinstance(wants_two, RedisEngine)
    await wants_two.open()
    try:
        assert "replicas=2 in the URL, and 1 are connected" in " ".join(await wants_two.durability())
    finally:
        await wants_two.close()

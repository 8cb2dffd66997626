"""What a queue's keys hold: nothing is left over, nothing is lost with a lease, a group or a foreign hand."""

import asyncio
import itertools
import sys
import time
from functools import partial
from typing import Any

import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import (
    Ack,
    Busy,
    Claim,
    Claimed,
    DeclareQueue,
    Delivery,
    Extend,
    Finish,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
)
from easybus.engines.redis import fused
from easybus.engines.redis.engine import RedisEngine
from easybus.engines.registry import create
from easybus.errors import NotDeclared, Refused, Unavailable
from easybus.testing.driver_base import drain, publish, receive, to_queue, topology


async def ask(engine: RedisEngine, command: str, kind: str = "s", *words: Any) -> Any:
    """One command on a key of the queue "jobs"."""
    link = engine.link()
    return await link.command(command, f"{link.names.queue('jobs')}:{kind}", *words)


async def left(engine: RedisEngine) -> dict[str, int]:
    """Rows of each kind of the queue "jobs"."""
    pending = await ask(engine, "XPENDING", "s", "easybus")
    counts = {kind: await ask(engine, "ZCARD", kind) for kind in "lnz"}
    return counts | {"s": await ask(engine, "XLEN"), "pending": pending["pending"]}


NOTHING = {"l": 0, "n": 0, "z": 0, "s": 0, "pending": 0}


async def test_nothing_is_left_of_what_is_settled_whatever_way(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at, 0.01 if at % 2 else 0.0) for at in range(40)])
    held = await receive(driver, "jobs", 40, ack=False)
    ways = itertools.cycle([Ack, Nack, lambda one: Extend(one, 0.01), lambda one: Move(one, one.body, 0.0)])
    await driver.settle("jobs", [way(one) for way, one in zip(ways, held, strict=False)])
    again = await receive(driver, "jobs", 30, ack=False)
    assert await driver.settle("jobs", [Ack(one) for one in again]) == [Settled.DONE] * 30
    assert await left(engine) == NOTHING


async def test_lapsed_leases_are_taken_over_in_the_order_of_the_queue(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    sent = [b"%d" % at for at in range(200)]
    await publish(driver, [to_queue("jobs", body) for body in sent])
    await receive(driver, "jobs", 200, ack=False, lease=0.1)
    again = await receive(driver, "jobs", 200)
    assert [one.body for one in again] == sent
    assert {one.attempt for one in again} == {2}
    assert await left(engine) == NOTHING


async def test_the_server_searches_no_list_for_a_lease(engine: RedisEngine) -> None:
    await topology(engine.driver, ["jobs"])
    await publish(engine.driver, [to_queue("jobs", b"1")])
    await receive(engine.driver, "jobs", 1, ack=False)
    link = engine.link()
    assert await link.command("OBJECT ENCODING", f"{link.names.queue('jobs')}:l") == b"skiplist"


async def test_leases_of_different_length_end_each_at_its_time(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"long"), to_queue("jobs", b"short")])
    await receive(driver, "jobs", 1, ack=False, lease=30.0)
    await receive(driver, "jobs", 1, ack=False, lease=0.1)
    assert [one.body for one in await receive(driver, "jobs", 1, within=2.0)] == [b"short"]
    assert await driver.fetch("jobs", 1, 0.0, 30.0) == []


async def test_a_lost_group_delivers_all_that_is_there_again(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"held"), to_queue("jobs", b"returned"), to_queue("jobs", b"waiting")])
    held, returned = await receive(driver, "jobs", 2, ack=False)
    await driver.settle("jobs", [Nack(returned, 60.0)])
    await ask(engine, "XGROUP DESTROY", "s", "easybus")
    assert sorted([one.body for one in await receive(driver, "jobs", 3, ack=False)]) == [
        b"held",
        b"returned",
        b"waiting",
    ]
    assert await driver.settle("jobs", [Ack(held)]) == [Settled.STALE]
    assert (await driver.stats("jobs")) == QueueStats(0, 3, 0)


async def test_a_lost_stream_is_made_again(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await ask(engine, "DEL")
    assert await driver.fetch("jobs", 1, 0.0, 30.0) == []
    assert await driver.stats("jobs") == QueueStats(0, 0, 0)
    await publish(driver, [to_queue("jobs", b"new")])
    assert await drain(driver, "jobs") == [b"new"]


async def foreign_read(engine: RedisEngine, count: int) -> None:
    """Another program reads the queue "jobs" in our group."""
    stream = f"{engine.link().names.queue('jobs')}:s"
    await engine.link().command(*("XREADGROUP", "GROUP", "easybus", "someone", "COUNT", count, "STREAMS", stream, ">"))


async def test_what_is_pending_without_a_lease_is_delivered_again(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(3)])
    await receive(driver, "jobs", 1, ack=False)
    await ask(engine, "DEL", "l")  # a lease that a failover has lost
    await foreign_read(engine, 1)
    got = await receive(driver, "jobs", 3)
    assert sorted(one.body for one in got) == [b"0", b"1", b"2"]
    assert await left(engine) == NOTHING


async def test_nothing_stays_pending_of_what_is_fetched_or_was_read_by_another_program(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(2_200)])
    (held,) = await receive(driver, "jobs", 1, ack=False)
    assert (await left(engine))["pending"] == 0
    await ask(engine, "XCLAIM", "s", "easybus", "someone", 0, held.receipt.partition("/")[0], "FORCE")
    await foreign_read(engine, 2_000)
    assert (await left(engine))["pending"] == 2_001
    assert {one.attempt for one in await receive(driver, "jobs", 2_000)} == {2}
    assert (await left(engine))["pending"] == 0
    assert {one.attempt for one in await receive(driver, "jobs", 199)} == {1}
    assert await driver.settle("jobs", [Ack(held)]) == [Settled.DONE]
    assert await left(engine) == NOTHING


async def test_a_lost_lease_is_noticed_while_there_is_a_backlog(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at, 0.01 if at == 50 else 0.0) for at in range(51)])
    lost = await receive(driver, "jobs", 10, ack=False)
    await ask(engine, "DEL", "l")
    await receive(driver, "jobs", 5)
    again = await receive(driver, "jobs", 10)
    assert [one.body for one in again] == [one.body for one in lost]
    assert len(await receive(driver, "jobs", 36)) == 36
    assert await left(engine) == NOTHING


async def test_a_lost_lease_is_noticed_where_the_server_cannot_tell_what_is_unread(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(5)])
    await receive(driver, "jobs", 2, ack=False)
    await ask(engine, "DEL", "l")
    assert await driver.purge("jobs") == 3  # what is unread: Redis 7.0 counts those as unread ever after
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(5, 8)])
    held = await receive(driver, "jobs", 3, ack=False)
    assert [one.body for one in await receive(driver, "jobs", 2)] == [b"0", b"1"]
    assert await driver.settle("jobs", [Ack(one) for one in held]) == [Settled.DONE] * 3
    assert await left(engine) == NOTHING


async def test_a_flushed_server_is_noticed_by_the_next_publish(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"before")])
    link = engine.link()
    await link.command("DEL", *link.names.topology[:3])
    (result,) = await driver.publish([to_queue("jobs", b"after")])
    assert isinstance(result, NotDeclared)
    await driver.declare([DeclareQueue("jobs")])
    await publish(driver, [to_queue("jobs", b"again")])
    assert await drain(driver, "jobs") == [b"again", b"before"]


async def test_a_foreign_key_is_refused_with_what_to_do_and_fails_its_queue_alone(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs", "mails"])
    await ask(engine, "DEL")
    await ask(engine, "SET", "s", "another program's")
    bad, good = await driver.publish([to_queue("jobs", b"1"), to_queue("mails", b"2")])
    assert isinstance(bad, Refused)
    assert "choose another ?prefix=" in str(bad)
    assert good == 1
    with pytest.raises(Refused, match="choose another"):
        await driver.fetch("jobs", 1, 1.0, 30.0)
    assert await drain(driver, "mails") == [b"2"]
    link = engine.link()
    await link.command("SET", f"{link.names.queue('taken')}:s", "another program's")
    with pytest.raises(Refused, match="choose another"):
        await driver.declare([DeclareQueue("taken")])
    assert "taken" not in [one.name for one in await driver.queues()]


async def test_a_server_that_forgot_its_scripts_is_given_them_again(engine: RedisEngine) -> None:
    await topology(engine.driver, ["jobs"])
    await engine.link().command("SCRIPT FLUSH")
    await publish(engine.driver, [to_queue("jobs", b"1")])
    assert await drain(engine.driver, "jobs") == [b"1"]


async def test_a_delayed_message_comes_when_its_sender_is_long_dead(engine: RedisEngine, url: str) -> None:
    await topology(engine.driver, ["jobs"])
    program = (
        "import asyncio, os, signal, sys\n"
        "from easybus.clock import SystemClock\n"
        "from easybus.engines.contract import Publication\n"
        "from easybus.engines.registry import create\n"
        "async def main():\n"
        "    engine = create(sys.argv[1], SystemClock())\n"
        "    await engine.open()\n"
        "    await engine.driver.publish([Publication(False, 'jobs', b'later', delay=1.0)])\n"
        "    await engine.driver.publish([Publication(False, 'jobs', b'held')])\n"
        "    await engine.driver.fetch('jobs', 1, 1.0, 0.5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, url)
    assert await asyncio.wait_for(child.wait(), 20) == -9
    got = [(one.body, one.attempt) for one in await receive(engine.driver, "jobs", 2, within=5.0)]
    assert got == [(b"held", 2), (b"later", 1)]
    assert time.monotonic() - began >= 1.0


async def test_purging_takes_many_in_parts_and_spares_what_is_in_flight(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at, 60.0 if at % 3 == 0 else 0.0) for at in range(4_000)])
    held = await receive(driver, "jobs", 10, ack=False)
    await driver.settle("jobs", [Nack(one, 60.0) for one in held[:5]])
    assert await driver.purge("jobs") == 3_995
    assert await driver.settle("jobs", [Ack(one) for one in held[5:]]) == [Settled.DONE] * 5
    assert await left(engine) == NOTHING


async def test_purging_spares_what_is_in_flight_beside_another_programs_group(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(3)])
    (held,) = await receive(driver, "jobs", 1, ack=False)
    await ask(engine, "XGROUP CREATE", "s", "another", "0")
    assert await driver.purge("jobs") == 2
    assert await ask(engine, "XLEN") == 1
    assert await driver.settle("jobs", [Ack(held)]) == [Settled.DONE]


async def test_large_messages_are_fetched_a_few_at_a_time(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", bytes(1 << 20)) for _ in range(20)])
    first = await driver.fetch("jobs", 100, 1.0, 30.0)
    assert 1 <= len(first) <= 8
    assert await driver.settle("jobs", [Ack(one) for one in first]) == [Settled.DONE] * len(first)
    assert len(await drain(driver, "jobs")) == 20 - len(first)


async def test_names_with_braces_and_percents_have_keys_of_their_own(engine: RedisEngine) -> None:
    names = ["a", "a}", "a}:s", "%7D", "a%7D", "{a}", "{", "a}:k:b"]
    await topology(engine.driver, names)
    await publish(engine.driver, [to_queue(name, name.encode()) for name in names])
    for name in names:
        assert await drain(engine.driver, name) == [name.encode()]
    keys = {engine.link().names.key(queue, name) for queue, name in [("a}:k:b", "c"), ("a", "b}:k:c"), ("a", "b:k:c")]}
    assert len(keys) == 3


async def test_a_consumer_is_woken_and_does_not_poll_for_what_comes(engine: RedisEngine, url: str) -> None:
    await topology(engine.driver, ["jobs"])
    other = create(url, SystemClock())
    await other.open()
    try:
        assert await engine.driver.fetch("jobs", 1, 0.2, 30.0) == []  # subscribed now
        late: list[float] = []
        for _ in range(10):
            waiting = asyncio.create_task(engine.driver.fetch("jobs", 1, 5.0, 30.0))
            await asyncio.sleep(0.03)
            sent = time.monotonic()
            await other.driver.publish([Publication(False, "jobs", b"now")])
            (one,) = await waiting
            late.append(time.monotonic() - sent)
            await engine.driver.settle("jobs", [Ack(one)])
        assert sorted(late)[5] < 0.1, late  # polling alone would take a quarter of a second
    finally:
        await other.close()


async def test_what_is_taken_over_has_a_key_that_is_free(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(20)])

    def parse(delivery: Delivery, pause: float) -> tuple[Claim, None]:
        time.sleep(pause)
        return Claim("jobs", delivery.body.decode(), b"d", 0.3), None

    for starts, pause in ((1, 0.005), (2, 0.0)):  # first the claims come long after the fetch, then at once
        taken: list[Any] = []
        while len(taken) < 20:
            taken += await driver.take("jobs", 20, 2.0, 0.3, partial(parse, pause=pause))
        assert [getattr(one.claim, "starts", one.claim) for one in taken] == [starts] * 20


@pytest.mark.parametrize("pause", [0.0, 1.0], ids=["at once", "late"])
async def test_a_key_is_held_no_longer_than_its_delivery(engine: RedisEngine, pause: float) -> None:
    driver, link, lease = engine.driver, engine.link(), 20.0
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(5)])

    def parse(delivery: Delivery) -> tuple[Claim, None]:
        time.sleep(pause / 5)
        return Claim("jobs", delivery.body.decode(), b"d", lease), None

    taken = await driver.take("jobs", 5, 1.0, lease, parse)
    seconds, micros = await link.command("TIME")
    for one in taken:
        row = await ask(engine, "ZSCORE", "l", one.delivery.receipt)
        value = await link.command("GET", link.names.key("jobs", one.delivery.body.decode()))
        assert int(value[1:17]) <= float(row)
        assert int(value[1:17]) >= int(seconds) * 10**6 + int(micros) + 0.96 * lease * 1e6


async def test_a_late_claim_of_what_was_taken_over_is_not_held(
    engine: RedisEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, claim_keys = engine.driver, fused.claim_keys
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"1")])
    successors: list[Any] = []

    def parse(delivery: Delivery) -> tuple[Claim, None]:
        return Claim("jobs", delivery.body.decode(), b"d", 0.3), None

    async def late(*given: Any) -> Any:
        results = await claim_keys(*given)
        monkeypatch.setattr(fused, "claim_keys", claim_keys)
        successors.extend(await driver.take("jobs", 1, 5.0, 30.0, parse))
        return results

    monkeypatch.setattr(fused, "claim_keys", late)
    (one,) = await driver.take("jobs", 1, 1.0, 0.3, parse)
    assert isinstance(one.claim, Busy)
    assert [successor.claim.starts for successor in successors] == [2]


async def test_what_cannot_be_claimed_goes_back_at_once(engine: RedisEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"1")])

    async def away(*_: object) -> None:
        raise Unavailable("gone in between")

    with monkeypatch.context() as patched:
        patched.setattr(fused, "claim_keys", away)
        with pytest.raises(Unavailable):
            await driver.take("jobs", 1, 1.0, 60.0, lambda _: (None, None))
    assert [one.attempt for one in await receive(driver, "jobs", 1, within=2.0)] == [2]


async def test_nothing_is_left_of_what_is_finished_but_its_key(engine: RedisEngine) -> None:
    driver = engine.driver
    await topology(driver, ["jobs"])
    await publish(driver, [to_queue("jobs", b"%d" % at) for at in range(20)])
    taken = await driver.take("jobs", 20, 1.0, 30.0, lambda one: (Claim("jobs", one.body.decode(), b"d", 30.0), None))
    finishes = [Finish(one.delivery, one.claim.token, 60.0) for one in taken if isinstance(one.claim, Claimed)]
    assert await driver.finish("jobs", finishes) == [True] * 20
    assert await left(engine) == NOTHING
    assert 0 < await engine.link().command("PTTL", engine.link().names.key("jobs", "0")) <= 60_000

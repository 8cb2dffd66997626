"""What a fetch takes beside others' sends and fetches; and claims that fail on the way, of which nothing is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asyncmy.errors import OperationalError
from tests.servers.mariadb import MariadbServer

from easybus import Unavailable
from easybus.clock import SystemClock
from easybus.engines.contract import Claim, Claimed, DeclareQueue, Delivery, Publication
from easybus.engines.mysql import create
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.keys import Wishes

from .conftest import Client, Opener


async def fail(*_: object) -> dict[bytes, Claimed]:
    raise Unavailable("cut off")


def parse(delivery: Delivery) -> tuple[Claim, None]:
    return Claim("jobs", delivery.body.decode(), delivery.body, 60.0), None


@pytest.mark.timeout(180)
async def test_one_consumer_sees_the_order_of_sends_that_are_being_committed(
    engine: MysqlEngine, opened: Opener
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    names = [b"%06d" % number for number in range(30_000)]
    sender, found = (await opened()).driver, list[bytes]()

    async def send() -> None:
        for first in range(0, len(names), 10):
            await sender.publish([Publication(False, "jobs", name) for name in names[first : first + 10]])

    sending = asyncio.ensure_future(send())
    while True:
        all_sent = sending.done()
        deliveries = await engine.driver.fetch("jobs", 100, 0.0, 600.0)
        found += [delivery.body for delivery in deliveries]
        if all_sent and not deliveries:
            break
    await sending
    assert found == names


async def test_where_others_hold_all_that_is_seen_first_the_next_ones_are_taken(
    engine: MysqlEngine, client: Client
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", name) for name in (b"a", b"b", b"c", b"d", b"e")])
    table = engine.driver._session.names("{message}")
    await client.run("BEGIN")
    await client.run(f"SELECT id FROM {table} ORDER BY id LIMIT 2 FOR UPDATE")

    async def fetched(limit: int) -> list[bytes]:
        return [each.body for each in await engine.driver.fetch("jobs", limit, 5.0, 60.0)]

    assert await fetched(2) == [b"c", b"d"]
    assert await fetched(2) == [b"e"]
    await client.run("ROLLBACK")
    assert await fetched(5) == [b"a", b"b"]


async def test_four_consumers_meet_no_error_where_the_server_isolates_snapshots() -> None:
    server = MariadbServer("--innodb-snapshot-isolation=ON")  # the default from MariaDB 11.6 on
    url = server.prefix()
    engines = [create(url, SystemClock()) for _ in range(4)]
    names = [b"%04d" % number for number in range(4000)]
    found: list[bytes] = []

    async def consume(engine: MysqlEngine) -> None:
        while deliveries := await engine.driver.fetch("jobs", 10, 0.5, 60.0):
            found.extend(delivery.body for delivery in deliveries)

    try:
        await asyncio.to_thread(server.start)
        assert await asyncio.to_thread(server.sql, "SELECT @@innodb_snapshot_isolation") == "1"
        for engine in engines:
            await engine.open()
        await engines[0].driver.declare([DeclareQueue("jobs")])
        await engines[0].driver.publish([Publication(False, "jobs", name) for name in names])
        look = "SELECT @@innodb_snapshot_isolation"  # what it refuses would be done again, a few times
        assert await engines[0]._session.connections.run(lambda link: link.value(look)) == 0
        await asyncio.gather(*map(consume, engines))
    finally:
        for engine in engines:
            await engine.close()
        await asyncio.to_thread(server.remove)
    assert sorted(found) == names


async def test_a_take_that_fails_at_a_takeover_gives_back_what_it_had_claimed(
    engine: MysqlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", name) for name in (b"old", b"new")])
    await engine.idempotency.claim([Claim("jobs", "old", b"old", 0.01)])
    await asyncio.sleep(0.05)

    monkeypatch.setattr(Wishes, "_take_over", fail)
    with pytest.raises(Unavailable):
        await engine.driver.take("jobs", 2, 1.0, 30.0, parse)
    monkeypatch.undo()
    found = []
    while len(found) < 2:
        found += await engine.driver.take("jobs", 2, 5.0, 30.0, parse)
    assert all(isinstance(one.claim, Claimed) for one in found)


async def test_a_claim_that_is_done_again_after_a_deadlock_knows_its_own_keys(
    engine: MysqlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = engine.idempotency
    await keys.claim([Claim("jobs", "old", b"d", 0.01)])
    await asyncio.sleep(0.05)
    take_over, failed = Wishes._take_over, asyncio.Event()

    async def deadlock_once(*given: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise OperationalError(1213, "Deadlock found")
        return await take_over(*given)

    monkeypatch.setattr(Wishes, "_take_over", deadlock_once)
    old, new = await keys.claim([Claim("jobs", name, b"d", 60.0) for name in ("old", "new")])
    assert failed.is_set()
    assert isinstance(old, Claimed)
    assert isinstance(new, Claimed)
    assert ((old.before, old.starts), (new.before, new.starts)) == ((True, 2), (False, 1))


async def test_a_takeover_whose_end_is_unknown_is_given_back(
    engine: MysqlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, take_over = engine.idempotency, Wishes._take_over
    await keys.claim([Claim("jobs", "old", b"d", 0.01)])
    await asyncio.sleep(0.05)

    async def lose_the_reply(*given: Any) -> Any:
        await take_over(*given)
        raise Unavailable("cut off")

    monkeypatch.setattr(Wishes, "_take_over", lose_the_reply)
    with pytest.raises(Unavailable):
        await keys.claim([Claim("jobs", name, b"d", 60.0) for name in ("old", "new")])
    for name in ("old", "new"):
        while await keys.lookup("jobs", name) != "free":
            await asyncio.sleep(0.01)

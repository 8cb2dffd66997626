"""Many on one database: opening at once, hearing of each other, and keeping apart."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus, ConfigurationError, NotDeclared
from easybus.clock import SystemClock
from easybus.engines.contract import Ack, Binding, Claim, Claimed, DeclareQueue, DeclareTopic, Publication
from easybus.engines.postgresql import create
from easybus.engines.postgresql.engine import PostgresqlEngine

from .conftest import Opener

CHILD = Path(__file__).with_name("child.py")


async def child(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


async def test_twenty_that_open_at_once_make_one_schema(url: str, postgresql_server: PostgresqlServer) -> None:
    engines = [create(url, SystemClock()) for _ in range(20)]
    await asyncio.gather(*(engine.open() for engine in engines))
    identities = {engine.outbox.identity()[1] for engine in engines}
    await asyncio.gather(*(engine.close() for engine in engines))
    assert len(identities) == 1
    schema = url.rpartition("=")[2]
    made = await asyncio.to_thread(
        postgresql_server.psql, f"SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'"
    )
    assert made == "10"


async def test_tables_of_a_newer_easybus_are_refused(
    engine: PostgresqlEngine, url: str, postgresql_server: PostgresqlServer
) -> None:
    schema = url.rpartition("=")[2]
    await asyncio.to_thread(postgresql_server.psql, f"UPDATE {schema}.meta SET value = '99' WHERE name = 'version'")
    with pytest.raises(ConfigurationError, match="newer easybus"):
        await create(url, SystemClock()).open()


async def test_a_role_that_may_not_create_can_use_what_is_there(
    engine: PostgresqlEngine, url: str, postgresql_server: PostgresqlServer, opened: Opener
) -> None:
    schema = url.rpartition("=")[2]
    grants = (
        f"CREATE ROLE {schema} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA {schema} TO {schema}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {schema}; "
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {schema}"
    )
    await asyncio.to_thread(postgresql_server.psql, grants)
    await engine.driver.declare([DeclareQueue("jobs")])
    other = await opened(url.replace("postgres:canary-7f3a@", f"{schema}:x@"))
    assert await other.driver.publish([Publication(False, "jobs", b"1")]) == [1]
    assert [one.body for one in await other.driver.fetch("jobs", 1, 0.0, 30.0)] == [b"1"]
    assert other.outbox.identity() == engine.outbox.identity()


async def test_schemas_and_prefixes_keep_buses_apart(url: str, opened: Opener) -> None:
    plain, prefixed = await opened(), await opened(f"{url}&prefix=b_")
    await plain.driver.declare([DeclareQueue("jobs")])
    with pytest.raises(NotDeclared):
        await prefixed.driver.stats("jobs")
    assert plain.outbox.identity()[1] != prefixed.outbox.identity()[1]


async def test_a_publish_wakes_a_fetch_of_another_process_before_it_would_look_for_itself(opened: Opener) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareQueue("jobs")])
    took: list[float] = []
    for number in range(5):
        fetch = asyncio.create_task(other.driver.fetch("jobs", 1, 5.0, 30.0))
        await asyncio.sleep(0.15)
        began = time.monotonic()
        await one.driver.publish([Publication(False, "jobs", b"%d" % number)])
        assert [delivery.body for delivery in await fetch] == [b"%d" % number]
        took.append(time.monotonic() - began)
    assert sorted(took)[2] < 0.3


async def test_a_queue_is_notified_at_most_once_in_five_milliseconds(engine: PostgresqlEngine, url: str) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    heard: list[str] = []
    listener = await asyncpg.connect(url.partition("?")[0])
    try:
        channel = engine._session.names.channel
        await listener.add_listener(channel, lambda *given: heard.append(given[3]))
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            await engine.driver.publish([Publication(False, "jobs", b"x")])
        took = time.monotonic() - began
        await asyncio.sleep(0.2)
        await listener.remove_listener(channel, lambda *_: None)
    finally:
        await listener.close()
    assert 2 <= len(heard) <= took / 0.005 + 2


async def test_what_is_published_last_before_a_close_is_notified_too(opened: Opener, url: str) -> None:
    one, heard = await opened(), asyncio.Queue[str]()
    await one.driver.declare([DeclareQueue("jobs")])
    listener = await asyncpg.connect(url.partition("?")[0])
    try:
        await listener.add_listener(one._session.names.channel, lambda *given: heard.put_nowait(given[3]))
        await one.driver.publish([Publication(False, "jobs", b"first")])
        first = await asyncio.wait_for(heard.get(), 10)
        await one.driver.publish([Publication(False, "jobs", b"last")])
        await one.close()
        assert await asyncio.wait_for(heard.get(), 10) == first
    finally:
        await listener.close()


async def test_a_binding_is_seen_by_another_processes_next_publish(engine: PostgresqlEngine, url: str) -> None:
    await engine.driver.declare([DeclareTopic("orders"), DeclareQueue("first"), Binding("orders", "first")])
    publisher = await child(url, "publish-on-demand", "orders")
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    for declared, reached in (([], b"1"), ([DeclareQueue("second"), Binding("orders", "second")], b"2")):
        await engine.driver.declare(declared)
        publisher.stdin.write(b"go\n")
        assert (await asyncio.wait_for(publisher.stdout.readline(), 10)).strip() == reached
    await engine.driver.drop([DeclareQueue("first")])
    publisher.stdin.write(b"go\n")
    assert (await asyncio.wait_for(publisher.stdout.readline(), 10)).strip() == b"1"
    publisher.stdin.close()
    assert await publisher.wait() == 0


async def test_what_a_killed_consumer_held_comes_again_within_its_lease_and_a_second(
    engine: PostgresqlEngine, url: str
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", b"held")])
    process = await child(url, "fetch-and-die", "jobs")
    assert await process.wait() == -signal.SIGKILL
    died = time.monotonic()
    (again,) = await engine.driver.fetch("jobs", 1, 5.0, 30.0)
    assert time.monotonic() - died <= 2.0
    assert (again.body, again.attempt) == (b"held", 2)


async def test_a_fetch_goes_on_where_its_queue_is_dropped_and_declared_again_elsewhere(opened: Opener) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareQueue("jobs")])
    assert await other.driver.fetch("jobs", 1, 0.0, 30.0) == []
    await one.driver.drop([DeclareQueue("jobs")])
    with pytest.raises(NotDeclared):
        await other.driver.fetch("jobs", 1, 5.0, 30.0)
    await one.driver.declare([DeclareQueue("jobs")])
    await one.driver.publish([Publication(False, "jobs", b"new")])
    (found,) = await other.driver.fetch("jobs", 1, 5.0, 30.0)
    assert await other.driver.settle("jobs", [Ack(found)])


async def test_a_renewal_does_not_fail_the_completion_of_a_repeatable_read_transaction(
    engine: PostgresqlEngine, url: str
) -> None:
    (claimed,) = await engine.idempotency.claim([Claim("jobs", "1", b"d", 0.3)])
    assert isinstance(claimed, Claimed)
    connection: Any = await asyncpg.connect(url.partition("?")[0])
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("SELECT 1")
            assert await engine.idempotency.renew([claimed.token], 60.0) == [True]
            statement, given = engine.idempotency.completion(claimed.token, 60.0)
            assert await connection.execute(statement, *given) == "UPDATE 1"
    finally:
        await connection.close()
    assert await engine.idempotency.lookup("jobs", "1") == "done"


async def test_a_fetch_that_found_an_unvacuumed_queue_is_still_quick_under_a_long_reader(
    engine: PostgresqlEngine, url: str
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    reader: Any = await asyncpg.connect(url.partition("?")[0])
    try:
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("SELECT count(*) FROM pg_class")  # its snapshot keeps every dead row
            for _ in range(20):
                await engine.driver.publish([Publication(False, "jobs", b"x" * 200) for _ in range(500)])
                batch = await engine.driver.fetch("jobs", 500, 1.0, 30.0)
                await engine.driver.settle("jobs", [Ack(one) for one in batch])
            await engine.driver.publish([Publication(False, "jobs", b"last")])
            began = time.monotonic()
            assert [one.body for one in await engine.driver.fetch("jobs", 1, 1.0, 30.0)] == [b"last"]
            assert time.monotonic() - began < 0.5
    finally:
        await reader.close()


async def test_one_claim_given_twice_in_a_batch_has_one_owner_and_queues_are_told_apart(
    engine: PostgresqlEngine,
) -> None:
    claim = Claim("jobs", "1", b"d", 60.0)
    results = await engine.idempotency.claim(
        [claim, claim, Claim("mail", "1", b"d", 60.0), Claim("jobs", "1", b"d", 5.0)]
    )
    assert [isinstance(result, Claimed) for result in results] == [True, False, True, False]


async def test_two_services_on_one_database_each_handle_what_is_theirs_and_relay_only_their_own(url: str) -> None:
    got: list[tuple[str, int]] = []

    def service(name: str) -> tuple[Bus, Any]:
        bus = Bus(url, service=name)
        orders = bus.topic("orders", int)

        @orders.handler(f"{name}.orders")
        async def handle(number: int) -> None:
            got.append((name, number))

        return bus, orders

    (shop, orders), (mail, _) = service("shop"), service("mail")
    connection: Any = await asyncpg.connect(url.partition("?")[0])
    async with shop.handling(), mail.handling():
        await orders.send(1)
        async with connection.transaction():
            await orders.send(2, within=connection)
        async with connection.transaction():
            for statement, given in mail.outboxes[0].statements("neither", [Publication(True, "orders", b"3")]):
                await connection.execute(statement, *given)
        deadline = time.monotonic() + 10.0
        while len(got) < 4 and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert len(await mail.outboxes[0].find("neither")) == 1
    await connection.close()
    assert sorted(got) == [("mail", 1), ("mail", 2), ("shop", 1), ("shop", 2)]


async def test_a_relays_claim_does_not_slow_down_with_the_backlog(engine: PostgresqlEngine, url: str) -> None:
    async def fill(transactions: int) -> None:
        for _ in range(transactions):
            async with connection.transaction():
                batch = [Publication(False, "jobs", b"x") for _ in range(50)]
                for statement, given in engine.outbox.statements("shop", batch):
                    await connection.execute(statement, *given)

    async def claimed() -> float:
        began = time.monotonic()
        assert len(await engine.outbox.claim("shop", 100, 60.0)) == 100
        return time.monotonic() - began

    connection: Any = await asyncpg.connect(url.partition("?")[0])
    try:
        await fill(20)
        few = min([await claimed() for _ in range(5)])
        await fill(200)
        many = min([await claimed() for _ in range(5)])
        assert many < 10 * few + 0.02
    finally:
        await connection.close()

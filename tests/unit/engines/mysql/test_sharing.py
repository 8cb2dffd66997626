"""Many on one database: opening at once, hearing of each other, and keeping apart."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.servers.mariadb import PASSWORD, USER, MariadbServer

from easybus import ConfigurationError, NotDeclared, TooLarge, Unavailable
from easybus.clock import SystemClock
from easybus.engines.contract import (
    Ack,
    Binding,
    Claim,
    Claimed,
    DeclareQueue,
    DeclareTopic,
    Delivery,
    Finish,
    Move,
    Publication,
    Settled,
    Taken,
)
from easybus.engines.mysql import create
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.names import TABLES

from .conftest import Client, Opener

CHILD = Path(__file__).with_name("child.py")


async def child(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


async def test_twenty_that_open_at_once_make_the_tables_once(url: str, mariadb_server: MariadbServer) -> None:
    engines = [create(url, SystemClock()) for _ in range(20)]
    await asyncio.gather(*(engine.open() for engine in engines))
    identities = {engine.outbox.identity()[1] for engine in engines}
    await asyncio.gather(*(engine.close() for engine in engines))
    assert len(identities) == 1
    prefix = url.rpartition("=")[2]
    made = await asyncio.to_thread(
        mariadb_server.sql, f"SELECT count(*) FROM information_schema.tables WHERE table_name LIKE '{prefix}%'"
    )
    assert made == str(len(TABLES))


@pytest.mark.kills
async def test_twenty_processes_that_open_at_once_all_do(url: str) -> None:
    processes = [await child(url, "publish-on-demand", "nothing") for _ in range(20)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [await asyncio.wait_for(process.wait(), 50) for process in processes] == [0] * 20


async def test_tables_of_a_newer_easybus_are_refused(engine: MysqlEngine, url: str, client: Client) -> None:
    prefix = url.rpartition("=")[2]
    await client.run(f"UPDATE {prefix}meta SET value = '99' WHERE name = 'version'")
    with pytest.raises(ConfigurationError, match="newer easybus"):
        await create(url, SystemClock()).open()


async def test_a_user_who_may_not_create_can_use_what_is_there(
    engine: MysqlEngine, url: str, mariadb_server: MariadbServer, opened: Opener
) -> None:
    prefix = url.rpartition("=")[2]
    grants = f"CREATE USER {prefix}@'%' IDENTIFIED BY 'x'; " + "".join(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON test.`{prefix}{name}` TO {prefix}@'%'; " for name in TABLES
    )
    await asyncio.to_thread(mariadb_server.sql, grants)
    await engine.driver.declare([DeclareQueue("jobs")])
    other = await opened(url.replace(f"{USER}:{PASSWORD}@", f"{prefix}:x@"))
    assert await other.driver.publish([Publication(False, "jobs", b"1")]) == [1]
    assert [one.body for one in await other.driver.fetch("jobs", 1, 0.0, 30.0)] == [b"1"]
    assert other.outbox.identity() == engine.outbox.identity()


async def test_prefixes_keep_buses_apart(mariadb_server: MariadbServer, engine: MysqlEngine, opened: Opener) -> None:
    other = await opened(mariadb_server.prefix())
    await engine.driver.declare([DeclareQueue("jobs")])
    with pytest.raises(NotDeclared):
        await other.driver.stats("jobs")
    assert engine.outbox.identity()[1] != other.outbox.identity()[1]


async def test_a_publish_of_another_process_is_found_within_half_a_second_and_of_this_one_at_once(
    opened: Opener,
) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareQueue("jobs")])
    for publisher, longest in ((other, 1.0), (one, 0.2)):
        fetch = asyncio.create_task(one.driver.fetch("jobs", 1, 5.0, 30.0))
        await asyncio.sleep(0.7)
        began = time.monotonic()
        await publisher.driver.publish([Publication(False, "jobs", b"x")])
        assert [delivery.body for delivery in await fetch] == [b"x"]
        assert time.monotonic() - began < longest


async def test_an_idle_consumer_looks_less_and_less_often(engine: MysqlEngine, client: Client) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])

    async def asked() -> int:
        return int((await client.run("SHOW GLOBAL STATUS LIKE 'Com_select'"))[0][1])

    before = await asked()
    assert await engine.driver.fetch("jobs", 1, 2.0, 30.0) == []
    assert await asked() - before < 40


async def test_a_deadlock_is_resolved_by_doing_it_again(engine: MysqlEngine, url: str, client: Client) -> None:
    keys = engine.idempotency
    first, second = await keys.claim([Claim("jobs", name, b"d", 60.0) for name in "12"])
    assert isinstance(first, Claimed)
    assert isinstance(second, Claimed)
    table = f"{url.rpartition('=')[2]}key"
    low, high = first.token.partition("-")[0], second.token.partition("-")[0]
    await client.run("BEGIN")
    await client.run(f"UPDATE {table} SET digest = 'x' WHERE id = {high}")
    for number in range(50):  # the heavier of the two is spared
        await client.run(f"INSERT INTO {table} (place, digest, secret, until_at) VALUES ('x{number}', '', '', 0)")
    completing = asyncio.create_task(keys.complete([(first.token, 60.0), (second.token, 60.0)]))
    while not await client.run("SELECT 1 FROM information_schema.innodb_lock_waits"):
        await asyncio.sleep(0.15)  # the server makes this view anew when nobody has looked for 100 ms
    deadlocks = "SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'"
    before = await client.run(deadlocks)
    await client.run(f"UPDATE {table} SET digest = 'x' WHERE id = {low}")
    await client.run("COMMIT")
    assert await completing == [True, True]
    assert await client.run(deadlocks) != before


async def test_a_lock_that_another_holds_for_long_is_unavailable_within_the_timeout(
    url: str, opened: Opener, client: Client
) -> None:
    engine = await opened(f"{url}&timeout=2")
    (held,) = await engine.idempotency.claim([Claim("jobs", "1", b"d", 60.0)])
    assert isinstance(held, Claimed)
    table = f"{url.rpartition('=')[2]}key"
    await client.run("BEGIN")
    await client.run(f"UPDATE {table} SET digest = 'x'")
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await engine.idempotency.complete([(held.token, 60.0)])
    assert time.monotonic() - began < 4.0
    await client.run("ROLLBACK")
    assert await engine.idempotency.complete([(held.token, 60.0)]) == [True]


async def test_finishing_a_batch_does_not_wait_for_its_neighbours(url: str, opened: Opener, client: Client) -> None:
    driver = (await opened(f"{url}&timeout=2")).driver
    await driver.declare([DeclareQueue("jobs")])
    await driver.publish([Publication(False, "jobs", b"%02d" % number) for number in range(30)])

    def claim(delivery: Delivery) -> tuple[Claim, None]:
        return Claim("jobs", delivery.body.decode(), b"d", 30.0), None

    def finishes(taken: list[Taken]) -> list[Finish]:
        return [Finish(one.delivery, one.claim.token, 60.0) for one in taken if isinstance(one.claim, Claimed)]

    batch, others = [finishes(await driver.take("jobs", limit, 1.0, 30.0, claim)) for limit in (20, 10)]
    prefix = url.rpartition("=")[2]
    await client.run("BEGIN")
    for table, number in (("key", others[0].token.partition("-")[0]), ("message", others[0].delivery.receipt[0])):
        assert len(await client.run(f"SELECT id FROM {prefix}{table} WHERE id >= {number} FOR UPDATE")) == 10
    assert await driver.finish("jobs", batch) == [True] * 20
    await client.run("ROLLBACK")
    assert await driver.finish("jobs", [batch[0], *others]) == [False] + [True] * 10
    assert (await driver.stats("jobs")).in_flight == 0


async def test_a_locked_message_holds_up_no_other(engine: MysqlEngine, url: str, client: Client) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", b"%d" % number) for number in range(3)])
    await client.run("BEGIN")
    await client.run(f"SELECT * FROM {url.rpartition('=')[2]}message ORDER BY id LIMIT 1 FOR UPDATE")
    assert [one.body for one in await engine.driver.fetch("jobs", 9, 1.0, 30.0)] == [b"1", b"2"]
    await client.run("ROLLBACK")
    assert [one.body for one in await engine.driver.fetch("jobs", 9, 1.0, 30.0)] == [b"0"]


async def test_a_body_over_half_of_what_the_server_takes_is_too_large_and_one_below_arrives(
    engine: MysqlEngine,
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    largest = engine.driver.caps.max_body
    assert largest < 8 << 20  # the server takes 16 MiB at once
    escaped = b"'" * largest
    refused, kept = await engine.driver.publish(
        [Publication(False, "jobs", escaped + b"'"), Publication(False, "jobs", escaped)]
    )
    assert isinstance(refused, TooLarge)
    assert kept == 1
    (found,) = await engine.driver.fetch("jobs", 1, 1.0, 30.0)
    assert found.body == escaped
    assert await engine.driver.settle("jobs", [Move(found, escaped, 0.0)]) == [Settled.DONE]


async def test_a_binding_is_seen_by_another_processes_next_publish(engine: MysqlEngine, url: str) -> None:
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
    engine: MysqlEngine, url: str
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


async def test_a_renewal_does_not_wait_for_the_handlers_transaction(engine: MysqlEngine, client: Client) -> None:
    (claimed,) = await engine.idempotency.claim([Claim("jobs", "1", b"d", 0.3)])
    assert isinstance(claimed, Claimed)
    statement, given = engine.idempotency.completion(claimed.token, 60.0)
    await client.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await client.run("BEGIN")
    await client.run(statement, *given)
    async with asyncio.timeout(1.0):
        assert await engine.idempotency.renew([claimed.token], 60.0) == [True]
    await client.run("COMMIT")
    assert await engine.idempotency.lookup("jobs", "1") == "done"


async def test_one_claim_given_twice_in_a_batch_has_one_owner_and_queues_are_told_apart(
    engine: MysqlEngine,
) -> None:
    claim = Claim("jobs", "1", b"d", 60.0)
    results = await engine.idempotency.claim(
        [claim, claim, Claim("mail", "1", b"d", 60.0), Claim("jobs", "1", b"d", 5.0)]
    )
    assert [isinstance(result, Claimed) for result in results] == [True, False, True, False]


async def test_a_relays_claim_does_not_slow_down_with_the_backlog(engine: MysqlEngine, client: Client) -> None:
    async def fill(transactions: int) -> None:
        for _ in range(transactions):
            await client.run("BEGIN")
            for statement, given in engine.outbox.statements("shop", [Publication(False, "jobs", b"x")] * 50):
                await client.run(statement, *given)
            await client.run("COMMIT")

    async def claimed() -> float:
        began = time.monotonic()
        assert len(await engine.outbox.claim("shop", 100, 60.0)) == 100
        return time.monotonic() - began

    await fill(20)
    few = min([await claimed() for _ in range(5)])
    await fill(200)
    many = min([await claimed() for _ in range(5)])
    assert many < 10 * few + 0.02


async def test_what_one_service_has_claimed_of_a_transaction_does_not_hold_up_another(
    engine: MysqlEngine, client: Client
) -> None:
    await client.run("BEGIN")
    for service in ("shop", "mail"):
        for statement, given in engine.outbox.statements(service, [Publication(False, "jobs", b"x")]):
            await client.run(statement, *given)
    await client.run("COMMIT")
    assert len(await engine.outbox.claim("shop", 9, 60.0)) == 1
    assert len(await engine.outbox.claim("mail", 9, 60.0)) == 1


async def test_a_change_of_bindings_while_another_publishes_loses_nothing(opened: Opener) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareTopic("orders"), DeclareQueue("all"), Binding("orders", "all")])

    async def change() -> None:
        for number in range(30):
            queue = f"queue-{number}"
            await one.driver.declare([DeclareQueue(queue), Binding("orders", queue, "never")])
            await one.driver.drop([DeclareQueue(queue)])

    changing = asyncio.create_task(change())
    sent = 0
    while not changing.done():
        assert await other.driver.publish([Publication(True, "orders", b"x", "a")]) == [1]
        sent += 1
    await changing
    assert (await one.driver.stats("all")).ready == sent

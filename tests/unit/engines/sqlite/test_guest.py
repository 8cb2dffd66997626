"""Callers' transactions on the bus's own file."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from easybus.engines.contract import Claim, Claimed, DeclareQueue, Publication
from easybus.engines.sqlite import writer as writer_module
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.errors import ConfigurationError
from easybus.transactions import check, find


def kind_of(library: str) -> type[Any]:
    return __import__(library).Connection


async def count(engine: SqliteEngine) -> int:
    return await engine.writer().read(lambda connection: connection.rows("SELECT count(*) FROM orders")[0][0])


@pytest.fixture
async def ready(engine: SqliteEngine) -> SqliteEngine:
    await engine.driver.declare([DeclareQueue("q")])
    await engine.writer().call(lambda connection: connection.rows("CREATE TABLE orders (id)"))
    return engine


async def test_leaving_commits_and_an_error_rolls_back(ready: SqliteEngine, library: str) -> None:
    async with ready.transaction(kind_of(library)) as connection:
        assert isinstance(connection, kind_of(library))
        connection.execute("INSERT INTO orders VALUES (1)")
        assert await count(ready) == 0  # others read what is committed, meanwhile
    assert await count(ready) == 1

    async def fail() -> None:
        async with ready.transaction(kind_of(library)) as connection:
            connection.execute("INSERT INTO orders VALUES (2)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(ready) == 1


async def test_done_rides_in_the_transaction_and_is_refused_after_a_takeover(ready: SqliteEngine, library: str) -> None:
    (late,) = await ready.idempotency.claim([Claim("q", "a", b"d", 0.0)])
    (held,) = await ready.idempotency.claim([Claim("q", "a", b"d", 30.0)])
    assert isinstance(late, Claimed)
    assert isinstance(held, Claimed)
    async with ready.transaction(kind_of(library)) as connection:
        tx = find(connection)
        assert tx.execute(*ready.idempotency.completion(late.token, 60)) == 0
        assert tx.execute(*ready.idempotency.completion(held.token, 60)) == 1
    assert await ready.idempotency.lookup("q", "a") == "done"


async def test_it_works_from_a_worker_thread(ready: SqliteEngine, library: str) -> None:
    async with ready.transaction(kind_of(library)) as connection:
        await asyncio.to_thread(connection.execute, "INSERT INTO orders VALUES (1)")
    assert await count(ready) == 1


async def test_one_at_a_time_in_the_order_of_asking_and_writes_wait_their_turn(
    ready: SqliteEngine, library: str
) -> None:
    order: list[object] = []

    async def transact(number: int) -> None:
        async with ready.transaction(kind_of(library)) as connection:
            order.append(number)
            await asyncio.sleep(0.01)
            connection.execute("INSERT INTO orders VALUES (?)", (number,))
            order.append(number)

    async def publish() -> None:
        await ready.driver.publish([Publication(False, "q", b"")])
        order.append("published")

    tasks = [asyncio.create_task(transact(1)), asyncio.create_task(transact(2)), asyncio.create_task(publish())]
    await asyncio.gather(*tasks)
    assert order == [1, 1, 2, 2, "published"]


async def test_a_plain_publish_inside_raises_and_names_within(ready: SqliteEngine, library: str) -> None:
    async with ready.transaction(kind_of(library)):
        assert ready.inside_transaction
        with pytest.raises(ConfigurationError, match="within="):
            await ready.driver.publish([Publication(False, "q", b"")])
    assert not ready.inside_transaction
    assert await ready.driver.publish([Publication(False, "q", b"")]) == [1]


async def test_a_commit_by_the_handler_itself_is_an_error_that_says_so(ready: SqliteEngine, library: str) -> None:
    with pytest.raises(ConfigurationError, match="leave out"):
        async with ready.transaction(kind_of(library)) as connection:
            connection.execute("COMMIT")
    async with ready.transaction(kind_of(library)) as connection:
        connection.execute("INSERT INTO orders VALUES (1)")
    assert await count(ready) == 1


async def test_cancelled_while_waiting_for_its_turn_it_gives_the_turn_back(ready: SqliteEngine, library: str) -> None:
    async def transact() -> None:
        async with ready.transaction(kind_of(library)):
            await asyncio.sleep(0.001)

    for ticks in range(30):
        tasks = [asyncio.create_task(transact()) for _ in range(3)]
        for _ in range(ticks):
            await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()
    assert await asyncio.wait_for(ready.driver.publish([Publication(False, "q", b"")]), 5) == [1]


async def test_the_other_library_is_refused_and_an_unknown_kind_is_none(ready: SqliteEngine, library: str) -> None:
    with pytest.raises(ConfigurationError, match="library="):
        ready.transaction(kind_of("sqlite3" if library == "apsw" else "apsw"))
    assert ready.transaction(dict) is None


async def test_a_transaction_held_for_long_is_logged_once(
    ready: SqliteEngine, library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "_LONG", 0.05)
    async with ready.transaction(kind_of(library)):
        with caplog.at_level(logging.WARNING, "easybus"):
            deadline = time.monotonic() + 10
            while not caplog.records and time.monotonic() < deadline:
                await count(ready)  # the thread looks around its calls, and once a second
            for _ in range(5):
                await count(ready)
    assert len([record for record in caplog.records if "has been open for over" in record.message]) == 1


async def test_a_row_setting_of_one_handler_does_not_reach_the_next(ready: SqliteEngine, library: str) -> None:
    async with ready.transaction(kind_of(library)) as connection:
        if library == "sqlite3":
            connection.row_factory = lambda cursor, row: dict(enumerate(row))
        else:
            connection.row_trace = lambda cursor, row: dict(enumerate(row))
    async with ready.transaction(kind_of(library)) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


async def test_the_outbox_takes_the_guest_as_a_caller(ready: SqliteEngine, library: str) -> None:
    async with ready.transaction(kind_of(library)) as connection:
        tx = find(connection)
        check(tx, ready.outbox)
        for statement, params in ready.outbox.statements("shop", [Publication(False, "q", b"rides")]):
            assert tx.execute(statement, params) == 1
    assert [row.publication.body for row in await ready.outbox.claim("shop", 10, 30)] == [b"rides"]

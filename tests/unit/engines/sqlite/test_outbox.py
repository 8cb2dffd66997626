"""Rows that callers' transactions commit."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from easybus.engines.contract import Publication
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.engines.sqlite.outbox import FREE
from easybus.transactions import check, find

from .conftest import Opener


@pytest.fixture
def caller(engine: SqliteEngine, tmp_path: Path, library: str) -> Iterator[Any]:
    """A connection of the caller's own, in autocommit."""
    path = str(tmp_path / "bus.db")
    connection: Any = apsw.Connection(path) if library == "apsw" else sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout=5000")
    yield connection
    connection.close()


def send(engine: SqliteEngine, connection: Any, *bodies: bytes, service: str = "shop") -> None:
    tx = find(connection)
    check(tx, engine.outbox)
    for statement, params in engine.outbox.statements(service, [Publication(False, "q", body) for body in bodies]):
        tx.execute(statement, params)


async def test_sends_of_one_transaction_share_it_and_those_of_the_next_do_not(
    engine: SqliteEngine, caller: Any
) -> None:
    for at in range(2):
        caller.execute("BEGIN")
        send(engine, caller, b"%d.1" % at, b"%d.2" % at)
        send(engine, caller, b"%d.3" % at)
        send(engine, caller, b"other", service="other")
        send(engine, caller, b"%d.4" % at)
        caller.execute("COMMIT")
    rows = await engine.outbox.find("shop")
    assert [row.publication.body for row in rows] == [b"%d.%d" % (at, n) for at in range(2) for n in range(1, 5)]
    assert len({row.transaction for row in rows}) == 2
    assert len({row.transaction for row in rows[:4]}) == 1
    assert [row.position for row in rows] == sorted({row.position for row in rows})


async def test_rolled_back_rows_never_existed_and_savepoints_count(engine: SqliteEngine, caller: Any) -> None:
    caller.execute("BEGIN")
    send(engine, caller, b"gone")
    caller.execute("ROLLBACK")
    caller.execute("BEGIN")
    send(engine, caller, b"1")
    caller.execute("SAVEPOINT part")
    send(engine, caller, b"gone too")
    caller.execute("ROLLBACK TO part")
    send(engine, caller, b"2")
    caller.execute("COMMIT")
    rows = await engine.outbox.claim("shop", 10, 30)
    assert [row.publication.body for row in rows] == [b"1", b"2"]
    assert len({row.transaction for row in rows}) == 1


async def test_a_claim_takes_whole_transactions_and_two_relays_never_share_one(
    engine: SqliteEngine, caller: Any
) -> None:
    for at in range(3):
        caller.execute("BEGIN")
        send(engine, caller, *(b"%d.%d" % (at, n) for n in range(3)))
        caller.execute("COMMIT")
    first = await engine.outbox.claim("shop", 1, 30)
    second = await engine.outbox.claim("shop", 4, 30)
    assert [row.publication.body for row in first] == [b"0.0", b"0.1", b"0.2"]
    assert [row.publication.body for row in second] == [b"1.0", b"1.1", b"1.2", b"2.0", b"2.1", b"2.2"]
    assert await engine.outbox.claim("shop", 10, 30) == []
    assert await engine.outbox.delete([(first[0].id, first[0].token), (first[1].id, "another")]) == 1
    await engine.outbox.release(first[0].transaction, first[0].token, 0.0, "broken")
    (left, right) = await engine.outbox.claim("shop", 10, 30)
    assert [left.publication.body, right.publication.body] == [b"0.1", b"0.2"]
    assert (left.failures, left.error) == (1, "broken")
    assert await engine.outbox.delete([(left.id, first[0].token)]) == 0, "an old token deletes nothing"


async def test_a_parked_transaction_is_shown_and_not_claimed_until_it_is_unparked(
    engine: SqliteEngine, caller: Any
) -> None:
    caller.execute("BEGIN")
    send(engine, caller, b"1", b"2")
    caller.execute("COMMIT")
    (row, _) = await engine.outbox.claim("shop", 10, 30)
    await engine.outbox.park(row.transaction, row.token, "too large")
    assert await engine.outbox.claim("shop", 10, 30) == []
    assert [row.error for row in await engine.outbox.find(parked=True)] == ["too large"] * 2
    assert await engine.outbox.unpark(row.transaction)
    assert not await engine.outbox.unpark(row.transaction)
    assert len(await engine.outbox.claim("shop", 10, 30)) == 2


async def test_a_caller_s_commit_ends_the_wait(engine: SqliteEngine, caller: Any) -> None:
    caller.execute("BEGIN")
    send(engine, caller, b"1")
    waiting = asyncio.create_task(engine.outbox.wait(20))
    await asyncio.wait([waiting], timeout=0.05)
    before = time.monotonic()
    caller.execute("COMMIT")
    await asyncio.wait_for(waiting, 10)
    assert time.monotonic() - before < 2


async def test_a_deferred_transaction_is_not_refused_for_what_others_commit_meanwhile(
    engine: SqliteEngine, caller: Any
) -> None:
    caller.execute("BEGIN")
    tx = find(caller)
    check(tx, engine.outbox)  # from here on the caller is the writer: what others ask waits
    other = engine.writer().call(lambda connection: connection.run("UPDATE easybus_meta SET value = value"))
    await asyncio.wait([other], timeout=0.1)
    assert not other.done()
    for statement, params in engine.outbox.statements("shop", [Publication(False, "q", b"1")]):
        assert tx.execute(statement, params) == 1
    caller.execute("COMMIT")
    await asyncio.wait_for(other, 5)


async def test_a_long_transactions_rows_are_looked_at_a_few_times_each(engine: SqliteEngine, tmp_path: Path) -> None:
    """By the virtual machine's own steps: a claim, and a send, that cost as much as all rows before them show here."""
    if engine.outbox.library != "apsw":
        pytest.skip("one library counts the steps; the statements are the same")
    caller = apsw.Connection(str(tmp_path / "bus.db"))
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    async def cost(rows: int) -> tuple[int, int]:
        nonlocal steps
        caller.execute("BEGIN IMMEDIATE")
        send(engine, caller, *[b"body"] * rows)
        [(statement, params)] = engine.outbox.statements("shop", [Publication(False, "q", b"last")])
        caller.set_progress_handler(count, 10)
        steps = 0
        caller.execute(statement, params)
        sending = steps
        caller.execute("COMMIT")
        steps = 0
        free = caller.execute(FREE, ("shop", 1 << 60, 500, "shop", 1 << 60)).fetchall()
        assert len(free) == 1
        caller.set_progress_handler(None)
        claiming = steps
        claimed = await engine.outbox.claim("shop", 500, 30)
        assert len(claimed) == rows + 1
        await engine.outbox.delete([(row.id, row.token) for row in claimed])
        return sending, claiming

    few, many = await cost(500), await cost(4000)
    caller.close()
    assert many[0] <= few[0] + 5, "a send's cost grows with the rows of its transaction"
    assert many[1] < 10 * few[1], "a claim's cost grows with the square of a transaction's rows"
    assert few[1] < 500 * 10


async def test_a_copy_of_the_file_is_another_database(
    engine: SqliteEngine, opened: Opener, tmp_path: Path, library: str
) -> None:
    await engine.writer().call(lambda connection: None)
    path = tmp_path / "copy.db"
    await engine.writer().read(lambda connection: connection.rows("VACUUM INTO ?", (str(path),)))
    copy = await opened(f"sqlite:///{path}?library={library}")
    statement, value = engine.outbox.identity()
    assert await copy.writer().read(lambda connection: connection.rows(statement)[0][0]) != value
    assert await engine.writer().read(lambda connection: connection.rows(statement)[0][0]) == value

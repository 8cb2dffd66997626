"""The server is killed, with all its processes, before the claims of handlers at work have reached its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest
from tests.servers.outages import eventually
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus, EngineError
from easybus.clock import SystemClock
from easybus.engines.contract import Claim, Claimed, DeclareQueue, Finish, Publication
from easybus.engines.postgresql import create
from easybus.engines.postgresql.engine import PostgresqlEngine

MESSAGES = 30


class Lazy(PostgresqlServer):
    """One that writes what is committed lazily to the disk after ten seconds, not after a fifth of one."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", "wal_writer_delay=10s", "-c", "wal_writer_flush_after=1GB"]


@pytest.fixture(scope="module")
def lazy_server() -> Iterator[Lazy]:
    server = Lazy()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def ledger(lazy_server: Lazy) -> Any:
    """Runs a statement on the handlers' own table."""
    await asyncio.to_thread(lazy_server.psql, "DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (amount int)")

    async def rows(statement: str) -> list[str]:
        return (await asyncio.to_thread(lazy_server.psql, statement)).split()

    return rows


@pytest.mark.alone
async def test_every_message_whose_claim_was_lost_is_handled_and_has_one_effect(lazy_server: Lazy, ledger: Any) -> None:
    url = lazy_server.schema()
    schema = url.rpartition("=")[2]
    bus = Bus(url)
    queue = bus.queue("payments", int)
    all_at_work, gone_on = asyncio.Event(), asyncio.Event()
    begun: list[int] = []

    @queue.handler(within=asyncpg.Connection, concurrency=10)
    async def write(amount: int, connection: asyncpg.Connection) -> None:
        begun.append(amount)
        if len(begun) == 10:
            all_at_work.set()
        await gone_on.wait()
        await connection.execute("INSERT INTO ledger VALUES ($1)", amount)

    async with bus:
        await queue.send_many(list(range(MESSAGES)))
    async with bus.handling():
        async with asyncio.timeout(60):
            await all_at_work.wait()
            await asyncio.to_thread(lazy_server.kill)
            gone_on.set()
            await asyncio.to_thread(lazy_server.start)
            while len(await ledger("SELECT DISTINCT amount FROM ledger")) < MESSAGES:
                await asyncio.sleep(0.05)
            while (await eventually(lambda: bus.driver.stats("payments"))).in_flight:
                await asyncio.sleep(0.05)
    effects = sorted(map(int, await ledger("SELECT amount FROM ledger")))
    assert effects == list(range(MESSAGES))
    assert await ledger(f'SELECT DISTINCT state FROM "{schema}".key') == ["2"]
    assert set(begun[10:]) >= set(begun[:10]), "those that were at work were not begun again"
    assert await ledger(f'SELECT count(*) FROM "{schema}".key WHERE again') == ["0"], "their claims were not lost"


async def pay_and_end_with(engine: PostgresqlEngine, statement: str, given: Sequence[Any]) -> None:
    transaction = engine.transaction(asyncpg.Connection)
    assert transaction is not None
    async with transaction as connection:
        await connection.execute("INSERT INTO ledger VALUES (7)")
        await connection.complete(statement, given)


@pytest.mark.alone
@pytest.mark.parametrize("reused", [False, True], ids=["its row is gone", "its row is another's"])
async def test_who_holds_a_claim_that_was_lost_commits_nothing(lazy_server: Lazy, ledger: Any, reused: bool) -> None:
    engine = create(lazy_server.schema(), SystemClock())
    await engine.open()
    try:
        await engine.driver.declare([DeclareQueue("payments")])
        assert await engine.driver.publish([Publication(False, "payments", b"7")]) == [1]
        [delivery] = await engine.driver.fetch("payments", 1, 5.0, 60.0)
        claim = Claim("payments", "7", b"digest", 60.0, lazy=True)
        [claimed] = await engine.idempotency.claim([claim])
        assert isinstance(claimed, Claimed)
        await asyncio.to_thread(lazy_server.restart)
        assert await eventually(lambda: engine.idempotency.lookup("payments", "7")) == "free"
        if reused:
            names, row = engine._session.names, claimed.token.partition("-")[0]
            again = names(f"ALTER TABLE {{key}} ALTER COLUMN id RESTART WITH {row}")
            await asyncio.to_thread(lazy_server.psql, again)
            [other] = await engine.idempotency.claim([Claim("payments", "8", b"digest", 60.0)])
            assert isinstance(other, Claimed)
            assert other.token.partition("-")[0] == row
        for statement, given in (
            engine.driver.finishing(Finish(delivery, claimed.token, 60.0)),
            engine.idempotency.completion(claimed.token, 60.0),
        ):
            with pytest.raises(EngineError, match="not committed"):
                await pay_and_end_with(engine, statement, given)
        assert await ledger("SELECT amount FROM ledger") == []
        assert await engine.idempotency.lookup("payments", "7") == "free"
    finally:
        await engine.close()

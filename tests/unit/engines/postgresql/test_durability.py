"""What is confirmed is on the disk, and what only makes a delivery again is not waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from easybus.engines.contract import (
    Ack,
    Claim,
    Claimed,
    DeadLetter,
    DeclareQueue,
    Delivery,
    Extend,
    Half,
    Move,
    Publication,
)
from easybus.engines.postgresql.engine import PostgresqlEngine

from .conftest import Opener

Flushes = Callable[[Callable[[], Awaitable[Any]]], Awaitable[int]]
TIMES = 10


@pytest.fixture
async def engine(opened: Opener, url: str) -> PostgresqlEngine:
    return await opened(f"{url}&connections=2")


@pytest.fixture
def flushes(engine: PostgresqlEngine) -> Flushes:
    """How often the server flushed its log while `TIMES` calls were made on this engine's one busy connection."""

    async def count() -> int:
        async def work(connection: Any) -> int:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            await connection.execute("SELECT 1")
            new = connection.get_server_version().major >= 18
            return await connection.fetchval(
                "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal' AND backend_type = 'client backend'"
                if new
                else "SELECT wal_sync FROM pg_stat_wal"
            )

        return await engine._session.connections.run(work)

    async def during(call: Callable[[], Awaitable[Any]]) -> int:
        before = await count()
        for _ in range(TIMES):
            await call()
        return await count() - before

    return during


async def test_publishes_claims_completions_letters_halves_and_moves_are_flushed(
    engine: PostgresqlEngine, flushes: Flushes
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    numbers = iter(range(1000))
    tokens: list[str] = []

    async def claim() -> None:
        (claimed,) = await engine.idempotency.claim([Claim("jobs", str(next(numbers)), b"d", 60.0)])
        assert isinstance(claimed, Claimed)
        tokens.append(claimed.token)

    async def move() -> None:
        (one,) = await engine.driver.fetch("jobs", 1, 0.0, 30.0)
        await engine.driver.settle("jobs", [Move(one, b"again", 60.0)])

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "publish": lambda: engine.driver.publish([Publication(False, "jobs", b"1")]),
        "claim": claim,
        "complete": lambda: engine.idempotency.complete([(tokens.pop(), 60.0)]),
        "store a letter": lambda: engine.dead_letters.store(DeadLetter(queue="jobs", body=b"1", reason="r")),
        "store a half": lambda: engine.transactions.store(Half(id="h", service="s", topic="t", body=b"1"), 60.0),
        "move": move,
    }
    assert {name: await flushes(call) >= TIMES for name, call in calls.items()} == dict.fromkeys(calls, True)


async def test_fetches_extensions_renewals_and_acks_are_not_waited_for(
    engine: PostgresqlEngine, flushes: Flushes
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", b"1") for _ in range(TIMES)])
    (claimed,) = await engine.idempotency.claim([Claim("jobs", "1", b"d", 60.0)])
    assert isinstance(claimed, Claimed)
    held: list[Delivery] = []

    async def fetch() -> None:
        held.extend(await engine.driver.fetch("jobs", 1, 0.0, 30.0))

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "fetch": fetch,
        "extend": lambda: engine.driver.settle("jobs", [Extend(held[0], 60.0)]),
        "renew": lambda: engine.idempotency.renew([claimed.token], 60.0),
        "ack": lambda: engine.driver.settle("jobs", [Ack(held.pop())]),
    }
    assert {name: await flushes(call) < TIMES / 2 for name, call in calls.items()} == dict.fromkeys(calls, True)
    assert held == []

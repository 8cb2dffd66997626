"""Claims that fail on the way: nothing stays claimed that nobody handles. And how long they last."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from easybus import EngineError, Unavailable
from easybus.engines.contract import Claim, Claimed, DeclareQueue, Delivery, Publication
from easybus.engines.postgresql import fused, keys
from easybus.engines.postgresql.engine import PostgresqlEngine


def parse(delivery: Delivery) -> tuple[Claim, None]:
    return Claim("jobs", delivery.body.decode(), delivery.body, 60.0), None


async def test_a_take_that_fails_after_its_claim_gives_back_what_it_had_claimed(
    engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = engine.driver
    await driver.declare([DeclareQueue("jobs")])
    await driver.publish([Publication(False, "jobs", name) for name in (b"1", b"2")])

    async def fail(*_: object) -> None:
        raise Unavailable("cut off")

    monkeypatch.setattr(fused, "_LATE", 0.0)
    monkeypatch.setattr(driver, "extend", fail)
    with pytest.raises(Unavailable):
        await driver.take("jobs", 2, 1.0, 60.0, parse)
    monkeypatch.undo()
    found = []
    while len(found) < 2:
        found += await driver.take("jobs", 2, 5.0, 60.0, parse)
    assert all(isinstance(one.claim, Claimed) for one in found)


async def test_a_claim_that_fails_at_its_second_statement_gives_back_what_the_first_had_claimed(
    engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.idempotency.claim([Claim("jobs", "others", b"d", 60.0)])
    monkeypatch.setattr(keys, "_LOOK", "SELECT $1::text, $2::text[], 1 / 0")
    with pytest.raises(EngineError):
        await engine.idempotency.claim([Claim("jobs", name, b"d", 60.0) for name in ("others", "ours")])
    while await engine.idempotency.lookup("jobs", "ours") != "free":
        await asyncio.sleep(0.01)
    assert await engine.idempotency.lookup("jobs", "others") == "claimed"


async def test_a_key_is_held_no_longer_than_its_delivery(
    engine: PostgresqlEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, schema = engine.driver, url.rpartition("=")[2]
    await driver.declare([DeclareQueue("jobs")])
    await driver.publish([Publication(False, "jobs", b"1")])
    own = driver.own

    async def slow(*given: Any) -> list[Delivery]:
        deliveries = await own(*given)
        await asyncio.sleep(0.5)  # less than what makes the delivery's lease begin anew
        return deliveries

    monkeypatch.setattr(driver, "own", slow)
    (taken,) = await driver.take("jobs", 1, 1.0, 60.0, parse)
    assert isinstance(taken.claim, Claimed)
    connection: Any = await asyncpg.connect(url.partition("?")[0])
    try:
        longer = await connection.fetchval(
            f"SELECT extract(epoch FROM key.until_at - message.visible_at)::float8 FROM {schema}.key, {schema}.message"
        )
    finally:
        await connection.close()
    assert longer < 0.4

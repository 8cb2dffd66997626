"""Claims that fail on the way: nothing stays claimed that nobody handles."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asyncmy.errors import OperationalError

from easybus import Unavailable
from easybus.engines.contract import Claim, Claimed, DeclareQueue, Delivery, Publication
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.keys import Wishes


async def fail(*_: object) -> dict[bytes, Claimed]:
    raise Unavailable("cut off")


def parse(delivery: Delivery) -> tuple[Claim, None]:
    return Claim("jobs", delivery.body.decode(), delivery.body, 60.0), None


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

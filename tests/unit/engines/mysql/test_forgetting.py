"""When a key's row is looked at to be forgotten: the index of that time is what a completion would have to rewrite."""

from __future__ import annotations

import pytest

from easybus.engines.contract import Claim, Claimed
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.keys import grain
from easybus.engines.mysql.names import micros

from .conftest import Client

DAY, WEEK = 86_400.0, 7 * 86_400.0


@pytest.mark.parametrize("keep", [DAY, WEEK])
async def test_a_completion_leaves_alone_what_its_claim_has_written_once_the_time_is_known(
    engine: MysqlEngine, client: Client, url: str, keep: float
) -> None:
    keys, table = engine.idempotency, f"{url.rpartition('=')[2]}key"

    async def claimed(id: str) -> tuple[str, int]:
        (result,) = await keys.claim([Claim("jobs", id, b"d", 60.0)])
        assert isinstance(result, Claimed)
        return result.token, await looked_at(result.token)

    async def looked_at(token: str) -> int:
        ((at,),) = await client.run(f"SELECT forget_at FROM {table} WHERE id = {token.partition('-')[0]}")
        return at

    first, guessed = await claimed("1")
    assert await keys.complete([(first, keep)]) == [True]
    assert (await looked_at(first) == guessed) == (keep == DAY), "until one is done, a day is taken for granted"
    second, known = await claimed("2")
    assert await keys.complete([(second, keep)]) == [True]
    assert await looked_at(first) == await looked_at(second) == known


@pytest.mark.parametrize("within", [False, True], ids=["by the bus", "in a caller's transaction"])
async def test_a_key_is_looked_at_when_it_is_over_or_a_little_later(
    engine: MysqlEngine, client: Client, url: str, within: bool
) -> None:
    keys, table = engine.idempotency, f"{url.rpartition('=')[2]}key"
    for keep in (0.0, 0.3, 60.0, DAY, WEEK, 400 * DAY):
        (result,) = await keys.claim([Claim("jobs", str(keep), b"d", 60.0)])
        assert isinstance(result, Claimed)
        if within:
            statement, values = keys.completion(result.token, keep)
            await client.run(statement, *values)
        else:
            assert await keys.complete([(result.token, keep)]) == [True]
        ((late,),) = await client.run(
            f"SELECT forget_at - until_at FROM {table} WHERE id = {result.token.partition('-')[0]}"
        )
        assert 0 < late <= grain(micros(keep)) <= max(1, micros(keep) / 16)

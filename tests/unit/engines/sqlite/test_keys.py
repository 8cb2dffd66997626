"""Keys in batches: the quick way, where all are new or all are held, says what going one by one would say."""

from __future__ import annotations

from easybus.engines.contract import Busy, Claim, Claimed, Conflict, Done


def claim(id: str, digest: bytes = b"d") -> Claim:
    return Claim("q", id, digest, 60.0)


async def test_a_batch_of_known_and_new_keys_is_judged_key_by_key(engine):
    keys = engine.idempotency
    [held, done, freed] = await keys.claim([claim("held"), claim("done"), claim("freed")])
    assert isinstance(held, Claimed)
    assert isinstance(done, Claimed)
    assert isinstance(freed, Claimed)
    assert await keys.complete([(done.token, 60.0)]) == [True]
    assert await keys.release([freed.token]) == [True]
    found = await keys.claim(
        [
            claim("held"),
            claim("new"),
            claim("done"),
            claim("freed"),
            claim("new"),
            claim("new", b"other"),
            claim("held", b"x"),
        ]
    )
    assert isinstance(found[0], Busy)
    assert isinstance(found[1], Claimed)
    assert not found[1].before
    assert found[1].starts == 1
    assert isinstance(found[2], Done)
    assert isinstance(found[3], Claimed)
    assert found[3].before
    assert isinstance(found[4], Busy)
    assert isinstance(found[5], Conflict)
    assert isinstance(found[6], Conflict)
    assert found[3].token != freed.token
    assert await keys.complete([(found[1].token, 60.0), (found[3].token, 60.0), (held.token, 30.0)]) == [True] * 3


async def test_in_a_batch_of_completions_only_holders_complete_and_each_once(engine):
    keys = engine.idempotency
    one, two, three = [found.token for found in await keys.claim([claim("1"), claim("2"), claim("3")])]  # type: ignore[union-attr]
    assert await keys.release([three]) == [True]
    row = one.partition("-")[0]
    wrong = [f"{row}-{7}", "nonsense", "", "1-", "-1", f"{1 << 70}-1", f"1-{1 << 63}"]
    batch = [(one, 60.0), (one, 90.0), (three, 60.0), *((token, 60.0) for token in wrong), (two, 60.0)]
    assert await keys.complete(batch) == [True, False, False, *([False] * len(wrong)), True]
    assert await keys.complete([(one, 60.0), (two, 60.0)]) == [False, False]
    assert [await keys.lookup("q", key) for key in "123"] == ["done", "done", "free"]

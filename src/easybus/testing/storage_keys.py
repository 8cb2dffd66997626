"""Keys: one owner, fresh tokens, nothing done by an old one."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ..engines.contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done, Engine, IdempotencyStorage
from ..errors import NotSupported
from .driver_base import fresh
from .storage_base import SHORT, Caller, PassTime, StorageBase

__all__ = ["IdempotencyContract"]

LONG = 60.0


def _claim(queue: str, id: str = "1", digest: bytes = b"d", lease: float = LONG, replay: str = "") -> Claim:
    return Claim(queue, id, digest, lease, replay)


async def _claimed(keys: IdempotencyStorage, claim: Claim) -> Claimed:
    (result,) = await keys.claim([claim])
    assert isinstance(result, Claimed), result
    return result


async def _result(keys: IdempotencyStorage, claim: Claim) -> ClaimResult:
    (result,) = await keys.claim([claim])
    return result


class IdempotencyContract(StorageBase):
    """`IdempotencyStorage`."""

    async def test_a_hundred_claims_of_one_key_at_once_have_one_owner(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        results = await asyncio.gather(*(_result(keys, _claim(queue)) for _ in range(100)))
        assert sum(isinstance(result, Claimed) for result in results) == 1
        assert sum(isinstance(result, Busy) for result in results) == 99

    async def test_a_first_claim_starts_at_one_and_was_not_claimed_before(self, keys: IdempotencyStorage) -> None:
        claimed = await _claimed(keys, _claim(fresh("queue")))
        assert (claimed.before, claimed.starts) == (False, 1)
        assert claimed.token

    async def test_in_one_batch_the_second_claim_of_a_key_is_busy(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        first, copy, other, odd = await keys.claim(
            [_claim(queue, "a"), _claim(queue, "a"), _claim(queue, "b"), _claim(queue, "a", b"else")]
        )
        assert isinstance(first, Claimed)
        assert isinstance(copy, Busy)
        assert isinstance(other, Claimed)
        assert isinstance(odd, Conflict)
        assert await keys.claim([]) == []

    async def test_another_digest_is_a_conflict_in_every_state(
        self, keys: IdempotencyStorage, pass_time: PassTime
    ) -> None:
        queue = fresh("queue")
        held = await _claimed(keys, _claim(queue, "claimed"))
        released = await _claimed(keys, _claim(queue, "free"))
        completed = await _claimed(keys, _claim(queue, "done"))
        await _claimed(keys, _claim(queue, "expired", lease=SHORT))
        await keys.release([released.token])
        await keys.complete([(completed.token, LONG)])
        await pass_time(SHORT + 0.05)
        for name in ("claimed", "free", "done", "expired"):
            assert isinstance(await _result(keys, _claim(queue, name, b"other")), Conflict), name
        assert await keys.renew([held.token], LONG) == [True]  # and nothing was taken by it

    async def test_a_done_key_is_done_and_its_renewal_and_release_are_refused(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue))
        assert await keys.lookup(queue, "1") == "claimed"
        assert await keys.complete([(claimed.token, LONG)]) == [True]
        assert await keys.lookup(queue, "1") == "done"
        assert await keys.renew([claimed.token], LONG) == [False]
        assert await keys.release([claimed.token]) == [False]
        assert await keys.complete([(claimed.token, LONG)]) == [False]
        assert isinstance(await _result(keys, _claim(queue)), Done)

    async def test_a_released_key_remembers_that_it_was_claimed(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        assert await keys.lookup(queue, "1") == "free"
        first = await _claimed(keys, _claim(queue))
        assert await keys.release([first.token]) == [True]
        assert await keys.lookup(queue, "1") == "free"
        again = await _claimed(keys, _claim(queue))
        assert (again.before, again.starts) == (True, 1)
        assert again.token != first.token

    async def test_past_its_lease_one_taker_gets_the_key_under_a_new_token(
        self, keys: IdempotencyStorage, pass_time: PassTime
    ) -> None:
        queue = fresh("queue")
        old = await _claimed(keys, _claim(queue, lease=SHORT))
        assert isinstance(await _result(keys, _claim(queue)), Busy)
        await pass_time(SHORT + 0.05)
        assert await keys.lookup(queue, "1") == "free"
        results = await asyncio.gather(*(_result(keys, _claim(queue)) for _ in range(20)))
        (taker,) = (result for result in results if isinstance(result, Claimed))
        assert (taker.before, taker.starts) == (True, 2)
        assert taker.token != old.token
        assert sum(isinstance(result, Busy) for result in results) == 19

        assert await keys.complete([(old.token, LONG)]) == [False]
        assert await keys.renew([old.token], LONG) == [False]
        assert await keys.release([old.token]) == [False]
        assert await keys.lookup(queue, "1") == "claimed"
        assert await keys.complete([(taker.token, LONG)]) == [True]

    async def test_a_takeover_never_rewrites_done(self, keys: IdempotencyStorage, pass_time: PassTime) -> None:
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue, lease=SHORT))
        await keys.complete([(claimed.token, LONG)])
        await pass_time(SHORT + 0.05)
        assert isinstance(await _result(keys, _claim(queue)), Done)

    async def test_a_renewed_lease_holds(self, keys: IdempotencyStorage, pass_time: PassTime) -> None:
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue, lease=SHORT))
        assert await keys.renew([claimed.token, "no token"], LONG) == [True, False]
        await pass_time(SHORT + 0.05)
        assert isinstance(await _result(keys, _claim(queue)), Busy)
        assert await keys.complete([(claimed.token, LONG)]) == [True]

    async def test_starts_count_until_an_outcome_and_a_replay_counts_anew(
        self, keys: IdempotencyStorage, pass_time: PassTime
    ) -> None:
        queue = fresh("queue")
        starts = [(await _claimed(keys, _claim(queue, lease=SHORT))).starts]
        for replay in ("", "fence-1", "fence-1", "fence-2"):
            await pass_time(SHORT + 0.05)
            claimed = await _claimed(keys, _claim(queue, lease=SHORT, replay=replay))
            assert claimed.before
            starts.append(claimed.starts)
        assert starts == [1, 2, 1, 2, 1]

    async def test_a_claim_without_a_lease_counts_its_start_and_is_free_for_the_next_at_once(
        self, keys: IdempotencyStorage
    ) -> None:
        queue = fresh("queue")
        starts = [(await _claimed(keys, _claim(queue, lease=0.0))).starts for _ in range(3)]
        assert starts == [1, 2, 3]
        assert await keys.lookup(queue, "1") == "free"

    async def test_done_is_forgotten_when_it_expires(self, keys: IdempotencyStorage, pass_time: PassTime) -> None:
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue))
        await keys.complete([(claimed.token, SHORT)])
        assert isinstance(await _result(keys, _claim(queue)), Done)
        await pass_time(SHORT + 0.05)
        assert await keys.lookup(queue, "1") == "free"
        again = await _claimed(keys, _claim(queue))
        assert (again.before, again.starts) == (False, 1)

    async def test_purging_forgets_what_is_expired_and_nothing_else(
        self, keys: IdempotencyStorage, pass_time: PassTime
    ) -> None:
        queue = fresh("queue")
        for name, keep in (("old-1", SHORT), ("old-2", SHORT), ("old-3", SHORT), ("kept", LONG)):
            await keys.complete([((await _claimed(keys, _claim(queue, name))).token, keep)])
        await _claimed(keys, _claim(queue, "held", lease=SHORT))
        await keys.release([(await _claimed(keys, _claim(queue, "free"))).token])
        await pass_time(SHORT + 0.05)
        purged = [await keys.purge(2)]
        while purged[-1]:
            purged.append(await keys.purge())
        if self.forgets_by_itself:
            assert purged == [0]
        else:
            assert purged[0] == 2
            assert sum(purged) >= 3  # more, where other tests have left some
        assert await keys.lookup(queue, "old-1") == "free"
        assert await keys.lookup(queue, "kept") == "done"
        for name in ("held", "free"):
            assert (await _claimed(keys, _claim(queue, name))).before, name

    async def test_keys_are_exact(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        ids = ["a", "A", "a ", " a", "é", "e\u0301", "1", "01", "", "\U0001f600", "a\x00b", "a\x00", "x" * 1000]
        results = await keys.claim([_claim(queue, name) for name in ids])
        results += await keys.claim([_claim(queue.upper(), "a"), _claim(queue + " ", "a")])
        assert all(isinstance(result, Claimed) for result in results)
        assert len({result.token for result in results if isinstance(result, Claimed)}) == len(ids) + 2

    async def test_tokens_of_many_keys_lead_each_to_its_own(self, keys: IdempotencyStorage) -> None:
        queue = fresh("queue")
        results = await keys.claim([_claim(queue, str(at)) for at in range(500)])
        tokens = [result.token for result in results if isinstance(result, Claimed)]
        assert await keys.complete([(token, LONG) for token in tokens[::2]]) == [True] * 250
        assert await keys.release(tokens) == [False, True] * 250
        states = [await keys.lookup(queue, str(at)) for at in range(4)]
        assert states == ["done", "free", "done", "free"]

    async def test_another_connection_sees_the_same_keys(
        self, keys: IdempotencyStorage, reopen: Callable[[], Awaitable[Engine]] | None
    ) -> None:
        if reopen is None:
            pytest.skip("no second connection is given (fixture `reopen`)")
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue))
        other = await reopen()
        try:
            assert other.idempotency is not None
            assert isinstance(await _result(other.idempotency, _claim(queue)), Busy)
            assert await other.idempotency.complete([(claimed.token, LONG)]) == [True]
        finally:
            await other.close()
        assert isinstance(await _result(keys, _claim(queue)), Done)

    async def test_the_callers_transaction_completes_under_the_token_only(
        self, keys: IdempotencyStorage, caller: Caller | None
    ) -> None:
        queue = fresh("queue")
        claimed = await _claimed(keys, _claim(queue))
        if caller is None:
            with pytest.raises(NotSupported):
                keys.completion(claimed.token, LONG)
            return
        assert await caller.run([keys.completion("no token", LONG)], commit=True) == [0]
        assert await caller.run([keys.completion(claimed.token, LONG)], commit=False) == [1]
        assert await keys.lookup(queue, "1") == "claimed"
        assert await caller.run([keys.completion(claimed.token, LONG)], commit=True) == [1]
        assert isinstance(await _result(keys, _claim(queue)), Done)

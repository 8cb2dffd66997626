"""Halves: one changes only under its last token, and only those who can answer claim it."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
from typing import Any

from ..engines.contract import Half, TransactionStorage
from .driver_base import fresh
from .storage_base import SHORT, PassTime, StorageBase

__all__ = ["TransactionContract"]

LONG = 60.0


def _half(service: str, **fields: Any) -> Half:
    fields.setdefault("id", fresh("half"))
    fields.setdefault("topic", "orders")
    fields.setdefault("body", bytes(range(256)))
    return Half(service=service, **fields)


class TransactionContract(StorageBase):
    """`TransactionStorage`."""

    async def test_a_half_is_kept_whole_and_removed_under_its_token(self, halves: TransactionStorage) -> None:
        half = _half(fresh("service"))
        token, stood = await halves.store(half, LONG)
        assert token
        assert not stood
        kept = await halves.fetch(half.id)
        assert kept is not None
        assert (kept.service, kept.topic, kept.body, kept.token) == (half.service, half.topic, half.body, token)
        assert (kept.checks, kept.parked) == (0, False)
        assert abs(kept.due - kept.created - LONG) < 1.0
        assert not await halves.remove(half.id, "another")
        assert await halves.remove(half.id, token)
        assert not await halves.remove(half.id, token)
        assert await halves.fetch(half.id) is None

    async def test_storing_what_stands_takes_it_over(self, halves: TransactionStorage) -> None:
        half = _half(fresh("service"))
        old, _ = await halves.store(half, 0.0)
        assert await halves.postpone(half.id, old, 0.0, checked=True, parked=False)
        token, stood = await halves.store(_half(half.service, id=half.id, body=b"new"), LONG)
        assert stood
        assert token != old
        kept = await halves.fetch(half.id)
        assert kept is not None
        assert (kept.body, kept.checks, kept.token) == (b"new", 1, token)
        assert not await halves.remove(half.id, old)
        assert not await halves.postpone(half.id, old, 0.0, checked=True, parked=True)
        assert await halves.claim_due([(half.service, half.topic)], 10, LONG) == []  # due in a minute from now
        assert await halves.remove(half.id, token)

    async def test_storing_again_takes_the_half_back_from_a_checker(self, halves: TransactionStorage) -> None:
        half = _half(fresh("service"))
        await halves.store(half, 0.0)
        (claimed,) = await halves.claim_due([(half.service, half.topic)], 10, LONG)
        token, stood = await halves.store(half, LONG)
        assert stood
        assert not await halves.remove(half.id, claimed.token)
        assert await halves.remove(half.id, token)

    async def test_a_half_is_not_claimed_before_it_is_due(
        self, halves: TransactionStorage, pass_time: PassTime
    ) -> None:
        half = _half(fresh("service"))
        await halves.store(half, SHORT)
        scope = [(half.service, half.topic)]
        assert await halves.claim_due(scope, 10, LONG) == []
        await pass_time(SHORT + 0.05)
        (claimed,) = await halves.claim_due(scope, 10, LONG)
        assert (claimed.id, claimed.body) == (half.id, half.body)

    async def test_two_checkers_never_hold_one_half(self, halves: TransactionStorage) -> None:
        service = fresh("service")
        stored = {half.id: (await halves.store(half, 0.0))[0] for half in (_half(service) for _ in range(20))}
        batches = await asyncio.gather(*(halves.claim_due([(service, "orders")], 7, LONG) for _ in range(6)))
        assert all(len(batch) <= 7 for batch in batches)
        claimed = [half for batch in batches for half in batch]
        assert sorted(half.id for half in claimed) == sorted(stored)
        tokens = {half.token for half in claimed}
        assert len(tokens) == 20
        assert not tokens & set(stored.values())

    async def test_past_its_lease_a_claimed_half_is_claimed_by_another(
        self, halves: TransactionStorage, pass_time: PassTime
    ) -> None:
        half = _half(fresh("service"))
        await halves.store(half, 0.0)
        scope = [(half.service, half.topic)]
        (first,) = await halves.claim_due(scope, 10, SHORT)
        assert await halves.claim_due(scope, 10, SHORT) == []
        await pass_time(SHORT + 0.05)
        (second,) = await halves.claim_due(scope, 10, LONG)
        assert not await halves.remove(half.id, first.token)
        assert await halves.remove(half.id, second.token)

    async def test_none_claims_or_sees_what_another_service_or_topic_must_answer(
        self, halves: TransactionStorage
    ) -> None:
        shop, store = fresh("service"), fresh("service")
        ours, theirs, elsewhere = _half(shop), _half(store), _half(shop, topic="refunds")
        for half in (ours, theirs, elsewhere):
            await halves.store(half, 0.0)
        assert await halves.claim_due([], 10, LONG) == []
        assert [half.id for half in await halves.claim_due([(shop, "orders"), (store, "refunds")], 10, LONG)] == [
            ours.id
        ]
        untouched = await halves.fetch(theirs.id)
        assert untouched is not None
        assert untouched.checks == 0
        found = await halves.claim_due([(shop, "refunds"), (store, "orders")], 10, LONG)
        assert {half.id for half in found} == {theirs.id, elsewhere.id}
        assert [half.id for half in await halves.find(store)] == [theirs.id]

    async def test_the_oldest_due_come_first_and_no_more_than_asked_for(
        self, halves: TransactionStorage, pass_time: PassTime
    ) -> None:
        service = fresh("service")
        second, first = _half(service), _half(service)
        await halves.store(second, 0.1)
        await halves.store(first, 0.05)
        await pass_time(0.15)
        found = [(await halves.claim_due([(service, "orders")], 1, LONG))[0].id for _ in range(2)]
        assert found == [first.id, second.id]

    async def test_postponing_counts_checks_and_parks_under_the_token(
        self, halves: TransactionStorage, pass_time: PassTime
    ) -> None:
        half = _half(fresh("service"))
        await halves.store(half, 0.0)
        scope = [(half.service, half.topic)]
        (claimed,) = await halves.claim_due(scope, 10, LONG)
        assert not await halves.postpone(half.id, "another", 0.0, checked=True, parked=True, error="no")
        assert await halves.postpone(half.id, claimed.token, SHORT, checked=True, parked=False, error="None")
        assert await halves.claim_due(scope, 10, LONG) == []
        await pass_time(SHORT + 0.05)
        (claimed,) = await halves.claim_due(scope, 10, LONG)
        assert (claimed.checks, claimed.parked, claimed.error) == (1, False, "None")
        assert await halves.postpone(half.id, claimed.token, SHORT, checked=False, parked=True, error="down")
        kept = await halves.fetch(half.id)
        assert kept is not None
        assert (kept.checks, kept.parked, kept.error) == (1, True, "down")
        await pass_time(SHORT + 0.05)
        (claimed,) = await halves.claim_due(scope, 10, LONG)  # parked is still asked, when it is due
        assert claimed.parked

    async def test_an_operator_claims_one_half_due_or_not(self, halves: TransactionStorage) -> None:
        half = _half(fresh("service"))
        token, _ = await halves.store(half, LONG)
        claimed = await halves.claim(half.id, LONG)
        assert claimed is not None
        assert claimed.token != token
        assert not await halves.remove(half.id, token)
        assert await halves.remove(half.id, claimed.token)
        assert await halves.claim(half.id, LONG) is None

    async def test_halves_are_found_by_service_oldest_first(self, halves: TransactionStorage) -> None:
        service = fresh("service")
        stored = [_half(service) for _ in range(3)]
        for half in stored:
            await halves.store(half, LONG)
        assert [half.id for half in await halves.find(service)] == [half.id for half in stored]
        assert [half.id for half in await halves.find(service, 2)] == [half.id for half in stored[:2]]
        everywhere = {half.id for half in await halves.find(limit=10_000)}
        assert everywhere >= {half.id for half in stored}

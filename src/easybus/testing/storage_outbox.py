"""The outbox: stored if and only if committed, and claimed by whole transactions."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import time

import pytest

from ..engines.contract import OutboxRow, OutboxStorage, Publication
from .driver_base import fresh
from .storage_base import SHORT, Caller, PassTime, StorageBase

__all__ = ["OutboxContract"]

LONG = 60.0


def _batch(number: int) -> list[Publication]:
    return [
        Publication(to_topic=True, name="é'\"", body=b"%d\x00\xff" % at, route_key="a.b", delay=1.5, dedupe_id="d")
        for at in range(number)
    ]


def _by_transaction(rows: list[OutboxRow]) -> list[list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for row in rows:
        found.setdefault(row.transaction, []).append(row.publication.body)
    return list(found.values())


class OutboxContract(StorageBase):
    """`OutboxStorage`; needs the fixture `caller`."""

    @pytest.fixture
    def user(self, outbox: OutboxStorage, caller: Caller | None) -> Caller:
        if caller is None:
            pytest.skip("no user's connection is given (fixture `caller`)")
        return caller

    async def test_rows_are_there_if_and_only_if_their_transaction_commits(
        self, outbox: OutboxStorage, user: Caller
    ) -> None:
        service, batch = fresh("service"), _batch(3)
        await user.run(outbox.statements(service, batch), commit=False)
        assert await outbox.claim(service, 10, LONG) == []
        await user.run(outbox.statements(service, batch), commit=True)
        rows = await outbox.claim(service, 10, LONG)
        assert [row.publication for row in rows] == batch
        assert len({row.transaction for row in rows}) == 1
        assert len({row.token for row in rows}) == 1
        assert len({row.id for row in rows}) == 3
        assert [row.position for row in rows] == sorted({row.position for row in rows})

    async def test_all_sends_of_one_transaction_are_claimed_together_and_in_order(
        self, outbox: OutboxStorage, user: Caller
    ) -> None:
        service, batch = fresh("service"), _batch(4)
        sends = [outbox.statements(service, batch[:2]), outbox.statements(service, batch[2:])]
        await user.run([statement for send in sends for statement in send], commit=True)
        await user.run(outbox.statements(service, batch[:1]), commit=True)
        rows = await outbox.claim(service, 10, LONG)
        assert _by_transaction(rows) == [[one.body for one in batch], [batch[0].body]]
        positions = [row.position for row in rows if row.transaction == rows[0].transaction]
        assert positions == sorted(set(positions))

    async def test_a_row_written_twice_raises(self, outbox: OutboxStorage, user: Caller) -> None:
        service = fresh("service")
        statements = outbox.statements(service, _batch(1))
        await user.run(statements, commit=True)
        with pytest.raises(Exception):  # noqa: B017, PT011 - the error is that of the user's own library
            await user.run(statements, commit=True)
        assert len(await outbox.find(service)) == 1

    async def test_identity_is_read_on_a_connection_to_this_database(self, outbox: OutboxStorage, user: Caller) -> None:
        statement, value = outbox.identity()
        assert await user.ask(statement) == value

    async def test_two_relays_never_hold_one_transaction(self, outbox: OutboxStorage, user: Caller) -> None:
        service = fresh("service")
        for _ in range(10):
            await user.run(outbox.statements(service, _batch(2)), commit=True)
        batches = await asyncio.gather(*(outbox.claim(service, 6, LONG) for _ in range(5)))
        claimed = [row for batch in batches for row in batch]
        assert len({row.id for row in claimed}) == len(claimed)
        claimed += await outbox.claim(service, 100, LONG)
        assert len(claimed) == 20
        for batch in batches:
            assert all(len(bodies) == 2 for bodies in _by_transaction(batch)), "half a transaction was claimed"

    async def test_none_claims_the_rows_of_another_service(self, outbox: OutboxStorage, user: Caller) -> None:
        service = fresh("service")
        await user.run(outbox.statements(service, _batch(1)), commit=True)
        assert await outbox.claim(fresh("service"), 10, LONG) == []
        assert len(await outbox.claim(service, 10, LONG)) == 1

    async def test_rows_are_deleted_under_their_token_only(
        self, outbox: OutboxStorage, user: Caller, pass_time: PassTime
    ) -> None:
        service = fresh("service")
        await user.run(outbox.statements(service, _batch(2)), commit=True)
        old = await outbox.claim(service, 10, SHORT)
        assert await outbox.claim(service, 10, SHORT) == []
        await pass_time(SHORT + 0.05)
        new = await outbox.claim(service, 10, LONG)
        assert [row.id for row in new] == [row.id for row in old]
        assert await outbox.delete([(row.id, row.token) for row in old]) == 0
        assert await outbox.delete([(new[0].id, new[0].token)]) == 1
        assert [row.id for row in await outbox.find(service)] == [new[1].id]
        assert await outbox.delete([(new[1].id, new[1].token)]) == 1
        assert await outbox.find(service) == []

    async def test_a_released_transaction_is_due_again_after_its_delay(
        self, outbox: OutboxStorage, user: Caller, pass_time: PassTime
    ) -> None:
        service = fresh("service")
        await user.run(outbox.statements(service, _batch(2)), commit=True)
        first, second = await outbox.claim(service, 10, LONG)
        await outbox.delete([(first.id, first.token)])
        await outbox.release(second.transaction, "another", 0.0, "no")
        assert await outbox.claim(service, 10, LONG) == []
        await outbox.release(second.transaction, second.token, SHORT, "broker is down")
        assert await outbox.claim(service, 10, LONG) == []
        await pass_time(SHORT + 0.05)
        (again,) = await outbox.claim(service, 10, LONG)
        assert (again.id, again.failures, again.error) == (second.id, 1, "broker is down")
        assert again.token != second.token

    async def test_a_parked_transaction_is_shown_and_never_claimed_until_unparked(
        self, outbox: OutboxStorage, user: Caller
    ) -> None:
        service = fresh("service")
        await user.run(outbox.statements(service, _batch(2)), commit=True)
        rows = await outbox.claim(service, 10, LONG)
        await outbox.park(rows[0].transaction, "another", "no")
        assert await outbox.find(service, parked=True) == []
        await outbox.park(rows[0].transaction, rows[0].token, "too large")
        assert await outbox.claim(service, 10, LONG) == []
        assert [row.error for row in await outbox.find(service, parked=True)] == ["too large"] * 2
        assert await outbox.unpark(rows[0].transaction)
        assert not await outbox.unpark("none")
        assert [row.id for row in await outbox.claim(service, 10, LONG)] == [row.id for row in rows]

    async def test_waiting_ends_when_rows_are_committed(self, outbox: OutboxStorage, user: Caller) -> None:
        service, began = fresh("service"), time.monotonic()
        waiting = asyncio.create_task(outbox.wait(10.0))
        await asyncio.sleep(0.05)
        await user.run(outbox.statements(service, _batch(1)), commit=True)
        async with asyncio.timeout(5.0):
            await waiting
        assert time.monotonic() - began < 3.0
        async with asyncio.timeout(3.0):
            await outbox.wait(0.05)

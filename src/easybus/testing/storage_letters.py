"""Dead letters: kept whole, replayed once, removed only under the last fence."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from ..engines.contract import DeadLetter, DeadLetterStorage
from ..message import Message
from .driver_base import fresh
from .storage_base import SHORT, PassTime, StorageBase

__all__ = ["DeadLetterContract"]

LONG = 60.0


def _letter(queue: str, id: str = "m-1", payload: bytes = b"p", **fields: Any) -> DeadLetter:
    body = Message(id=id, payload=payload, retried=fields.pop("retried", 0), headers={"h": "v"}).to_bytes()
    fields.setdefault("reason", "8 attempts failed")
    return DeadLetter(queue=queue, message_id=id, body=body, **fields)


async def _marked(letters: DeadLetterStorage, letter: DeadLetter) -> str:
    key = await letters.store(letter)
    assert await letters.mark_for_retry(letter.queue, [key]) == 1
    return key


class DeadLetterContract(StorageBase):
    """`DeadLetterStorage`."""

    async def test_a_letter_is_kept_whole(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        letter = _letter(
            queue,
            payload=bytes(range(256)),
            reason="Ünreadable \U0001f600",
            error_type="ValueError",
            error='it\'s "bad"',
            traceback="line 1\nline 2",
            attempts=8,
            first_failed=1_000.25,
            last_failed=2_000.5,
            history=[{"at": 1_000.25, "what": "failed", "error": "first"}],
        )
        key = await letters.store(letter)
        kept = await letters.get(queue, key)
        assert kept is not None
        for field in ("body", "message_id", "reason", "error_type", "error", "traceback", "attempts"):
            assert getattr(kept, field) == getattr(letter, field), field
        assert (kept.first_failed, kept.last_failed) == (1_000.25, 2_000.5)
        assert kept.history[0] == letter.history[0]
        assert (kept.key, kept.marked) == (key, False)

    async def test_a_retry_of_a_message_has_the_key_of_the_message(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        keys = [
            await letters.store(_letter(queue, retried=3)),
            await letters.store(_letter(queue, retried=8)),
            await letters.store(_letter(queue, payload=b"other payload")),
            await letters.store(_letter(queue, id="m-2")),
        ]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 3
        assert (await letters.count())[queue] == 3

    async def test_letters_without_an_id_are_kept_by_their_bytes(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        keys = [
            await letters.store(DeadLetter(queue=queue, body=body, reason="no message"))
            for body in (b"\xff", b"", b"x")
        ]
        assert keys == [hashlib.sha256(body).hexdigest() for body in (b"\xff", b"", b"x")]
        assert await letters.store(DeadLetter(queue=queue, body=b"x", reason="again")) == keys[2]
        assert (await letters.count())[queue] == 3

    async def test_a_letter_is_found_by_its_message_id_where_that_names_one(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        key = await letters.store(_letter(queue, id="only"))
        await letters.store(_letter(queue, id="two", payload=b"1"))
        await letters.store(_letter(queue, id="two", payload=b"2"))
        found = await letters.get(queue, "only")
        assert found is not None
        assert found.key == key
        assert await letters.get(queue, "two") is None
        assert await letters.get(queue, "none") is None
        assert await letters.get(fresh("queue"), key) is None

    async def test_storing_again_keeps_the_first_failure_and_adds_to_the_history(
        self, letters: DeadLetterStorage
    ) -> None:
        queue = fresh("queue")
        key = await letters.store(_letter(queue, first_failed=100.0, last_failed=200.0, reason="one", attempts=8))
        before = await letters.get(queue, key)
        await letters.store(_letter(queue, first_failed=300.0, last_failed=400.0, reason="two", attempts=9))
        after = await letters.get(queue, key)
        assert before is not None
        assert after is not None
        assert (after.first_failed, after.last_failed, after.reason, after.attempts) == (100.0, 400.0, "two", 9)
        assert len(after.history) > len(before.history)
        assert after.history[: len(before.history)] == before.history
        assert all({"at", "what"} <= event.keys() for event in after.history)

    async def test_only_marked_letters_are_fetched_and_each_by_one(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        marked = {await _marked(letters, _letter(queue, id=f"m-{at}")) for at in range(10)}
        await letters.store(_letter(queue, id="unmarked"))
        await _marked(letters, _letter(fresh("queue")))
        batches = await asyncio.gather(*(letters.fetch(queue, 3, LONG) for _ in range(8)))
        assert all(len(batch) <= 3 for batch in batches)
        got = [letter for batch in batches for letter in batch]
        assert len(got) == 10
        assert {letter.key for letter in got} == marked
        assert len({letter.fence for letter in got}) == 10
        assert await letters.fetch(queue, 10, LONG) == []

    async def test_a_fetched_letter_is_removed_under_its_fence(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        key = await _marked(letters, _letter(queue))
        (fetched,) = await letters.fetch(queue, 1, LONG)
        assert not await letters.remove(queue, key, "another")
        assert await letters.remove(queue, key, fetched.fence)
        assert not await letters.remove(queue, key, fetched.fence)
        assert await letters.get(queue, key) is None

    async def test_past_the_lease_another_fetches_and_the_older_fence_is_void(
        self, letters: DeadLetterStorage, pass_time: PassTime
    ) -> None:
        queue = fresh("queue")
        key = await _marked(letters, _letter(queue))
        (first,) = await letters.fetch(queue, 1, SHORT)
        assert await letters.fetch(queue, 1, LONG) == []
        await pass_time(SHORT + 0.05)
        (second,) = await letters.fetch(queue, 1, LONG)
        assert second.fence != first.fence
        assert not await letters.remove(queue, key, first.fence)
        assert await letters.remove(queue, key, second.fence)

    async def test_a_replay_that_fails_again_before_its_row_is_removed_is_not_lost(
        self, letters: DeadLetterStorage
    ) -> None:
        queue = fresh("queue")
        key = await _marked(letters, _letter(queue))
        (replay,) = await letters.fetch(queue, 1, LONG)
        assert await letters.store(_letter(queue, reason="failed again")) == key
        assert not await letters.remove(queue, key, replay.fence)
        kept = await letters.get(queue, key)
        assert kept is not None
        assert (kept.reason, kept.marked) == ("failed again", False)
        assert await letters.fetch(queue, 1, LONG) == []  # its mark is gone
        await letters.mark_for_retry(queue, [key])
        assert len(await letters.fetch(queue, 1, LONG)) == 1  # and so is the first claim

    async def test_fences_never_come_twice_though_rows_come_and_go(self, letters: DeadLetterStorage) -> None:
        queue, fences = fresh("queue"), set[str]()
        for _ in range(5):
            key = await _marked(letters, _letter(queue))
            (fetched,) = await letters.fetch(queue, 1, LONG)
            assert fetched.fence not in fences
            fences.add(fetched.fence)
            assert await letters.remove(queue, key, fetched.fence)

    async def test_an_edited_letter_keeps_why_it_failed_and_voids_a_replay(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        key = await _marked(letters, _letter(queue, first_failed=100.0, last_failed=200.0, error="bad"))
        (replay,) = await letters.fetch(queue, 1, LONG)
        mended = Message(id="m-2", payload=b"mended").to_bytes()
        new = await letters.edit(queue, key, mended)
        assert new is not None
        assert await letters.get(queue, key) is None or new == key
        kept = await letters.get(queue, new)
        assert kept is not None
        assert (kept.body, kept.message_id, kept.error, kept.first_failed) == (mended, "m-2", "bad", 100.0)
        assert len(kept.history) > len(replay.history)
        assert not await letters.remove(queue, new, replay.fence)
        assert await letters.edit(queue, "none", mended) is None

    async def test_finding_is_filtered_and_oldest_first(self, letters: DeadLetterStorage) -> None:
        queue, other = fresh("queue"), fresh("queue")
        await letters.store(_letter(queue, id="3", first_failed=300.0, last_failed=300.0, reason="a 100% timeout"))
        await letters.store(_letter(queue, id="1", first_failed=100.0, last_failed=100.0, error_type="TimeoutError"))
        await letters.store(_letter(queue, id="2", first_failed=200.0, last_failed=200.0, reason="broken_pipe"))
        await letters.store(_letter(other, id="0", first_failed=50.0, last_failed=50.0))

        async def ids(**filters: Any) -> list[str]:
            return [letter.message_id for letter in await letters.find(queue, **filters)]

        assert await ids() == ["1", "2", "3"]
        assert await ids(limit=2) == ["1", "2"]
        assert await ids(before=200.0) == ["1"]
        assert await ids(reason="Timeout") == ["1"]
        assert await ids(reason="100%") == ["3"]
        assert await ids(reason="n_p") == ["2"]
        assert await ids(reason="0%t") == []
        everywhere = [letter.message_id for letter in await letters.find(limit=1_000) if letter.queue in (queue, other)]
        assert everywhere == ["0", "1", "2", "3"]

    async def test_marking_and_deleting_count_what_was_there(self, letters: DeadLetterStorage) -> None:
        queue = fresh("queue")
        first, second = await letters.store(_letter(queue, id="1")), await letters.store(_letter(queue, id="2"))
        assert await letters.mark_for_retry(queue, [first, "none"]) == 1
        assert await letters.mark_for_retry(fresh("queue"), [first]) == 0
        kept = await letters.get(queue, first)
        assert kept is not None
        assert kept.marked
        assert await letters.delete(queue, [first, "none"]) == 1
        assert await letters.delete(fresh("queue"), [second]) == 0
        assert await letters.fetch(queue, 10, LONG) == []
        assert (await letters.count())[queue] == 1
        assert await letters.delete(queue, [second]) == 1
        assert queue not in await letters.count()

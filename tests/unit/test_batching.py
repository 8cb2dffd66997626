"""The batcher: one flush at a time, everything answered, a bad item alone."""

import asyncio
from collections.abc import Sequence

import pytest

from easybus.batching import Batcher
from easybus.errors import EngineError, Refused, TooLarge, Unavailable


class Wire:
    """Records flushes; holds them while `gate` is closed."""

    def __init__(self, *, limit: int = 500, bad: Sequence[int] = ()) -> None:
        self.flushes: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.bad = set(bad)
        self.error: Exception | None = None
        self.batcher: Batcher[int, int] = Batcher(self.flush, limit=limit)

    async def flush(self, items: list[int]) -> list[int | Exception]:
        self.under_way += 1
        assert self.under_way == 1, "two flushes at once"
        try:
            self.flushes.append(items)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            if self.bad & set(items):
                raise TooLarge("one of these")
            return [item * 10 for item in items]
        finally:
            self.under_way -= 1


async def test_each_item_gets_its_own_result() -> None:
    wire = Wire()
    assert await asyncio.gather(*(wire.batcher.add(item) for item in range(5))) == [0, 10, 20, 30, 40]
    assert wire.flushes == [[0, 1, 2, 3, 4]]


async def test_what_arrives_during_a_flush_goes_together_in_the_next() -> None:
    wire = Wire()
    wire.gate.clear()
    first = wire.batcher.add(0)
    while not wire.flushes:
        await asyncio.sleep(0)
    rest = [wire.batcher.add(item) for item in range(1, 6)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.flushes == [[0]]
    wire.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert wire.flushes == [[0], [1, 2, 3, 4, 5]]


async def test_an_idle_batcher_flushes_at_once() -> None:
    wire = Wire()
    future = wire.batcher.add(1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert future.done()
    assert not wire.batcher.busy


async def test_a_flush_takes_no_more_than_the_limit_in_order() -> None:
    wire = Wire(limit=4)
    await asyncio.gather(*(wire.batcher.add(item) for item in range(10)))
    assert wire.flushes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_refused_batch_is_halved_until_the_bad_item_fails_alone() -> None:
    wire = Wire(bad=[3, 6])
    results = await asyncio.gather(*(wire.batcher.add(item) for item in range(8)), return_exceptions=True)
    assert [result for result in results if not isinstance(result, Exception)] == [0, 10, 20, 40, 50, 70]
    assert isinstance(results[3], TooLarge)
    assert isinstance(results[6], TooLarge)


async def test_an_error_that_may_pass_fails_the_whole_batch_and_is_not_tried_again() -> None:
    wire = Wire()
    wire.error = Unavailable("down")
    results = await asyncio.gather(*(wire.batcher.add(item) for item in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    assert len(wire.flushes) == 1
    wire.error = None
    assert await wire.batcher.add(1) == 10


async def test_a_result_that_is_an_error_fails_its_item_alone() -> None:
    async def flush(items: list[int]) -> list[int | Exception]:
        return [Refused("no") if item == 1 else item for item in items]

    batcher: Batcher[int, int] = Batcher(flush)
    results = await asyncio.gather(*(batcher.add(item) for item in range(3)), return_exceptions=True)
    assert results[0] == 0
    assert isinstance(results[1], Refused)
    assert results[2] == 2


async def test_too_few_results_fail_and_do_not_hang() -> None:
    async def flush(items: list[int]) -> list[int | Exception]:
        return [items[0]]

    batcher: Batcher[int, int] = Batcher(flush)
    async with asyncio.timeout(2):
        results = await asyncio.gather(batcher.add(0), batcher.add(1), return_exceptions=True)
    assert [type(result) for result in results] == [EngineError] * 2


async def test_torn_down_while_halving_nobody_is_left_waiting() -> None:
    reached = asyncio.Event()

    async def flush(items: list[int]) -> list[int | Exception]:
        if len(items) > 1:
            raise TooLarge("one of these")
        reached.set()
        await asyncio.sleep(60)
        return list(items)

    batcher: Batcher[int, int] = Batcher(flush)
    futures = [batcher.add(item) for item in range(4)]
    await reached.wait()
    assert batcher._task is not None
    batcher._task.cancel()
    async with asyncio.timeout(2):
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 4


async def test_a_waiter_that_is_cancelled_does_not_take_its_item_back_nor_harm_others() -> None:
    wire = Wire()
    wire.gate.clear()
    gone, kept = wire.batcher.add(1), wire.batcher.add(2)
    while not wire.flushes:
        await asyncio.sleep(0)
    gone.cancel()
    wire.gate.set()
    assert await kept == 20
    assert wire.flushes == [[1, 2]]


async def test_drained_returns_when_all_is_answered() -> None:
    wire = Wire(limit=2)
    futures = [wire.batcher.add(item) for item in range(7)]
    await wire.batcher.drained()
    assert all(future.done() for future in futures)
    assert not wire.batcher.busy
    await wire.batcher.drained()
    await asyncio.gather(*futures)


async def test_when_the_loop_is_torn_down_nobody_is_left_waiting() -> None:
    wire = Wire(limit=1)
    wire.gate.clear()
    futures = [wire.batcher.add(item) for item in range(3)]
    while not wire.flushes:
        await asyncio.sleep(0)
    assert wire.batcher._task is not None
    wire.batcher._task.cancel()
    async with asyncio.timeout(2):
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    with pytest.raises(asyncio.CancelledError):
        await futures[0]

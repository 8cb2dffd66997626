"""A cancellation that a library swallows is asked for again."""

from __future__ import annotations

import asyncio

from easybus.cancelling import ended


async def test_a_task_whose_library_swallowed_the_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def loop() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await ended(task)
    assert swallowed == 2
    assert task.cancelled()


async def test_tasks_that_have_ended_or_fail_are_waited_for_without_their_errors() -> None:
    async def fails() -> None:
        raise ValueError

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError

    tasks = [asyncio.create_task(work()) for work in (fails, fails_when_cancelled)]
    await asyncio.sleep(0)
    await ended(*tasks)
    assert [type(task.exception()) for task in tasks] == [ValueError, ValueError]
    await ended()

"""The sender's side of a check-back: every point T1 to T8, and every way a block can end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from easybus import points
from easybus.errors import BadDelay, ConfigurationError, Rollback, SendError, TooLarge, Unavailable
from easybus.message import DELAY, Message

TIMEOUT = 60.0


async def killed(world: Any, order: Message, point: str) -> None:
    """Send `order` in a process that dies at `point`."""
    world.die_at(point)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - `Died` is the conftest's
        async with world.checkback.transaction("orders", order):
            pass
    assert type(caught.value).__name__ == "Died"
    points.hook = None


async def ids(world: Any) -> list[str]:
    return [message.id for message in await world.arrived()]


# ------------------------------------------------------------------------------------------------------- the points


async def test_a_block_that_ends_is_published_once_and_leaves_no_half(world: Any, order: Message) -> None:
    async def nothing() -> None: ...

    world.at("", nothing)
    async with world.checkback.transaction("orders", order) as message:
        assert message is order
        assert await world.arrived() == []
    assert await world.arrived() == [order]
    assert await world.half() is None
    assert world.reached == ["half.storing", "half.stored", "work.done", "half.published", "half.removed"]
    assert not world.checkback.busy


async def test_t1_killed_before_the_half_nothing_was_sent(world: Any, order: Message) -> None:
    await killed(world, order, "half.storing")
    assert await world.half() is None
    assert await world.arrived() == []


async def test_t2_reply_of_storing_lost_is_a_send_error_before_the_work_and_the_half_is_discarded(
    world: Any, order: Message
) -> None:
    world.storage.losing("store")
    with pytest.raises(SendError) as caught:
        async with world.checkback.transaction("orders", order):
            pytest.fail("the work began")
    assert caught.value.failed == [order]
    world.truth = False
    await world.advance(TIMEOUT)
    assert await world.checkback.check_due() == 1
    assert await world.half() is None
    assert await world.arrived() == []


async def test_half_not_stored_is_a_send_error_before_the_work(world: Any, order: Message) -> None:
    world.storage.failing("store")
    with pytest.raises(SendError):
        async with world.checkback.transaction("orders", order):
            pytest.fail("the work began")
    assert await world.half() is None


async def test_t3_killed_before_the_work_is_asked_about_and_discarded(world: Any, order: Message) -> None:
    await killed(world, order, "half.stored")
    world.truth = False
    assert await world.checkback.check_due() == 0
    await world.advance(TIMEOUT)
    assert await world.checkback.check_due() == 1
    assert world.asked == [order]
    assert await world.half() is None
    assert await world.arrived() == []


@pytest.mark.parametrize(("landed", "expected"), [(True, ["m-1"]), (False, [])])
async def test_t4_killed_in_the_work_is_asked_about_and_goes_as_the_work_went(
    world: Any, order: Message, landed: bool, expected: list[str]
) -> None:
    block = world.checkback.transaction("orders", order)
    await block.__aenter__()
    block._extender.cancel()  # the process is dead from here
    world.truth = landed
    await world.advance(TIMEOUT)
    await world.checkback.check_due()
    assert await ids(world) == expected
    assert await world.half() is None


async def test_t5_a_commit_whose_reply_is_lost_is_asked_about_and_published(world: Any, order: Message) -> None:
    with pytest.raises(ConnectionError):
        async with world.checkback.transaction("orders", order):
            raise ConnectionError("the reply of COMMIT is lost")
    assert await world.arrived() == []
    world.truth = True
    await world.advance(TIMEOUT)
    await world.checkback.check_due()
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_t6_killed_when_the_work_is_done_is_asked_about_and_published(world: Any, order: Message) -> None:
    await killed(world, order, "work.done")
    assert await world.arrived() == []
    world.truth = True
    await world.advance(TIMEOUT)
    await world.checkback.check_due()
    assert await world.arrived() == [order]


async def test_t7_a_lost_confirm_is_sent_again_under_the_same_id(world: Any, order: Message) -> None:
    world.driver.losing("publish")
    async with world.checkback.transaction("orders", order):
        pass
    world.truth = True
    assert await world.checkback.check_due() == 1
    assert await world.arrived() == [order, order]
    assert await world.half() is None


async def test_t8_killed_before_the_half_is_removed_is_sent_again_under_the_same_id(world: Any, order: Message) -> None:
    await killed(world, order, "half.published")
    world.truth = True
    await world.advance(TIMEOUT)
    await world.checkback.check_due()
    assert await world.arrived() == [order, order]
    assert await world.half() is None


async def test_a_lost_removal_returns_and_is_sent_again_under_the_same_id(world: Any, order: Message) -> None:
    world.storage.failing("remove")
    async with world.checkback.transaction("orders", order):
        pass
    world.truth = True
    await world.advance(TIMEOUT)
    await world.checkback.check_due()
    assert await ids(world) == ["m-1", "m-1"]


# -------------------------------------------------------------------------------------------- exceptions, Rollback


async def test_any_exception_keeps_the_half_due_after_the_timeout_and_never_now(world: Any, order: Message) -> None:
    world.truth = False
    with pytest.raises(ValueError, match="perhaps"):  # noqa: PT012 - the block is what is tested
        async with world.checkback.transaction("orders", order):
            await world.advance(15)
            raise ValueError("perhaps")
    await world.advance(TIMEOUT - 0.1)
    assert await world.checkback.check_due() == 0
    assert (await world.half()).error == "ValueError: perhaps"
    await world.advance(0.2)
    assert await world.checkback.check_due() == 1
    assert await world.half() is None


async def test_an_exception_that_cannot_be_shown_keeps_the_half_and_goes_on_to_the_caller(
    world: Any, order: Message
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError("no text")

    with pytest.raises(Mute):
        async with world.checkback.transaction("orders", order):
            raise Mute
    assert (await world.half()).error == "Mute: <what it says cannot be shown>"


async def test_an_exception_stores_a_half_that_is_gone_again(world: Any, order: Message) -> None:
    with pytest.raises(ValueError, match="late"):  # noqa: PT012 - the block is what is tested
        async with world.checkback.transaction("orders", order):
            assert await world.checkback.discard("m-1")
            raise ValueError("late")
    assert await world.half() is not None


async def test_the_exception_of_the_block_goes_on_when_the_storage_is_down(world: Any, order: Message) -> None:
    with pytest.raises(ValueError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with world.checkback.transaction("orders", order):
            world.storage.down = True
            raise ValueError("mine")
    assert await world.half() is not None


async def test_cancellation_in_the_block_keeps_the_half_due_after_the_timeout(world: Any, order: Message) -> None:
    async def work() -> None:
        async with world.checkback.transaction("orders", order):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await world.advance(50)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await world.half()).due == pytest.approx(world.clock.time() + TIMEOUT)


async def test_cancelled_again_while_the_half_is_kept_it_is_kept_all_the_same(world: Any, order: Message) -> None:
    going_on = asyncio.Event()
    store = world.storage._target.store

    async def slow(*args: Any) -> Any:
        await going_on.wait()
        return await store(*args)

    async def work() -> None:
        async with world.checkback.transaction("orders", order):
            world.storage._target.store = slow
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await world.advance(50)
    for _ in range(3):
        task.cancel()
        await world.advance(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.checkback.busy
    going_on.set()
    await world.checkback.drained()
    assert not world.checkback.busy
    assert (await world.half()).due == pytest.approx(world.clock.time() + TIMEOUT)


async def test_cancelled_while_it_is_published_it_is_published_all_the_same(world: Any, order: Message) -> None:
    going_on = asyncio.Event()

    async def work() -> None:
        async with world.checkback.transaction("orders", order):
            pass

    world.at("work.done", going_on.wait)
    task = asyncio.create_task(work())
    await world.advance(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    going_on.set()
    await world.checkback.drained()
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_rollback_is_swallowed_and_discards(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        raise Rollback("out of stock")
    assert await world.half() is None
    assert await world.arrived() == []


async def test_a_rollback_whose_removal_is_lost_is_asked_about(world: Any, order: Message) -> None:
    world.storage.failing("remove")
    async with world.checkback.transaction("orders", order):
        raise Rollback
    world.truth = False
    await world.advance(TIMEOUT)
    assert await world.checkback.check_due() == 1
    assert await world.half() is None
    assert await world.arrived() == []


async def test_rollback_of_an_id_that_stood_before_only_makes_it_due(world: Any, order: Message) -> None:
    with pytest.raises(ConnectionError):
        async with world.checkback.transaction("orders", order):
            raise ConnectionError("but the work was done")
    async with world.checkback.transaction("orders", order):
        raise Rollback("done already, says the second attempt")
    world.truth = True
    assert await world.checkback.check_due() == 1
    assert await world.arrived() == [order]


async def test_rollback_leaves_the_half_of_another_send_under_the_id_alone(world: Any, order: Message) -> None:
    """The first send extends after the second took the id over, then rolls back: the second's work may be done."""
    first = world.checkback.transaction("orders", order)
    await first.__aenter__()
    await world.advance(15)
    second = world.process().transaction("orders", order)
    await second.__aenter__()
    await world.advance(10)
    second._extender.cancel()  # its process dies with the work done
    error = Rollback()
    assert await first.__aexit__(Rollback, error, None)
    world.truth = True
    await world.checkback.check_due()
    assert await world.arrived() == [order]


# -------------------------------------------------------------------------------------------------------- extending


async def test_a_reply_of_storing_that_comes_late_makes_sure_of_the_half_before_the_work(
    world: Any, order: Message
) -> None:
    store = world.storage._target.store

    async def late(*args: Any) -> Any:
        world.storage._target.store = store
        stored = await store(*args)
        world.truth = False
        await world.advance(TIMEOUT)
        assert await world.checkback.check_due() == 1
        return stored

    world.storage._target.store = late
    async with world.checkback.transaction("orders", order):
        assert (await world.half()).due == pytest.approx(world.clock.time() + TIMEOUT)
    assert await world.half() is None


async def test_a_living_sender_is_never_asked_about(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        for _ in range(30):
            await world.advance(10)
            assert await world.checkback.check_due() == 0
            assert (await world.half()).due >= world.clock.time() + TIMEOUT * 2 / 3 - 0.01
    assert await world.arrived() == [order]


async def test_an_extension_takes_the_half_back_from_a_checker(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        world.clock.advance_to(world.clock.time() + TIMEOUT)  # paused past its extension
        (claimed,) = await world.storage.claim_due([("shop", "orders")], 10, 60)
        await world.advance(1)
        assert not await world.storage.remove("m-1", claimed.token)
        assert await world.half() is not None
    assert await world.half() is None
    assert await world.arrived() == [order]


async def test_rollback_after_extensions_that_nobody_disturbed_discards(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        await world.advance(TIMEOUT)
        raise Rollback
    assert await world.half() is None


async def test_an_extension_under_way_ends_before_the_half_is_removed(world: Any, order: Message) -> None:
    going_on = asyncio.Event()
    postpone = world.storage._target.postpone

    async def slow(*args: Any, **kwargs: Any) -> bool:
        await going_on.wait()
        return await postpone(*args, **kwargs)

    async def work() -> None:
        async with world.checkback.transaction("orders", order):
            world.storage._target.postpone = slow
            await world.advance(TIMEOUT / 3)

    working = asyncio.create_task(work())
    published: list[Message] = []
    async with asyncio.timeout(5):
        while not published:
            await world.advance(0)
            published = await world.arrived()
    await world.advance(0)
    assert not working.done()
    going_on.set()
    await working
    await world.advance(0)
    assert await world.half() is None


async def test_an_extension_stores_a_half_that_is_gone_again(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        assert await world.checkback.discard("m-1")
        await world.advance(TIMEOUT / 3)
        assert (await world.half()).body == order.to_bytes()


async def test_extending_goes_on_after_an_outage_of_the_storage(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        world.storage.down = True
        await world.advance(TIMEOUT / 2)
        world.storage.down = False
        await world.advance(2)
        assert (await world.half()).due > world.clock.time() + TIMEOUT - 2
    assert await world.half() is None


async def test_a_lost_reply_of_an_extension_leaves_the_sender_in_charge(world: Any, order: Message) -> None:
    async with world.checkback.transaction("orders", order):
        assert await world.checkback.discard("m-1")
        world.storage.losing("store")
        await world.advance(TIMEOUT)
    assert await world.half() is None
    assert await ids(world) == ["m-1"]


# ------------------------------------------------------------------------------------- done, and not published


async def test_publish_failed_and_the_half_is_there_returns_and_the_checker_publishes(
    world: Any, order: Message
) -> None:
    world.driver.failing("publish")
    async with world.checkback.transaction("orders", order):
        pass
    assert await world.arrived() == []
    world.truth = True
    assert await world.checkback.check_due() == 1
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_publish_failed_and_the_half_is_gone_publishes_again(world: Any, order: Message) -> None:
    world.driver.failing("publish")
    async with world.checkback.transaction("orders", order):
        assert await world.checkback.discard("m-1")
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_publish_failed_and_the_half_unknown_publishes_again(world: Any, order: Message) -> None:
    world.driver.failing("publish")
    async with world.checkback.transaction("orders", order):
        world.storage.failing("store")
    assert await world.arrived() == [order]


async def test_neither_published_nor_kept_is_a_send_error_with_the_message(world: Any, order: Message) -> None:
    with pytest.raises(SendError) as caught:
        async with world.checkback.transaction("orders", order):
            world.driver.down = world.storage.down = True
    assert caught.value.failed == [order]
    assert isinstance(caught.value.__cause__, Unavailable)


# -------------------------------------------------------------------------------------------------- before anything


async def test_without_an_answer_for_the_topic_nothing_is_stored_and_the_line_to_write_is_shown(
    world: Any, order: Message
) -> None:
    with pytest.raises(ConfigurationError, match=r"@orders\.committed"):
        world.process(answers=False).transaction("orders", order)
    assert world.storage.calls == []


async def test_what_could_not_be_published_is_refused_before_anything_is_stored(world: Any, order: Message) -> None:
    for delay in (-1.0, float("nan"), 1e12):
        with pytest.raises(BadDelay):
            world.checkback.transaction("orders", order, delay)
    with pytest.raises(ConfigurationError, match="id"):
        world.checkback.transaction("orders", Message(payload=b"1"))
    world.driver._target.caps = type(world.driver.caps)(
        engine="small", durable=False, shared=False, max_body=10, max_name=10
    )
    with pytest.raises(TooLarge):
        world.checkback.transaction("orders", order)
    assert world.storage.calls == []


@pytest.mark.parametrize("dies", [False, True])
async def test_a_delay_rides_in_the_half_and_counts_from_the_publication(
    world: Any, order: Message, dies: bool
) -> None:
    pump = asyncio.create_task(world.publisher.pump())
    block = world.checkback.transaction("orders", order, 5.0)
    await block.__aenter__()
    assert Message.from_bytes((await world.half()).body).headers[DELAY] == "5.0"
    if dies:
        block._extender.cancel()
        world.truth = True
        await world.advance(TIMEOUT)
        await world.checkback.check_due()
        assert world.asked == [order]
    else:
        await world.advance(TIMEOUT)
        await block.__aexit__(None, None, None)
    await world.advance(4.9)
    assert await world.arrived() == []
    await world.advance(0.2)
    assert await world.arrived() == [order]
    pump.cancel()

"""The checker: what each answer does, C1 and C2, scopes, parking, outages, and what operators do."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from easybus import points
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, Unavailable
from easybus.message import Message
from easybus.sending.checkback import CheckPolicy, exponential_delay
from easybus.sending.transaction import half_of

TIMEOUT = 60.0


async def left_behind(world: Any, order: Message, service: str = "shop", topic: str = "orders") -> None:
    """A half that is due, of a sender that died."""
    await world.engine.transactions.store(half_of(service, topic, order, None), 0.0)


async def check(world: Any, seconds: float = 0.0) -> int:
    await world.advance(seconds)
    return await world.checkback.check_due()


# ---------------------------------------------------------------------------------------------------------- answers


async def test_true_publishes_and_removes(world: Any, order: Message) -> None:
    await left_behind(world, order)
    world.truth = True
    assert await check(world) == 1
    assert world.asked == [order]
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_false_discards(world: Any, order: Message) -> None:
    await left_behind(world, order)
    world.truth = False
    assert await check(world) == 1
    assert await world.arrived() == []
    assert await world.half() is None


async def test_none_is_asked_again_after_the_retry_delay_and_counted(world: Any, order: Message) -> None:
    world.checkback = world.process(retry_delay=lambda attempt: attempt * 10.0)
    await left_behind(world, order)
    assert await check(world) == 1
    assert (await world.half()).checks == 1
    assert await check(world, 9.9) == 0
    assert await check(world, 0.2) == 1
    assert await check(world, 19.7) == 0
    assert await check(world, 0.4) == 1
    half = await world.half()
    assert (half.checks, half.parked, half.error) == (3, False, "committed returned None")


@pytest.mark.parametrize("answer", [1, 0, "", "yes", []], ids=repr)
async def test_an_answer_that_is_no_bool_is_a_doubt_and_deletes_nothing(
    world: Any, order: Message, answer: object
) -> None:
    await left_behind(world, order)
    world.truth = answer
    assert await check(world) == 1
    half = await world.half()
    assert half.checks == 1
    assert repr(answer) in half.error
    assert await world.arrived() == []


async def test_an_exception_out_of_committed_is_a_doubt_and_counted(world: Any, order: Message) -> None:
    def committed(message: Message) -> bool:
        raise LookupError("no such order")

    world.checkback.answer("orders", committed, CheckPolicy())
    await left_behind(world, order)
    assert await check(world) == 1
    half = await world.half()
    assert (half.checks, half.error) == (1, "LookupError: no such order")


@pytest.mark.parametrize("mute", [False, True], ids=["half a surrogate pair", "no text"])
async def test_a_doubt_that_no_storage_takes_as_it_is_is_counted_and_parked_on_sqlite(
    world: Any, order: Message, tmp_path: Path, mute: bool
) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return str(self.args[int(mute)])

    async def committed(message: Message) -> bool:
        raise Odd("caf\udce9.txt")

    engine = create(f"sqlite:///{tmp_path}/halves.db", world.clock)
    await engine.open()
    assert engine.transactions is not None
    world.storage = engine.transactions
    checkback = world.process(answers=False)
    checkback.answer("orders", committed, CheckPolicy(max_checks=2, retry_delay=lambda _: 0.0))
    await engine.transactions.store(half_of("shop", "orders", order, None), 0.0)
    for checks, parked in ((1, False), (2, True)):
        assert await checkback.check_due() == 1
        half = await engine.transactions.fetch(order.id)
        assert half is not None
        assert (half.checks, half.parked) == (checks, parked)
        assert half.error == ("Odd: <what it says cannot be shown>" if mute else "Odd: caf\\udce9.txt")
    await engine.close()


async def test_unreadable_bytes_are_a_doubt_and_kept(world: Any, order: Message) -> None:
    half = half_of("shop", "orders", order, None)
    half.body = b"\xff"
    await world.engine.transactions.store(half, 0.0)
    world.truth = False
    assert await check(world) == 1
    assert "EnvelopeError" in (await world.half()).error


async def test_an_answer_that_does_not_come_is_a_doubt_within_the_lease(world: Any, order: Message) -> None:
    async def committed(message: Message) -> bool:
        await asyncio.Event().wait()
        return True

    world.checkback.answer("orders", committed, CheckPolicy())
    await left_behind(world, order)
    checking = asyncio.create_task(world.checkback.check_due())
    await world.advance(44)
    assert world.checkback.busy
    await world.advance(2)
    assert await checking == 1
    assert "did not answer in 45 s" in (await world.half()).error


async def test_a_plain_committed_runs_in_a_thread_and_a_coroutine_function_on_the_loop(
    world: Any, order: Message
) -> None:
    ran: dict[str, int] = {}

    def plain(message: Message) -> bool:
        ran["plain"] = threading.get_ident()
        return True

    class Asks:
        async def __call__(self, message: Message) -> bool:
            ran["object"] = threading.get_ident()
            return True

    async def late(message: Message) -> bool:
        ran["late"] = threading.get_ident()
        return True

    def gives_a_coroutine(message: Message) -> Any:
        return late(message)

    for committed in (plain, Asks(), gives_a_coroutine):
        world.checkback.answer("orders", committed, CheckPolicy())
        await left_behind(world, order)
        assert await check(world) == 1
    assert await world.arrived() == [order] * 3
    here = threading.get_ident()
    assert ran["plain"] != here
    assert ran["object"] == ran["late"] == here


# ---------------------------------------------------------------------------------------------------------- parking


async def test_after_max_checks_a_half_is_parked_said_once_and_still_asked_rarely(
    world: Any, order: Message, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkback = world.process(max_checks=2, rarely=1000.0, retry_delay=lambda attempt: 1.0)
    await left_behind(world, order)
    assert await check(world) == 1
    assert not (await world.half()).parked
    assert await check(world, 1.1) == 1
    assert (await world.half()).parked
    assert await check(world, 999) == 0
    assert await check(world, 2) == 1
    assert (await world.half()).parked
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the half m-1 on 'orders' is parked, still asked about every 1000 s: 2 checks without")
    world.truth = True
    assert await check(world, 1001) == 1
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_a_failed_publish_never_counts_and_parks_nothing(world: Any, order: Message) -> None:
    world.checkback = world.process(max_checks=2)
    await left_behind(world, order)
    world.truth = True
    world.driver.failing("publish", 20)
    for _ in range(20):
        assert await check(world, 60.1) == 1
    half = await world.half()
    assert (half.checks, half.parked) == (0, False)
    assert "scripted" in half.error
    assert await check(world, 60.1) == 1
    assert await world.arrived() == [order]


async def test_a_refused_publish_is_kept_said_and_tried_again(
    world: Any, order: Message, caplog: pytest.LogCaptureFixture
) -> None:
    await left_behind(world, order, topic="later")
    world.checkback.answer("later", world.committed, CheckPolicy())
    world.truth = True
    assert await check(world) == 1
    assert "cannot be published" in caplog.text
    assert (await world.half()).checks == 0


async def test_a_lost_confirm_of_the_checker_is_published_again_under_the_same_id(world: Any, order: Message) -> None:
    await left_behind(world, order)
    world.truth = True
    world.driver.losing("publish")
    assert await check(world) == 1
    assert await check(world, 60.1) == 1
    assert await world.arrived() == [order, order]
    assert await world.half() is None


# --------------------------------------------------------------------------------------------------------- C1 and C2


@pytest.mark.parametrize(
    ("point", "copies"), [("check.claimed", 1), ("check.answered", 1), ("check.published", 2)], ids=str
)
async def test_c1_a_checker_that_dies_leaves_the_half_to_another_when_its_lease_has_passed(
    world: Any, order: Message, point: str, copies: int
) -> None:
    await left_behind(world, order)
    world.truth = True
    world.die_at(point)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - `Died` is the conftest's
        await check(world)
    assert type(caught.value).__name__ == "Died"
    points.hook = None
    other = world.process()
    assert await other.check_due() == 0
    await world.advance(60.1)
    assert await other.check_due() == 1
    assert await world.arrived() == [order] * copies
    assert await world.half() is None


async def test_c2_asked_while_the_work_may_yet_land_none_waits_for_it(world: Any, order: Message) -> None:
    with pytest.raises(TimeoutError):
        async with world.checkback.transaction("orders", order):
            raise TimeoutError
    assert await check(world, TIMEOUT) == 1
    world.truth = True
    assert await check(world, 5.1) == 1
    assert await world.arrived() == [order]


async def test_a_checker_that_lost_its_claim_changes_nothing(world: Any, order: Message) -> None:
    await left_behind(world, order)
    world.truth = False

    async def taken_back() -> None:
        await world.engine.transactions.store(half_of("shop", "orders", order, None), TIMEOUT)

    world.at("check.answered", taken_back)
    assert await check(world) == 1
    assert await world.half() is not None
    points.hook = None
    world.truth = None
    await world.advance(TIMEOUT)
    world.at("check.answered", taken_back)
    assert await check(world) == 1
    assert (await world.half()).checks == 0


# ------------------------------------------------------------------------------------------------------------ scopes


async def test_two_services_on_one_storage_never_answer_each_others_checks(world: Any, order: Message) -> None:
    other = world.process("billing")
    await left_behind(world, order, service="shop")
    world.truth = False
    assert await other.check_due() == 0
    assert world.asked == []
    assert await world.half() is not None
    assert not await other.publish("m-1")
    assert not await other.discard("m-1")
    assert await world.half() is not None
    assert await check(world) == 1
    assert await world.half() is None


async def test_a_topic_that_nobody_answers_for_here_is_left_to_those_who_can(world: Any, order: Message) -> None:
    await left_behind(world, order, topic="refunds")
    assert await check(world) == 0
    assert await world.process(answers=False).check_due() == 0
    assert await world.half() is not None


# ----------------------------------------------------------------------------------------------------------- the loop


async def test_the_loop_finds_what_is_due_and_ends_when_cancelled(world: Any, order: Message) -> None:
    running = asyncio.create_task(world.checkback.run())
    await world.advance(3)
    await left_behind(world, order)
    world.truth = True
    await world.advance(1.1)
    assert await world.arrived() == [order]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_the_loop_survives_an_outage_with_one_line_down_and_one_up(
    world: Any, order: Message, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    running = asyncio.create_task(world.checkback.run())
    world.storage.down = True
    await world.advance(120)
    await left_behind(world, order)
    world.truth = True
    world.storage.down = False
    await world.advance(5.1)
    assert await world.arrived() == [order]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "down" in texts[0]
    assert "up again" in texts[1]
    running.cancel()


async def test_one_half_whose_storing_fails_cuts_no_other_check_short(world: Any, order: Message) -> None:
    async def committed(message: Message) -> bool:
        if message.id != "n-0":
            await asyncio.sleep(0.02)
        return True

    world.checkback.answer("orders", committed, CheckPolicy())
    for number in range(5):
        await left_behind(world, Message(id=f"n-{number}", payload=b"1"))
    world.storage.failing("remove", 1)
    with pytest.raises(Unavailable):
        await check(world)
    assert not world.checkback.busy
    assert len(await world.arrived()) == 5
    assert [half.id for half in await world.storage.find()] == ["n-0"]


async def test_more_halves_than_one_round_are_all_asked_about(world: Any) -> None:
    for number in range(250):
        await left_behind(world, Message(id=f"n-{number}", payload=b"1"))
    world.truth = False
    running = asyncio.create_task(world.checkback.run())
    await world.advance(0.1)
    for _ in range(10):
        await world.advance(0.1)
    assert await world.storage.find() == []
    assert len(world.asked) == 250
    running.cancel()


# ----------------------------------------------------------------------------------------------------------- operators


async def test_an_operator_publishes_a_half(world: Any, order: Message) -> None:
    await left_behind(world, order)
    assert await world.checkback.publish("m-1")
    assert await world.arrived() == [order]
    assert await world.half() is None
    assert not await world.checkback.publish("m-1")


async def test_an_operators_publish_that_fails_keeps_the_half(world: Any, order: Message) -> None:
    await left_behind(world, order)
    world.driver.failing("publish")
    with pytest.raises(Unavailable):
        await world.checkback.publish("m-1")
    world.truth = True
    assert await check(world) == 1
    assert await world.arrived() == [order]


async def test_an_operator_discards_a_half(world: Any, order: Message) -> None:
    await left_behind(world, order)
    assert await world.checkback.discard("m-1")
    assert await world.half() is None
    assert not await world.checkback.discard("m-1")
    assert await world.arrived() == []


# ------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"rarely": -1}, "rarely is -1"),
        ({"max_checks": 0}, "max_checks is 0"),
        ({"retry_delay": lambda attempt: -1.0}, r"retry_delay\(1\) is -1"),
    ],
)
def test_a_policy_that_cannot_be_says_what_was_given_and_what_is_possible(values: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        CheckPolicy(**values)


def test_the_delay_between_checks_grows_to_ten_minutes() -> None:
    assert [exponential_delay(n) for n in (1, 2, 3, 8, 5000)] == [5.0, 10.0, 20.0, 600.0, 600.0]

"""The rules of handling once (design, section 6), each by its name."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from easybus.clock import sleep
from easybus.engines.contract import Busy, Claimed
from easybus.errors import Reject
from easybus.message import FIRST_FAILED, Message
from easybus.receiving.hand import Why
from easybus.receiving.receiver import Receiver
from easybus.receiving.retry import fixed, never
from easybus.receiving.within import NotTheHolder

LEASE = 9.0


def noting(seen: list[Message]) -> Callable[[Message], Any]:
    async def handle(message: Message) -> None:
        seen.append(message)

    return handle


async def until(condition: Callable[[], bool]) -> None:
    """Real seconds, for what a thread does."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def stopped(room: Any, receiver: Receiver, grace: float) -> None:
    """Stop it, while time goes on: ten times as fast as it does for the stop's own waits."""
    stopping = asyncio.ensure_future(receiver.stop(grace))
    for _ in range(5000):
        await asyncio.sleep(0.001)
        await room.advance(0.01)
        if stopping.done():
            return
    raise TimeoutError


# ------------------------------------------------------------------------------------------------- claims' results


async def test_busy_goes_back_with_a_delay_and_counts_as_no_attempt(room: Any) -> None:
    seen: list[Message] = []
    held = await room.claim("m")
    await room.send("m")
    room.process(noting(seen))
    await room.advance(0)
    assert await room.stats() == (0, 0, 1), "back, with a delay"
    await room.engine.idempotency.release([held.token])
    await room.advance(1.0)
    assert [message.retried for message in seen] == [0]
    assert await room.stats() == (0, 0, 0)


async def test_done_is_acked_and_not_handled(room: Any) -> None:
    seen: list[Message] = []
    held = await room.claim("m")
    await room.engine.idempotency.complete([(held.token, 1000.0)])
    await room.send("m")
    room.process(noting(seen))
    await room.advance(0)
    assert seen == []
    assert await room.stats() == (0, 0, 0)


@pytest.mark.parametrize("state", ["claimed", "done", "free"])
async def test_another_payload_is_a_conflict_in_every_state_and_touches_no_key(room: Any, state: str) -> None:
    seen: list[Message] = []
    held = await room.claim("m", b"1")
    if state == "done":
        await room.engine.idempotency.complete([(held.token, 1000.0)])
    elif state == "free":
        await room.engine.idempotency.release([held.token])
    await room.send("m", b"2")
    room.process(noting(seen))
    await room.advance(0)
    assert seen == []
    assert [(letter.message_id, letter.reason) for letter in await room.dead()] == [
        ("m", "its id was used before for another payload")
    ]
    assert await room.stats() == (0, 0, 0)
    assert await room.state("m") == state
    if state == "claimed":
        assert await room.engine.idempotency.complete([(held.token, 1000.0)]) == [True], "its holder has it still"


async def test_a_refused_completion_is_acked_when_another_completed_it(room: Any) -> None:
    async def handle(message: Message) -> None:
        token = await room.take_over("m")
        await room.engine.idempotency.complete([(token, 1000.0)])

    room.process(handle)
    await room.send("m")
    assert await room.stats() == (0, 0, 0)
    assert await room.state("m") == "done"


async def test_a_refused_completion_goes_back_and_is_never_acked_while_another_holds_it(room: Any) -> None:
    tokens: list[str] = []
    seen: list[Message] = []

    async def handle(message: Message) -> None:
        seen.append(message)
        if not tokens:
            tokens.append(await room.take_over("m"))

    room.process(handle)
    await room.send("m")
    assert await room.stats() == (0, 0, 1)
    assert "Ack" not in room.calls
    await room.engine.idempotency.release(tokens)  # the taker failed
    await room.advance(1.0)
    assert len(seen) == 2, "so it is handled again"
    assert await room.state("m") == "done"


async def test_a_lost_completion_is_tried_again_and_acked(room: Any) -> None:
    seen: list[Message] = []
    room.process(noting(seen))
    room.keys.failing["complete"] = 3
    await room.send("m")
    await room.advance(2.0)
    assert len(seen) == 1
    assert await room.state("m") == "done"
    assert await room.stats() == (0, 0, 0)


# ------------------------------------------------------------------------------------------------------ leases


async def test_a_handler_that_is_fenced_off_is_cancelled_and_settles_nothing(room: Any) -> None:
    ended: list[str] = []

    async def handle(message: Message) -> None:
        try:
            await sleep(room.clock, 1000.0)
            ended.append("returned")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    room.process(handle)
    await room.send("m")
    token = await room.take_over("m")
    room.calls.clear()
    await room.advance(LEASE / 3)
    assert ended == ["cancelled"]
    assert not {"Ack", "Nack", "Move", "release", "complete", "store"} & set(room.calls)
    assert await room.engine.idempotency.complete([(token, 1000.0)]) == [True]


async def test_a_worker_whose_commit_was_refused_goes_on_when_it_is_fenced_off_while_it_looks_again(room: Any) -> None:
    seen: list[Message] = []
    lookup = room.engine.idempotency.lookup

    async def slow_lookup(queue: str, id: str) -> str:
        await sleep(room.clock, LEASE)
        return str(await lookup(queue, id))

    class Refused:
        async def call(self, hand: Any, invoker: Any, *_: Any) -> Any:
            if hand.id == "m":
                await room.take_over("m")
                raise NotTheHolder
            return await invoker.call(hand.message, hand.payload, None)

    room.engine.idempotency.lookup = slow_lookup
    await room.send("m")
    room.process(noting(seen), exactly_once=Refused(), concurrency=1)
    await room.advance(2 * LEASE)
    await room.send("n")
    await room.advance(2 * LEASE)
    assert [message.id for message in seen] == ["n"], "its one worker is still there"


async def test_a_loop_that_wakes_past_its_lease_cancels_before_it_runs_on(room: Any) -> None:
    ended: list[str] = []

    async def handle(message: Message) -> None:
        try:
            await sleep(room.clock, LEASE * 1.5)
            ended.append("ran on")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    room.process(handle)
    await room.send("m")
    room.clock.advance_to(room.clock.time() + LEASE * 2)  # the machine slept
    await room.advance(0)
    assert ended == ["cancelled"]


async def test_a_handler_whose_claim_cannot_be_renewed_is_cancelled_before_it_ends(room: Any) -> None:
    ended: list[float] = []

    async def handle(message: Message) -> None:
        try:
            await sleep(room.clock, 1000.0)
        finally:
            ended.append(room.clock.time())

    room.process(handle)
    begun = room.clock.time()
    await room.send("m")
    room.keys.down = True
    await room.advance(LEASE)
    assert len(ended) == 1
    assert ended[0] < begun + LEASE


async def test_a_sync_handlers_lease_is_renewed_until_its_thread_ends_and_its_timeout_counts_then(room: Any) -> None:
    go, attempts = threading.Event(), list[int]()

    def handle(message: Message) -> None:
        attempts.append(message.retried)
        if not message.retried:
            go.wait(20)

    room.process(handle, timeout=5.0, retry=fixed(100.0, attempts=3))
    await room.send("m")
    await until(lambda: len(attempts) == 1)
    for _ in range(4):
        await room.advance(LEASE)
        assert isinstance(await room.claim("m"), Busy), "its thread is at work, so it is nobody else's"
    assert await room.stats() == (0, 1, 0)
    go.set()
    await until(lambda: "Move" in room.calls)
    await room.advance(100.0)
    await until(lambda: len(attempts) == 2)
    assert attempts == [0, 1], "past its timeout, it failed"


# --------------------------------------------------------------------------------------------------------- poison


async def test_from_its_second_start_a_message_runs_alone_in_its_process(room: Any) -> None:
    running: set[str] = set()
    company: dict[str, set[str]] = {}

    async def handle(message: Message) -> None:
        running.add(message.id)
        for other in running:
            company.setdefault(other, set()).update(running)
        await sleep(room.clock, 1.0)
        running.discard(message.id)

    await room.begun("poison", 1)
    for name in ("a", "poison", "b", "c"):
        await room.send(name)
    room.process(handle)
    await room.advance(5.0)
    assert company["poison"] == {"poison"}
    assert {"b", "c"} <= company["c"], "the others run side by side"
    assert [await room.state(name) for name in company] == ["done"] * 4


async def test_a_message_that_kills_processes_is_a_dead_letter_after_its_starts_and_its_neighbours_are_not(
    room: Any,
) -> None:
    seen: list[Message] = []
    await room.begun("poison", 4)
    await room.begun("neighbour", 1)  # it was in the process that died
    await room.send("poison")
    await room.send("neighbour")
    room.process(noting(seen))
    await room.advance(0)
    assert [message.id for message in seen] == ["neighbour"]
    [letter] = await room.dead()
    assert letter.message_id == "poison"
    assert "begun 4 times without an outcome" in letter.reason
    assert await room.stats() == (0, 0, 0)


async def test_what_waits_while_another_runs_alone_does_not_count_as_begun(room: Any) -> None:
    async def endless(message: Message) -> None:
        await sleep(room.clock, 1000.0)

    names = ("a", "b", "c")
    for name in names:
        await room.begun(name, 2)
        await room.send(name)
    room.process(endless)
    await room.advance(0)
    keys = room.engine.idempotency._keys._queues["jobs"]
    assert [keys[name].starts for name in names] == [3, 2, 2], "only the first began again"
    assert await room.stats() == (0, 1, 2)
    await room.advance(3.0)
    assert [keys[name].starts for name in names] == [3, 2, 2]
    assert await room.dead() == []


async def test_suspects_run_one_after_the_other_without_waiting_long(room: Any) -> None:
    seen: list[Message] = []
    names = [f"m{number}" for number in range(8)]
    for name in names:
        await room.begun(name, 2)
        await room.send(name)
    room.process(noting(seen))
    await room.advance(2.0)
    assert sorted(message.id for message in seen) == names
    assert [await room.state(name) for name in names] == ["done"] * 8


async def test_slow_suspects_follow_one_another_and_nothing_is_claimed_beside_them(room: Any) -> None:
    held: list[int | None] = []

    async def slow(_: Message) -> None:
        await sleep(room.clock, 0.5)
        held.append((await room.stats())[1])

    names = [f"m{number}" for number in range(8)]
    for name in names:
        await room.begun(name, 2)
        await room.send(name)
    room.process(slow)
    await room.advance(0.0)
    await room.send("younger")
    await room.advance(5.0)
    assert held[0] == 1
    assert len(held) == 9
    assert [await room.state(name) for name in (*names, "younger")] == ["done"] * 9


async def test_an_outcome_ends_the_count_of_starts(room: Any) -> None:
    seen: list[Message] = []
    await room.begun("m", 2)

    async def handle(message: Message) -> None:
        seen.append(message)
        if len(seen) == 1:
            raise ValueError("a failure is an outcome")

    room.process(handle, retry=fixed(1.0, attempts=5))
    await room.send("m")
    await room.advance(1.5)
    assert len(seen) == 2
    claim = await room.claim("other")
    assert isinstance(claim, Claimed)
    assert claim.starts == 1


# ------------------------------------------------------------------------------------------------------ store down


async def test_while_the_store_is_down_nothing_is_handled_nothing_acked_and_it_is_said_once(
    room: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Message] = []
    room.keys.down = True
    await room.send("m")
    with caplog.at_level(logging.WARNING, "easybus"):
        room.process(noting(seen))
        await room.advance(30.0)
        assert seen == []
        assert "Ack" not in room.calls
        assert await room.stats() == (1, 0, 0), "what was fetched went back at once"
        assert 2 < room.calls.count("claim") < 25, "fetching pauses"
        room.keys.down = False
        await room.advance(3.0)
    assert len(seen) == 1
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "queue 'jobs': down",
        "queue 'jobs': up again",
    ]


# ------------------------------------------------------------------------------------------------ stop and restart


async def test_a_stop_releases_and_then_nacks_what_it_cancels_and_counts_no_attempt(room: Any) -> None:
    seen: list[Message] = []

    async def endless(message: Message) -> None:
        await sleep(room.clock, 1000.0)

    first = room.process(endless)
    await room.send("m")
    room.calls.clear()
    stopping = asyncio.ensure_future(first.stop(grace=0.0))
    while not stopping.done():
        await asyncio.sleep(0.001)
        await room.advance(0)
    settled = [call for call in room.calls if call in ("release", "Nack", "Ack", "Move")]
    assert settled == ["release", "Nack"]
    room.process(noting(seen))
    await room.advance(0)
    assert [message.retried for message in seen] == [0], "at once, and not as a retry"


async def test_a_stop_waits_for_a_fetch_that_has_just_begun_and_for_none_that_only_waits(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easybus.receiving.receiver._INTERRUPT", 60.0)
    fetching = room.driver.held["fetch"] = asyncio.Event()
    seen: list[Message] = []
    receiver = room.process(noting(seen))
    await room.send("m")
    await until(lambda: "fetch" in room.calls)
    stopping = asyncio.ensure_future(receiver.stop())
    for _ in range(100):
        await room.advance(0)
    assert not stopping.done()
    fetching.set()
    await asyncio.wait_for(stopping, 5)
    assert ([message.id for message in seen], await room.stats()) == (["m"], (0, 0, 0)), "what it brought was begun"

    fetching.clear()
    room.calls.clear()
    receiver.start()
    await until(lambda: "fetch" in room.calls)
    receiver._asked -= 61.0
    await asyncio.wait_for(receiver.stop(), 5)


@pytest.mark.parametrize("before", ["nothing", "its timeout"])
async def test_a_handler_that_swallows_a_cancellation_is_cancelled_again_by_a_stop(
    room: Any, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easybus.receiving.receiver._CLEAN_UP", 0.05)
    swallowed: list[float] = []

    async def stubborn(message: Message) -> None:
        while len(swallowed) < 2:
            try:
                await sleep(room.clock, 1000.0)
            except asyncio.CancelledError:
                swallowed.append(room.clock.time())
        await sleep(room.clock, 1000.0)

    receiver = room.process(stubborn, timeout=None if before == "nothing" else 5.0, retry=fixed(100.0))
    await room.send("m")
    await room.advance(6.0)
    await stopped(room, receiver, 0.1)
    assert len(swallowed) == 2
    if before == "nothing":
        assert await room.stats() == (1, 0, 0), "back, uncounted"
        assert await room.state("m") == "free"
    else:
        assert await room.stats() == (0, 0, 1), "it failed by its timeout, and is retried"


async def test_a_second_signal_ends_a_handler_that_swallowed_its_cancellation(room: Any) -> None:
    swallowed: list[Message] = []

    async def stubborn(message: Message) -> None:
        try:
            await sleep(room.clock, 1000.0)
        except asyncio.CancelledError:
            swallowed.append(message)
        await sleep(room.clock, 1000.0)

    receiver = room.process(stubborn)
    await room.send("m")
    receiver.at_work[0].cancel(Why.TIMEOUT)
    await room.advance(0)
    assert len(swallowed) == 1
    stopping = asyncio.ensure_future(receiver.stop(None))
    await room.advance(10.0)
    assert not stopping.done()
    receiver.hurry()
    await until(stopping.done)
    assert receiver.at_work == []


async def test_attempts_survive_a_restart(room: Any) -> None:
    attempts: list[int] = []

    async def handle(message: Message) -> None:
        attempts.append(message.retried)
        raise ValueError("no")

    first = room.process(handle, retry=fixed(10.0, attempts=3))
    await room.send("m")
    await first.stop(0.0)
    room.process(handle, retry=fixed(10.0, attempts=3))
    await room.advance(60.0)
    assert attempts == [0, 1, 2]
    [letter] = await room.dead()
    assert letter.attempts == 3


# ------------------------------------------------------------------------------------------------ retry, dead, replay


async def test_a_retry_carries_what_was_sent_whatever_the_handler_did_to_its_message(room: Any) -> None:
    seen: list[tuple[str, bytes, int, str, dict[str, str]]] = []

    async def handle(message: Message) -> None:
        seen.append((message.id, message.payload, message.retried, message.route_key, dict(message.headers)))
        message.id, message.payload, message.retried, message.route_key = "x", b"x", 77, "x"
        message.headers.clear()
        message.headers["x"] = "x"
        raise ValueError("no")

    room.process(handle, retry=fixed(1.0, attempts=3))
    begun = room.clock.time()
    await room.send("m", route_key="eu", headers={"trace": "t"})
    await room.advance(5.0)
    assert [one[:4] for one in seen] == [("m", b"1", retried, "eu") for retried in (0, 1, 2)]
    first, *later = [one[4] for one in seen]
    assert first == {"trace": "t"}
    for headers in later:
        assert headers["trace"] == "t"
        assert float(headers[FIRST_FAILED]) == pytest.approx(begun, abs=0.01)
    [letter] = await room.letters.find()
    assert (letter.message_id, letter.attempts) == ("m", 3)


async def test_a_retry_is_published_before_its_key_is_released(room: Any) -> None:
    async def handle(message: Message) -> None:
        raise ValueError("no")

    room.process(handle, retry=fixed(100.0, attempts=3))
    await room.send("m")
    assert room.calls.index("Move") < room.calls.index("release")


async def test_a_dead_letter_is_stored_before_its_key_is_released_before_the_ack(room: Any) -> None:
    async def handle(message: Message) -> None:
        raise Reject("no")

    room.process(handle)
    await room.send("m")
    assert room.calls.index("store") < room.calls.index("release") < room.calls.index("Ack")


async def test_a_dead_letter_that_cannot_be_stored_is_not_acked(room: Any) -> None:
    async def handle(message: Message) -> None:
        raise Reject("no")

    room.process(handle)
    room.letters.failing["store"] = 1
    await room.send("m")
    assert "Ack" not in room.calls
    assert await room.stats() == (0, 1, 0)
    await room.advance(LEASE + 2.0)
    assert [letter.message_id for letter in await room.dead()] == ["m"]


async def test_a_replay_begins_its_attempts_and_its_starts_anew(room: Any) -> None:
    attempts: list[int] = []

    async def handle(message: Message) -> None:
        attempts.append(message.retried)
        assert FIRST_FAILED not in message.headers or message.retried
        raise ValueError("no")

    room.process(handle, retry=fixed(1.0, attempts=2))
    await room.send("m")
    await room.advance(5.0)
    [letter] = await room.dead()
    await room.begun("m", 4)  # it would be taken for poison
    await room.engine.dead_letters.mark_for_retry("jobs", [letter.key])
    await room.advance(5.0)
    assert attempts == [0, 1, 0, 1]
    [letter] = await room.dead()
    assert "ValueError" in letter.reason


async def test_deleting_a_letter_touches_no_key(room: Any) -> None:
    seen: list[Message] = []
    room.process(noting(seen), retry=never())
    await room.send("m", b"1")
    await room.send("m", b"2")
    [letter] = await room.dead()
    assert await room.engine.dead_letters.delete("jobs", [letter.key]) == 1
    assert await room.state("m") == "done"
    await room.send("m", b"1")
    assert len(seen) == 1, "it is still known to be handled"


async def test_a_leftover_copy_of_a_dead_letter_gets_one_more_try_and_its_row_absorbs_it(room: Any) -> None:
    seen: list[Message] = []

    async def handle(message: Message) -> None:
        seen.append(message)
        raise Reject("no")

    room.process(handle)
    await room.send("m")
    await room.send("m")
    assert len(seen) == 2
    assert len(await room.dead()) == 1
    assert await room.stats() == (0, 0, 0)


# -------------------------------------------------------------------------------------------------- already handled


async def already(answers: list[Any], message: Message) -> Any:
    answer = answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize("doubt", [None, ConnectionError("down")], ids=["None", "an exception"])
async def test_already_handled_that_does_not_know_is_asked_again_after_a_delay(room: Any, doubt: Any) -> None:
    seen: list[Message] = []
    answers: list[Any] = [doubt, doubt, False]

    async def asked(message: Message) -> Any:
        return await already(answers, message)

    await room.begun("m", 1)
    room.process(noting(seen), already_handled=asked)
    await room.send("m")
    assert seen == []
    assert await room.stats() == (0, 0, 1)
    assert await room.state("m") == "free", "released, so that any process may ask"
    await room.advance(5.0)
    assert (seen, len(answers)) == ([], 1)
    await room.advance(5.0)
    assert [message.retried for message in seen] == [0], "that was no attempt"


async def test_already_handled_true_completes_and_acks_without_handling(room: Any) -> None:
    seen: list[Message] = []
    answers: list[Any] = [True]

    async def asked(message: Message) -> Any:
        return await already(answers, message)

    await room.begun("m", 1)
    room.process(noting(seen), already_handled=asked)
    await room.send("m")
    assert seen == []
    assert await room.state("m") == "done"
    assert await room.stats() == (0, 0, 0)


async def test_already_handled_is_not_asked_about_what_was_never_begun(room: Any) -> None:
    seen: list[Message] = []

    async def asked(message: Message) -> bool:
        raise AssertionError("it was asked")

    room.process(noting(seen), already_handled=asked)
    await room.send("m")
    assert len(seen) == 1


@pytest.mark.parametrize("swallows", [False, True], ids=["cancelled", "answers all the same"])
async def test_what_is_fenced_off_while_already_handled_is_asked_is_not_handled_and_settles_nothing(
    room: Any, swallows: bool
) -> None:
    seen: list[Message] = []
    asked: list[str] = []

    async def ask(message: Message) -> bool:
        asked.append(message.id)
        try:
            await sleep(room.clock, 1000.0)
        except asyncio.CancelledError:
            asked.append("cancelled")
            if not swallows:
                raise
        return False

    await room.begun("m", 1)
    room.process(noting(seen), already_handled=ask, concurrency=1)
    await room.send("m")
    token = await room.take_over("m")
    room.calls.clear()
    await room.advance(LEASE / 3)
    assert (asked, seen) == (["m", "cancelled"], [])
    assert not {"Ack", "Nack", "Move", "release", "complete", "store"} & set(room.calls)
    assert await room.engine.idempotency.complete([(token, 1000.0)]) == [True]
    await room.send("n")
    assert [message.id for message in seen] == ["n"], "its one worker goes on"


@pytest.mark.parametrize("swallows", [False, True], ids=["cancelled", "answers all the same"])
async def test_a_stop_ends_a_question_that_hangs_and_its_message_goes_back(room: Any, swallows: bool) -> None:
    seen: list[Message] = []
    asked: list[str] = []

    async def ask(message: Message) -> bool:
        asked.append(message.id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not swallows:
                raise
        return False

    await room.begun("m", 1)
    receiver = room.process(noting(seen), already_handled=ask)
    await room.send("m")
    await stopped(room, receiver, 0.5)
    assert (asked, seen) == (["m"], [])
    assert await room.stats() == (1, 0, 0), "back, at once"
    assert await room.state("m") == "free"


async def test_already_handled_that_awaited_what_was_cancelled_does_not_know(room: Any) -> None:
    seen: list[Message] = []
    answers: list[Any] = []

    async def ask(message: Message) -> bool:
        answers.append(message)
        if len(answers) == 1:
            raise asyncio.CancelledError
        return False

    await room.begun("m", 1)
    room.process(noting(seen), already_handled=ask)
    await room.send("m")
    assert await room.stats() == (0, 0, 1), "back, with a delay"
    await room.advance(5.0)
    assert [message.retried for message in seen] == [0]

"""What an engine or a storage refuses for good is neither lost nor tried in a loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from easybus.engines.contract import DeadLetter, DeclareQueue
from easybus.engines.memory import driver as memory
from easybus.errors import Refused, Reject, Retry, TooLarge
from easybus.message import FIRST_FAILED, Message
from easybus.receiving.retry import fixed, never

PAYLOAD = b"p" * 900


def failing(seen: list[Message], error: Exception | None = None) -> Callable[[Message], Any]:
    async def handle(message: Message) -> None:
        seen.append(message)
        raise error or ValueError("every time")

    return handle


def takes(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """The engine takes messages of so many bytes."""
    monkeypatch.setattr(memory, "CAPS", dataclasses.replace(memory.CAPS, max_body=most))


def size(id: str) -> int:
    return len(Message(id=id, payload=PAYLOAD).to_bytes())


@pytest.mark.parametrize("copying", [False, True], ids=["moved", "copied"])
async def test_a_message_that_outgrows_the_engine_at_its_retry_is_a_dead_letter_that_says_so(
    room: Any, monkeypatch: pytest.MonkeyPatch, copying: bool
) -> None:
    seen: list[Message] = []
    takes(monkeypatch, size("m"))
    if copying:
        room.driver.caps = dataclasses.replace(memory.CAPS, atomic_move=False)
    room.process(failing(seen), retry=fixed(1.0, attempts=8))
    await room.send("m", PAYLOAD)
    await room.advance(100.0)
    assert len(seen) == 1
    [letter] = await room.dead()
    assert letter.reason.startswith("ValueError: every time; it cannot be retried: ")
    assert (letter.error_type, letter.error, letter.attempts) == ("builtins.ValueError", "every time", 1)
    assert 'raise error or ValueError("every time")' in letter.traceback
    assert Message.from_bytes(letter.body) == Message(id="m", payload=PAYLOAD)
    assert await room.state("m") == "free", "store, release, ack"
    assert room.calls.index("store") < room.calls.index("release") < room.calls.index("Ack")
    assert await room.stats() == (0, 0, 0)


async def test_a_retry_later_than_the_engine_can_is_a_dead_letter_and_its_neighbours_are_retried(room: Any) -> None:
    seen: list[Message] = []

    async def handle(message: Message) -> None:
        seen.append(message)
        if message.id == "never":
            raise Retry("in the next century", after=4e9)
        if not message.retried:
            raise ValueError("the first time")

    for name in ("a", "never", "b"):
        await room.send(name)
    room.process(handle, retry=fixed(1.0, attempts=8))
    await room.advance(100.0)
    assert [message.id for message in seen] == ["a", "never", "b", "a", "b"]
    [letter] = await room.dead()
    assert (letter.message_id, letter.error) == ("never", "in the next century")
    assert "it cannot be retried" in letter.reason
    assert await room.stats() == (0, 0, 0)


async def test_an_outage_at_the_retry_makes_no_dead_letter(room: Any) -> None:
    seen: list[Message] = []
    room.process(failing(seen), retry=fixed(1.0, attempts=2))
    room.driver.failing["settle"] = 1
    await room.send("m")
    await room.advance(0)
    assert await room.dead() == []
    assert await room.stats() == (0, 1, 0), "left to its lease"
    await room.advance(30.0)
    assert [message.retried for message in seen] == [0, 0, 1]
    assert len(await room.dead()) == 1


async def test_a_letter_that_its_storage_refuses_whole_is_kept_without_its_details(
    room: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Message] = []
    storage = room.engine.dead_letters
    store = storage.store

    async def small(letter: DeadLetter) -> str:
        if letter.traceback or len(letter.error) > 300:
            raise TooLarge("a letter of that size")
        return await store(letter)

    monkeypatch.setattr(storage, "store", small)
    room.process(failing(seen, ValueError("x" * 5000)), retry=never())
    await room.send("m", PAYLOAD)
    await room.advance(0)
    [letter] = await room.dead()
    assert letter.reason == ("ValueError: " + "x" * 5000)[:200]
    assert (letter.error, letter.traceback) == ("x" * 200, "")
    assert Message.from_bytes(letter.body).payload == PAYLOAD
    assert await room.stats() == (0, 0, 0)
    assert "kept without its details: a letter of that size" in caplog.text


@pytest.mark.timeout(300)  # hours of virtual time: a minute on asyncio's debug loop
async def test_a_message_that_nothing_keeps_as_a_dead_letter_stays_is_said_once_and_tried_later_each_time(
    room: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []

    async def handle(message: Message) -> None:
        seen.append(room.clock.time())
        raise Reject("no")

    async def refuse(letter: DeadLetter) -> str:
        raise Refused("no letters here")

    with monkeypatch.context() as patch:
        patch.setattr(room.engine.dead_letters, "store", refuse)
        room.process(handle)
        began = room.clock.time()
        await room.send("m")
        await room.send("other")
        await room.advance(4 * 3600.0)
    assert await room.stats() == (0, 0, 2), "never lost"
    assert await room.state("m") == "free"
    assert [round(at - began) for at in seen[::2]] == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2, said
    assert all("cannot be kept as a dead letter" in one and "no letters here" in one for one in said)
    await room.advance(3600.0)
    assert sorted(letter.message_id for letter in await room.dead()) == ["m", "other"]
    assert await room.stats() == (0, 0, 0)


@pytest.mark.parametrize(("most", "kept"), [(20_000, "whole"), (2_900, "cut"), (1_400, "bare")], ids=str)
async def test_a_dead_letter_too_large_for_its_queue_goes_there_without_its_details_or_as_it_came(
    room: Any, monkeypatch: pytest.MonkeyPatch, most: int, kept: str
) -> None:
    await room.engine.driver.declare([DeclareQueue("jobs.dead")])
    takes(monkeypatch, most)
    room.process(failing([], ValueError("x" * 5000)), retry=never(), in_queue=True)
    await room.send("m", PAYLOAD)
    await room.advance(0)
    assert await room.stats() == (0, 0, 0)
    [delivery] = await room.engine.driver.fetch("jobs.dead", 10, 0.0, 60.0)
    message = Message(id="m", payload=PAYLOAD)
    if kept == "bare":
        assert delivery.body == message.to_bytes()
        return
    letter = msgspec.json.decode(delivery.body, type=DeadLetter)
    assert letter.body == message.to_bytes()
    assert letter.error == "x" * (5000 if kept == "whole" else 200)
    assert bool(letter.traceback) is (kept == "whole")


async def test_a_dead_letter_whose_queue_is_gone_stays_in_its_own_until_it_is_there(room: Any) -> None:
    room.process(failing([]), retry=never(), in_queue=True)
    await room.send("m")
    assert await room.stats() == (0, 0, 1), "jobs.dead is not declared"
    await room.engine.driver.declare([DeclareQueue("jobs.dead")])
    await room.advance(60.0)
    assert await room.stats() == (0, 0, 0)
    assert (await room.engine.driver.stats("jobs.dead")).ready == 1


async def test_a_replay_that_outgrows_the_engine_is_marked_no_more_and_the_letter_says_why(
    room: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    letters = room.engine.dead_letters
    takes(monkeypatch, size("m"))
    room.process(failing([]), retry=never())
    await room.send("m", PAYLOAD)
    await room.advance(0)
    [letter] = await room.dead()
    for _ in range(2):
        await letters.mark_for_retry("jobs", [letter.key])
        await room.advance(60.0)
    [kept] = await room.dead()
    assert not kept.marked
    assert kept.reason.startswith("ValueError: every time; it cannot be replayed: ")
    assert kept.reason.count("it cannot be replayed") == 1
    assert (kept.error, kept.attempts, kept.body) == (letter.error, 1, letter.body)
    assert len([one for one in caplog.records if "cannot be replayed, and is marked no more" in one.message]) == 2
    takes(monkeypatch, size("m") + 100)
    await letters.mark_for_retry("jobs", [letter.key])
    await room.advance(2.0)
    assert "it cannot be replayed" not in (await room.dead())[0].reason, "replayed, and it failed again"


async def test_an_outage_at_the_replay_leaves_the_mark(room: Any) -> None:
    room.process(failing([]), retry=never())
    await room.send("m")
    [letter] = await room.dead()
    room.driver.failing["publish"] = 100
    await room.engine.dead_letters.mark_for_retry("jobs", [letter.key])
    await room.advance(5.0)
    [kept] = await room.dead()
    assert kept.marked
    assert kept.reason == "ValueError: every time"


async def test_an_error_that_is_no_text_is_kept_as_text(room: Any) -> None:
    name = "caf\udce9\0.txt"  # as the system names a file whose name is no UTF-8
    room.process(failing([], ValueError(f"no such file: {name}")), retry=never())
    await room.send("m")
    [letter] = await room.dead()
    for text in (letter.reason, letter.error, letter.traceback):
        text.encode()
    assert letter.error == "no such file: caf\\udce9\0.txt"


class Mute(Exception):
    """Its text is an error."""

    def __str__(self) -> str:
        raise self


class MuteReject(Mute, Reject):
    """Likewise."""


async def test_an_error_that_cannot_be_shown_is_retried_by_its_policy_and_kept(room: Any) -> None:
    seen: list[Message] = []
    room.process(failing(seen, Mute()), retry={Mute: fixed(2.0, attempts=3)})
    await room.send("m")
    await room.advance(5.0)
    assert [message.retried for message in seen] == [0, 1, 2]
    [letter] = await room.dead()
    assert (letter.reason, letter.error) == ("Mute: <what it says cannot be shown>", "<what it says cannot be shown>")
    assert letter.error_type.endswith(".Mute")
    assert await room.stats() == (0, 0, 0)


async def test_a_reject_that_cannot_be_shown_is_a_dead_letter(room: Any) -> None:
    room.process(failing([], MuteReject()))
    await room.send("m")
    assert [letter.reason for letter in await room.dead()] == ["<what it says cannot be shown>"]


@pytest.mark.parametrize("where", ["the retry policy", "already_handled"])
async def test_what_else_of_a_user_raises_an_error_that_cannot_be_shown_is_said(
    room: Any, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def raises(_: object) -> Any:
        raise Mute

    if where == "the retry policy":
        room.process(failing([]), retry=raises)
    else:
        await room.begun("m", 1)
        room.process(failing([]), already_handled=raises)
    await room.send("m")
    for _ in range(2000):  # of a plain function's thread
        if await room.stats() == (0, 0, 1):
            break
        await asyncio.sleep(0.001)
    assert await room.stats() == (0, 0, 1), "back, with a delay"
    assert f"{where} of queue 'jobs' failed" in caplog.text
    assert "Mute: <what it says cannot be shown>" in caplog.text


async def test_what_failed_before_is_said_by_a_letter_that_outgrew_the_engine_later(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Message] = []
    room.process(failing(seen), retry=fixed(1.0, attempts=20))
    await room.send("m", PAYLOAD)
    await room.advance(8.5)
    assert len(seen) == 9
    takes(monkeypatch, len(seen[-1].to_bytes()))  # a tenth retry has one digit more
    await room.advance(100.0)
    [letter] = await room.dead()
    assert letter.attempts == 10
    assert letter.first_failed == pytest.approx(float(seen[-1].headers[FIRST_FAILED]))

"""The layer below the bus, used by itself: what answers to the original API works, row by row."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from easybus import ConfigurationError, NotDeclared, NotOpen, Reject, fixed, never
from easybus.connection import Publisher
from easybus.parts import (
    Engine,
    Handler,
    Message,
    Sender,
    TxOptions,
    acquire,
    connect,
    create_queue,
    create_topic,
    receive_message,
    release,
    send_to_queue,
    send_to_topic,
    subscribe,
    unsubscribe,
)


@pytest.fixture(params=["memory", "sqlite"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    engine = connect("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/parts.db")
    await engine.open()
    yield engine
    await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(handler: Handler) -> AsyncIterator[None]:
    await handler.prepare()
    task = asyncio.create_task(handler.run())
    try:
        yield
    finally:
        await handler.stop()
        await task


def test_a_url_that_names_no_engine_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match="sqlite://"):
        connect("kafka://localhost")


async def test_what_a_sender_sends_a_subscribed_handler_handles_once(engine: Engine) -> None:
    assert engine.driver is not None
    seen: list[tuple[str, str]] = []

    async def handle(message: Message) -> None:
        seen.append((message.decode(str), message.route_key))

    handler = Handler("receipts", handle, engine.driver, subscribe=[("orders", "paid.#")],
                      idempotency=engine.idempotency, dead_letters=engine.dead_letters)  # fmt: skip
    sender = Sender("orders", engine.driver)
    await sender.prepare()
    async with running(handler):
        await sender.send(Message.new("one", id="1", route_key="paid.eu"))
        await sender.send(Message.new("one", id="1", route_key="paid.eu"))
        await sender.send(Message.new("two", route_key="refused"))
        await sender.send(Message.new("three", route_key="paid"))
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == [("one", "paid.eu"), ("three", "paid")]
    stats = await engine.driver.stats("receipts")
    assert (stats.ready, stats.in_flight) == (0, 0)
    await sender.stop()


async def test_a_failing_message_is_retried_and_then_kept(engine: Engine) -> None:
    assert engine.driver is not None
    assert engine.dead_letters is not None
    attempts: list[int] = []

    def handle(message: Message) -> bool:
        attempts.append(message.retried)
        return False

    handler = Handler("jobs", handle, engine.driver, retry=fixed(0.01, attempts=3),
                      idempotency=engine.idempotency, dead_letters=engine.dead_letters)  # fmt: skip
    async with running(handler):
        await send_to_queue(engine.driver, "jobs", Message.new("x", id="m").to_bytes())
        while not await engine.dead_letters.count():
            await asyncio.sleep(0.005)
    assert attempts == [0, 1, 2]
    [letter] = await engine.dead_letters.find("jobs")
    assert (letter.message_id, letter.attempts) == ("m", 3)


async def test_without_a_storage_dead_letters_go_to_a_queue_of_their_own(engine: Engine) -> None:
    assert engine.driver is not None

    async def handle(message: Message) -> None:
        raise Reject("no")

    async with running(Handler("jobs", handle, engine.driver, retry=never())):
        await send_to_queue(engine.driver, "jobs", Message.new("x", id="m").to_bytes())
        while not (await engine.driver.stats("jobs.dead")).ready:
            await asyncio.sleep(0.005)
    assert (await engine.driver.stats("jobs")).in_flight == 0


async def test_a_message_with_local_work_is_sent_if_the_work_takes_place(engine: Engine) -> None:
    assert engine.driver is not None
    sent: list[str] = []

    async def handle(message: Message) -> None:
        sent.append(message.id)

    tx = TxOptions(timeout=5, committed=lambda message: None, storage=engine.transactions)
    sender = Sender("orders", engine.driver, tx=tx)
    await sender.prepare()
    async with running(Handler("receipts", handle, engine.driver, subscribe=[("orders", "#")])):
        await sender.send(Message.new(1, id="yes"), lambda message: True)
        await sender.send(Message.new(2, id="no"), lambda message: False)
        await sender.send(Message.new(3, id="last"), lambda message: True)
        await until(lambda: "last" in sent)
    assert sorted(sent) == ["last", "yes"]
    assert engine.transactions is not None
    assert await engine.transactions.find() == []
    await sender.stop()
    await sender.wait()


async def test_a_stopped_handler_says_so(engine: Engine) -> None:
    assert engine.driver is not None

    async def handle(message: Message) -> None: ...

    handler = Handler("jobs", handle, engine.driver)
    async with running(handler):
        pass
    await handler.wait()
    with pytest.raises(NotOpen, match="make another"):
        await handler.prepare()


@pytest.mark.parametrize("kind", [Handler, Sender])
async def test_a_stop_ends_though_a_library_swallows_its_cancellation(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: type[Handler | Sender]
) -> None:
    assert engine.driver is not None
    swallowed: list[str] = []

    async def pump(publisher: Publisher) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        swallowed.append("once")
        await asyncio.Event().wait()

    async def handle(message: Message) -> None: ...

    monkeypatch.setattr(Publisher, "pump", pump)
    part = Sender("orders", engine.driver) if kind is Sender else Handler("jobs", handle, engine.driver)
    await part.prepare()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await part.stop()
    assert swallowed == ["once"]


async def test_the_drivers_seven_calls_by_their_names(engine: Engine) -> None:
    driver = engine.driver
    assert driver is not None
    await create_queue(driver, "jobs")
    await create_topic(driver, "orders")
    await subscribe(driver, "orders", "jobs", "paid.*")
    await send_to_topic(driver, "orders", b"by topic", "paid.eu")
    await unsubscribe(driver, "orders", "jobs", "paid.*")
    await send_to_topic(driver, "orders", b"nowhere", "paid.eu")
    await send_to_queue(driver, "jobs", b"by queue")
    await send_to_queue(driver, "jobs", b"late", delay=3600)
    with pytest.raises(NotDeclared):
        await send_to_queue(driver, "no such queue", b"x")
    seen: list[bytes] = []
    errors: list[Exception] = []

    def handle(body: bytes) -> bool:
        seen.append(body)
        if seen.count(body) == 1:
            raise ValueError("once")
        return True

    task = asyncio.create_task(receive_message(driver, "jobs", handle, on_error=errors.append))
    await until(lambda: len(seen) == 4)
    while (await driver.stats("jobs")).in_flight:
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(seen) == [b"by queue", b"by queue", b"by topic", b"by topic"]
    assert [str(error) for error in errors] == ["once", "once"]
    assert (await driver.stats("jobs")).delayed == 1


async def test_a_key_is_acquired_by_one_until_it_is_released(engine: Engine) -> None:
    storage = engine.idempotency
    assert storage is not None
    token = await acquire(storage, "key")
    assert token is not None
    assert await acquire(storage, "key") is None
    assert await release(storage, token)
    assert not await release(storage, token)
    assert await acquire(storage, "key") is not None

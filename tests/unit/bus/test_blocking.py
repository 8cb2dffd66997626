"""The bus without await, and plain tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest

from easybus import Bus, Message, NotOpen, Outgoing, Rollback, Unavailable, never
from easybus.engines.sqlite.connect import patiently
from easybus.testing import BlockingHarness

T = TypeVar("T")


@dataclass
class Job:
    id: int


def test_blocking_calls_send_and_look(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", Job)
    try:
        bus.blocking.send(jobs, Job(1), id="one")
        bus.blocking.send_many(jobs, [Job(2), Outgoing(Job(3), delay=60)])
        stats = bus.blocking.call(bus.opened.driver.stats("jobs"))
        assert (stats.ready, stats.delayed) == (2, 1)
        assert bus.dead_letters is not None
        assert bus.blocking.call(bus.dead_letters.count()) == {}
        assert bus.blocking.call(bus.driver.stats("jobs")) == stats
    finally:
        bus.blocking.close()
    assert not [one for one in threading.enumerate() if one.name == "easybus"]


def test_the_first_call_may_lie_inside_a_transaction_that_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in web workers, which open the bus when they first send. What must be made first cannot be, and is told."""
    monkeypatch.setattr(patiently, "__defaults__", (1.0,))
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    topic, jobs = bus.topic("events", Job), bus.queue("jobs", Job)

    @topic.handler("audit", route_key="paid.#")
    def audit(event: Job) -> None: ...

    db = apsw.Connection(f"{tmp_path}/bus.db")
    db.execute("PRAGMA journal_mode=WAL")
    try:
        with db:
            db.execute("CREATE TABLE mine (id INTEGER)")
            with pytest.raises(Unavailable, match=r"bus\.blocking\.open\(\)"):
                bus.blocking.send(jobs, Job(1), within=db)
        bus.blocking.open()
        bus.blocking.close()
        with db:
            db.execute("INSERT INTO mine VALUES (1)")
            bus.blocking.send(jobs, Job(1), within=db)
        assert bus.blocking.call(bus.outboxes[0].find()) or bus.blocking.call(bus.driver.stats("jobs")).ready
    finally:
        bus.blocking.close()
        db.close()


def test_a_blocking_transaction_publishes_or_rolls_back(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    topic = bus.topic("events", Job)

    @topic.committed
    async def committed(event: Job) -> bool | None:
        return None

    @topic.handler("jobs")
    async def handle(event: Job) -> None: ...

    try:
        with bus.blocking.transaction(topic, Job(1)):
            pass
        with bus.blocking.transaction(topic, Job(2)):
            raise Rollback
        with pytest.raises(ValueError, match="no"), bus.blocking.transaction(topic, Job(3)):
            raise ValueError("no")
        assert bus.blocking.call(bus.opened.driver.stats("jobs")).ready == 1
    finally:
        bus.blocking.close()


def test_on_a_loop_blocking_says_to_write_await() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", Job)

    async def main() -> None:
        async with bus:
            with pytest.raises(NotOpen, match="await"):
                bus.blocking.send(jobs, Job(1))

    asyncio.run(main())


def test_a_sync_handler_may_send_by_the_blocking_face() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", Job)
    more = bus.queue("more", Job)
    done: list[int] = []

    @jobs.handler()
    def handle(event: Job) -> None:
        bus.blocking.send(more, Job(event.id + 1))

    @more.handler()
    def handle_more(event: Job) -> None:
        done.append(event.id)

    with bus.testing().blocking as t:
        bus.blocking.send(jobs, Job(1))
        t.drain()
        assert done == [2]
        assert t.sent(more).values == [Job(2)]


def test_the_plain_fixture(easybus_testing_blocking: Callable[..., BlockingHarness]) -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", Job)

    @jobs.handler(retry=never())
    def handle(event: Job) -> None:
        raise ValueError("no")

    t = easybus_testing_blocking(bus)
    bus.blocking.send(jobs, Job(1))
    t.advance(minutes=1)
    assert len(t.dead("jobs")) == 1
    assert [str(error) for error in t.failures] == ["no"]


def in_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` returns or raises in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def still(future: Future[T]) -> None:
    """It is under way, and had the time to end."""
    with pytest.raises(TimeoutError):
        future.result(0.2)


def test_threads_that_come_first_together_share_one_blocking_bus() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", Job)
    together = threading.Barrier(8)

    def send() -> Message:
        together.wait(5.0)
        return bus.blocking.send(jobs, Job(1))

    try:
        sends = [in_thread(send) for _ in range(8)]
        assert len({send.result(5.0).id for send in sends}) == 8
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 8
        assert [one.name for one in threading.enumerate()].count("easybus") == 1
    finally:
        bus.blocking.close()


def test_closing_waits_for_calls_under_way(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", Job)
    begun, go_on = threading.Event(), threading.Event()

    async def call() -> str:
        begun.set()
        await asyncio.to_thread(go_on.wait, 5.0)
        return (await bus.send(jobs, Job(1))).id

    called = in_thread(lambda: bus.blocking.call(call()))
    assert begun.wait(5.0)
    closed = in_thread(bus.blocking.close)
    still(closed)
    go_on.set()
    assert called.result(5.0)
    closed.result(5.0)
    assert not bus.is_open


def test_closing_waits_for_a_transaction_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    topic = bus.topic("events", Job)

    @topic.committed
    async def committed(event: Job) -> bool | None:
        return None

    @topic.handler("jobs")
    def handle(event: Job) -> None: ...

    try:
        with bus.blocking.transaction(topic, Job(1)):
            closed = in_thread(bus.blocking.close)
            still(closed)
        closed.result(5.0)
        bus.blocking.open()
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 1
        monkeypatch.setattr("easybus.blocking._CLOSING", 0.2)
        with (
            pytest.raises(Unavailable, match="closed while this call was under way"),
            bus.blocking.transaction(topic, Job(2)),
        ):
            bus.blocking.close()
        bus.blocking.open()
        storage = bus.opened.storage.transactions
        assert storage is not None
        halves = bus.blocking.call(storage.find())
        assert [half.error for half in halves] == ["CancelledError"], "its work may have been done: it is asked about"
    finally:
        bus.blocking.close()


def test_a_call_that_outlasts_the_patience_of_closing_ends_with_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easybus.blocking._CLOSING", 0.2)
    bus = Bus("memory://")
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    called = in_thread(lambda: bus.blocking.call(forever()))
    assert begun.wait(5.0)
    bus.blocking.close()
    with pytest.raises(Unavailable, match="closed while this call was under way"):
        called.result(5.0)


def test_closing_waits_for_rows_that_are_being_written(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Bus):
        def write_within(self, *given: Any) -> list[Message]:
            begun.set()
            assert go_on.wait(5.0)
            return super().write_within(*given)

    bus = Slow(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", Job)
    bus.blocking.open()
    db = apsw.Connection(f"{tmp_path}/bus.db")

    def send() -> Message:
        with db:
            return bus.blocking.send(jobs, Job(1), within=db)

    sent = in_thread(send)
    assert begun.wait(5.0)
    closed = in_thread(bus.blocking.close)
    still(closed)
    go_on.set()
    assert sent.result(5.0).id
    closed.result(5.0)
    db.close()


def test_what_comes_while_the_bus_closes_waits_and_opens_it_again(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", Job)
    go_on = threading.Event()
    bus.blocking.open()
    bus.opened.loop.call_soon_threadsafe(go_on.wait, 5.0)  # closing comes after it
    closed = in_thread(bus.blocking.close)
    still(closed)
    sent = in_thread(lambda: bus.blocking.send(jobs, Job(1)))
    still(sent)
    go_on.set()
    try:
        closed.result(5.0)
        assert sent.result(5.0).id
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 1
    finally:
        bus.blocking.close()


def test_closing_on_the_loop_that_it_would_wait_for_is_an_error() -> None:
    bus = Bus("memory://")

    async def close() -> None:
        bus.blocking.close()

    try:
        with pytest.raises(NotOpen, match="call it from another thread"):
            bus.blocking.call(close())
        assert bus.is_open
    finally:
        bus.blocking.close()

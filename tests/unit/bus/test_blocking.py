"""The bus without await, and plain tests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from easybus import Bus, NotOpen, Outgoing, Rollback, Unavailable, never
from easybus.engines.sqlite.connect import patiently
from easybus.testing import BlockingHarness


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


def test_after_a_fork_both_sides_can_send(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", Job)
    bus.blocking.send(jobs, Job(1))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            bus.blocking.send(jobs, Job(2))
            bus.blocking.close()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    try:
        bus.blocking.send(jobs, Job(3))
        assert bus.blocking.call(bus.opened.driver.stats("jobs")).ready == 3
    finally:
        bus.blocking.close()

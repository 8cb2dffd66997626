"""`bus.check()`: what is promised, and every contradiction, each with what would be without it."""

from __future__ import annotations

import logging
import sqlite3
from datetime import timedelta
from pathlib import Path

import apsw
import pytest

from easybus import Bus, ConfigurationError, exponential, fixed, never
from easybus.checking import Report
from easybus.clock import SystemClock
from easybus.engines.contract import DeclareQueue, Half
from easybus.engines.registry import create
from easybus.engines.sqlite import location
from easybus.promises import long


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_file_system", lambda _: "ext4")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


async def work(number: int) -> None:
    raise NotImplementedError


async def in_transaction(number: int, database: apsw.Connection) -> None:
    raise NotImplementedError


def contradictions(report: Report) -> list[tuple[str, str]]:
    assert report.ok is not bool(report.contradictions)
    return [(found.where, found.text) for found in report.contradictions]


def promised(report: Report, name: str, how: str) -> str:
    (found,) = (one for one in report.guarantees if (one.name, one.how) == (name, how))
    return found.says


async def test_every_sender_and_handler_has_its_promise_in_words(url: str) -> None:
    bus = Bus(url, service="shop")
    orders, emails = bus.topic("orders", int), bus.queue("emails", int)
    emails.handler(dedupe=timedelta(days=2), retry=fixed(5, attempts=3))(work)
    orders.handler("receipts", within=apsw.Connection)(in_transaction)
    orders.handler("stats", dedupe=None, retry=never())(work)
    orders.handler("asked", already_handled=lambda _: None)(work)
    orders.committed(lambda _: None)
    report = await bus.check(rate=10)
    assert contradictions(report) == []
    assert promised(report, "topic orders", "send") == "once confirmed, never lost in the queues bound by then"
    assert promised(report, "queue emails", "send") == "once confirmed, never lost"
    assert promised(report, "topic orders", "transaction").startswith("published if the work took place")
    assert promised(report, "any of them", "within=") == f"published if, and only if, the transaction in {url} commits"
    assert promised(report, "queue emails", "handle") == "at least once; copies are recognised for 2 days"
    assert promised(report, "queue receipts", "handle").startswith(f"exactly once in {url} ")
    assert promised(report, "queue stats", "handle") == "at least once; every copy is handled again"
    assert "already_handled is asked" in promised(report, "queue asked", "handle")
    kept = {one.name: (one.remembered, one.rows, one.failure) for one in report.guarantees if one.how == "handle"}
    assert kept["queue emails"] == (
        172_800,
        1_728_000,
        f"3 attempts over up to 10 seconds, then a dead letter in {url}",
    )
    assert kept["queue stats"] == (None, None, f"a dead letter at once, in {url}")


async def test_a_memory_shorter_than_retries_and_a_lease_is_a_contradiction(url: str) -> None:
    def report_of(dedupe: timedelta) -> Bus:
        bus = Bus(url)
        bus.queue("jobs", int).handler(retry=fixed(100, attempts=4), lease=30, dedupe=dedupe)(work)
        return bus

    assert contradictions(await report_of(timedelta(seconds=330)).check()) == []
    ((where, text),) = contradictions(await report_of(timedelta(seconds=329)).check())
    assert where == "queue jobs"
    assert "dedupe=timedelta(seconds=330)" in text


async def test_retries_without_an_end_are_a_note_since_no_memory_is_long_enough(url: str) -> None:
    bus = Bus(url)
    bus.queue("jobs", int).handler(retry=exponential(attempts=None))(work)
    bus.queue("own", int).handler(retry=lambda _: 5.0)(work)
    report = await bus.check()
    assert contradictions(report) == []
    assert [note.where for note in report.notes] == ["queue jobs", "queue own"]


async def test_memory_is_no_place_for_production_as_engine_or_as_storage(url: str) -> None:
    bus = Bus("memory://")
    bus.queue("jobs", int).handler(work)
    report = await bus.check()
    assert [where for where, _ in contradictions(report)] == ["memory://"]
    assert promised(report, "queue jobs", "send") == "lost with the process"
    assert promised(report, "queue jobs", "handle").startswith("as long as the process lives: at least once")
    beside = Bus(url, storage="memory://keys")
    beside.queue("jobs", int).handler(work)
    report = await beside.check()
    assert [where for where, _ in contradictions(report)] == ["memory://keys"]
    assert promised(report, "queue jobs", "send") == "once confirmed, never lost"
    assert promised(report, "queue jobs", "handle").startswith("as long as the process lives: ")


@pytest.mark.parametrize(
    ("lacks", "says"), [("dead_letters", "no dead letters"), ("idempotency", "no keys"), ("transactions", "no halves")]
)
async def test_a_storage_that_cannot_do_what_is_asked_is_a_contradiction(
    url: str, lacks: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poor(url: str, clock: SystemClock) -> object:
        engine = create(url, clock)
        setattr(engine, lacks, None)
        return engine

    monkeypatch.setattr("easybus.opened.registry.create", poor)
    bus = Bus(url)
    bus.topic("orders", int).committed(lambda _: None)
    bus.queue("jobs", int).handler(work)
    report = await bus.check()
    ((where, text),) = contradictions(report)
    assert where == "bus"
    assert says in text
    refused = ("topic orders", "transaction") if lacks == "transactions" else ("queue jobs", "handle")
    assert promised(report, *refused).startswith(("refused: ", "not handled: ")), "what is refused is not promised"
    with pytest.raises(ConfigurationError, match=says):
        async with bus:
            pass


async def test_halves_that_nobody_answers_for_are_a_contradiction(url: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    assert engine.transactions is not None
    for number, service, topic in [("1", "shop", "orders"), ("2", "shop", "orders"), ("3", "other", "news")]:
        await engine.transactions.store(Half(id=number, service=service, topic=topic, body=b""), 60.0)
    await engine.close()
    bus = Bus(url, service="shop")
    orders = bus.topic("orders", int)
    ((where, text),) = contradictions(await bus.check())
    assert where == "topic orders"
    assert text.startswith("2 of its transactions were left behind")
    assert contradictions(await bus.check(connect=False)) == []
    orders.committed(lambda _: None)
    assert contradictions(await bus.check()) == []


async def test_what_start_would_refuse_is_found_queue_by_queue(url: str) -> None:
    async def needs(number: int, price: float) -> None:
        raise NotImplementedError

    bus = Bus(url)
    one, two, three = bus.queue("one", int), bus.queue("two", int, str), bus.queue("three", int)
    one.handler(needs)
    two.handler(int, lease=10)(work)
    two.handler(str, lease=20)(work)
    three.handler(within=sqlite3.Connection)(work)
    found = contradictions(await bus.check())
    assert sorted(where for where, _ in found) == ["queue one", "queue three", "queue two"]
    texts = dict(found)
    assert "parameter 'price' is a float" in texts["queue one"]
    assert "lease=10 and lease=20" in texts["queue two"]
    assert "write within=apsw.Connection" in texts["queue three"]


async def test_a_handlers_transaction_in_another_database_than_the_storage_is_told(url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    bus = Bus(url, storage="memory://keys", databases=[other])
    bus.queue("jobs", int).handler(within=apsw.Connection)(in_transaction)
    texts = dict(contradictions(await bus.check()))
    assert "has no transaction that is a Connection" in texts["queue jobs"]
    assert f"it is one of {url}, but handled messages are marked in memory://keys" in texts["queue jobs"]
    assert "memory://keys" in texts


async def test_a_database_without_an_outbox_has_nothing_to_relay(url: str) -> None:
    texts = [text for _, text in contradictions(await Bus(url, databases=["memory://more"]).check())]
    assert any("takes no messages in transactions" in text for text in texts)


async def test_topics_of_others_and_delays_are_compared_with_what_is_there(url: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    assert engine.driver is not None
    await engine.driver.declare([DeclareQueue("late", 5.0)])
    await engine.close()
    bus = Bus(url)
    bus.queue("late", int, delay=6)
    bus.topic("shipments", int, declare=False)
    bus.topic("news", int)
    report = await bus.check()
    texts = dict(contradictions(report))
    assert "with a delay of 5 s" in texts["queue late"]
    assert "does not exist yet" in texts["topic shipments"]
    assert ("topic news", "no queue is bound to it yet: what is sent is kept nowhere") in [
        (note.where, note.text) for note in report.notes
    ]


async def test_names_and_delays_that_the_engine_cannot_hold_are_told() -> None:
    bus = Bus("memory://")
    bus.queue("q" * 5000, int)
    bus.queue("late", int, delay=1e12)
    wheres = [where for where, _ in contradictions(await bus.check(connect=False))]
    assert "queue " + "q" * 5000 in wheres
    assert "queue late" in wheres


async def test_settings_of_the_engines_are_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_file_system", lambda _: "tmpfs")
    ((where, text),) = contradictions(await Bus(url).check())
    assert where == url
    assert "lies in memory (tmpfs)" in text


async def test_what_settings_weaken_is_not_promised(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_file_system", lambda _: "tmpfs")
    bus = Bus(url)
    bus.queue("jobs", int).handler(work)
    report = await bus.check()
    assert promised(report, "queue jobs", "send") == "once confirmed, kept as far as its settings say"
    assert promised(report, "queue jobs", "handle").startswith("as far as its settings keep it: at least once")


async def test_an_engine_that_cannot_be_opened_is_told_beside_what_the_code_says(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/no-folder/shop.db"
    bus = Bus(url)
    bus.queue("jobs", int).handler(dedupe=timedelta(seconds=1))(work)
    found = contradictions(await bus.check())
    assert [where for where, _ in found] == [url, "queue jobs"]
    assert "cannot be opened" in found[0][1]
    assert [where for where, _ in contradictions(await bus.check(connect=False))] == ["queue jobs"]


async def test_checking_handles_nothing_sends_nothing_and_leaves_the_bus_as_it_was(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []
    bus = Bus(url)
    jobs = bus.queue("jobs", int)
    jobs.handler(dedupe=timedelta(seconds=1))(done.append)
    async with bus:
        await jobs.send(1)
        with caplog.at_level(logging.DEBUG, "easybus"):
            assert len((await bus.check()).contradictions) == 1
        assert caplog.records == []
        assert (await bus.driver.stats("jobs")).ready == 1
    assert done == []
    assert not bus.is_open


async def test_a_rate_that_is_none_is_refused(url: str) -> None:
    for rate in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="rate="):
            await Bus(url).check(rate=rate)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(86_400, "1 day"), (90, "90 seconds"), (60, "1 minute"), (4180, "69.7 minutes"), (9000, "2.5 hours")],
)
def test_lengths_of_time_are_in_words(seconds: float, words: str) -> None:
    assert long(seconds) == words

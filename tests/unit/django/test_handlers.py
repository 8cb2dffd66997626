"""Handlers in Django's atomic: their work, what they send, and their message's end are one commit, whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from tests.unit.django.conftest import Place
from tests.unit.django.shop.models import Payment
from tests.unit.transactions.shop import Shop

from easybus import Bus, ConfigurationError, fixed, never, points
from easybus.django.around import DjangoThreads
from easybus.engines.contract import QueueStats

WORKER = Path(__file__).with_name("worker.py")
POINTS = ["key.claimed", "within.effect", "within.done", "within.committed"]


class Ledger:
    """A bus, a queue of payments, and one that nobody handles."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.bus = Bus(place.url, retry=fixed(0.01, attempts=2))
        self.bus.threads = DjangoThreads
        self.shop = Shop(self.bus, place.url)
        self.payments = self.bus.queue("payments", int)

    def atomic(self, **options: Any) -> Any:
        return transaction.atomic(using=self.place.alias, **options)

    def write(self, amount: int) -> None:
        Payment.objects.using(self.place.alias).create(amount=amount)

    async def until(self, wanted: list[int], dead: int = 0) -> None:
        """Until the table holds this, no message is left, and so many are dead."""
        deadline = time.monotonic() + 15.0
        while True:
            found = await sync_to_async(self.place.payments)()
            stats = await self.bus.driver.stats("payments")
            letters = await self.bus.dead_letters.find()
            if found == wanted and stats == QueueStats(0, 0, 0) and len(letters) == dead:
                break
            assert time.monotonic() < deadline, (found, stats, [letter.reason for letter in letters])
            await asyncio.sleep(0.05)
        await sync_to_async(connections.close_all)()


@pytest.fixture
def ledger(place: Place) -> Ledger:
    return Ledger(place)


@pytest.fixture
def hook() -> Iterator[None]:
    yield
    points.hook = None


async def test_a_handlers_work_is_committed_with_its_message(ledger: Ledger) -> None:
    @ledger.payments.handler(within=ledger.atomic(), concurrency=3)
    def pay(amount: int) -> None:
        ledger.write(amount)
        ledger.bus.blocking.send(ledger.shop.orders, amount, within=connections[ledger.place.alias])

    async with ledger.bus.handling():
        await ledger.payments.send_many(list(range(12)))
        await ledger.until(list(range(12)))
        assert sorted(await ledger.shop.arrived(12)) == list(range(12))


async def test_a_handler_that_fails_leaves_nothing_of_its_work_and_of_what_it_sent(ledger: Ledger) -> None:
    @ledger.payments.handler(within=ledger.atomic())
    def pay(amount: int) -> bool:
        ledger.write(amount)
        ledger.bus.blocking.send(ledger.shop.orders, amount, within=connections[ledger.place.alias])
        if amount == 1:
            raise ValueError("rolled back")
        if amount == 2:
            transaction.set_rollback(True, using=ledger.place.alias)
        return amount != 3

    async with ledger.bus.handling():
        await ledger.payments.send_many([1, 2, 3, 4])
        await ledger.until([4], dead=3)
        assert await ledger.shop.arrived(1) == [4]
        assert await ledger.shop.nothing_waits()


async def test_a_savepoint_inside_a_handler_counts_alone(ledger: Ledger) -> None:
    @ledger.payments.handler(within=ledger.atomic())
    def pay(amount: int) -> None:
        ledger.write(amount)
        try:
            with ledger.atomic():
                ledger.write(-amount)
                raise ValueError("only this")
        except ValueError:
            return

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until([1])


async def test_a_handler_may_ask_for_its_connection_and_runs_in_the_thread_of_its_transaction(ledger: Ledger) -> None:
    asked: list[tuple[str, bool, str]] = []

    @ledger.payments.handler(within=ledger.atomic())
    def pay(amount: int, connection: BaseDatabaseWrapper) -> None:
        asked.append((connection.alias, connection.in_atomic_block, threading.current_thread().name))
        transaction.on_commit(
            lambda: asked.append(("committed", False, threading.current_thread().name)), using=ledger.place.alias
        )

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until([])
    (alias, atomic, name), (said, _, again) = asked
    assert (alias, atomic, said, name) == (ledger.place.alias, True, "committed", again)


async def test_what_fails_after_the_commit_undoes_nothing(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    later: list[int] = []

    @ledger.payments.handler(within=ledger.atomic())
    def pay(amount: int) -> None:
        ledger.write(amount)
        transaction.on_commit(lambda: later.append(1 // 0), using=ledger.place.alias)
        transaction.on_commit(lambda: later.append(amount), using=ledger.place.alias)

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until([1])
    assert later == [1]
    assert "on_commit failed; the message is handled" in caplog.text


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])  # SQLite has one writer: nobody else could meanwhile
async def test_a_worker_whose_claim_was_taken_over_cannot_commit(ledger: Ledger, hook: None) -> None:
    taken: list[str] = []

    @ledger.payments.handler(within=ledger.atomic())
    def pay(amount: int) -> None:
        ledger.write(amount)
        ledger.bus.blocking.send(ledger.shop.orders, amount, within=connections[ledger.place.alias])

    async def take_over(name: str) -> None:
        """Between the handler's work and DONE another worker handles the message to its end."""
        if name == "within.effect" and not taken:
            (hand,) = ledger.bus.running.receivers["payments"].at_work
            assert await ledger.bus.idempotency.complete([(hand.token, 60.0)]) == [True]
            taken.append(hand.token)

    points.hook = take_over
    async with ledger.bus.handling():
        await ledger.payments.send(7)
        async with asyncio.timeout(15):
            while not taken:
                await asyncio.sleep(0.02)
        await ledger.until([])
        assert await ledger.shop.nothing_waits()


async def test_a_handler_that_closes_its_connection_is_refused(ledger: Ledger) -> None:
    @ledger.payments.handler(within=ledger.atomic(), retry=never())
    def pay(amount: int) -> None:
        ledger.write(amount)
        connections[ledger.place.alias].close()

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until([], dead=1)
        (letter,) = await ledger.bus.dead_letters.find()
        assert "ended inside the handler" in letter.reason


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_connection_lost_at_the_commit_has_one_effect(ledger: Ledger, request: Any, hook: None) -> None:
    begun: list[int] = []
    own = "SELECT pg_backend_pid()" if ledger.place.kind == "postgresql" else "SELECT CONNECTION_ID()"

    @ledger.payments.handler(within=ledger.atomic(), lease=1)
    def pay(amount: int, connection: BaseDatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute(own)
            begun.append(cursor.fetchone()[0])
        ledger.write(amount)

    async def cut(name: str) -> None:
        if name != "within.done" or len(begun) != 1:
            return
        if ledger.place.kind == "postgresql":
            ask, statement = request.getfixturevalue("postgresql_server").psql, "SELECT pg_terminate_backend({}, 5000)"
        else:
            ask, statement = request.getfixturevalue("mariadb_server").sql, "KILL {}"
        await asyncio.to_thread(ask, statement.format(begun[0]))

    points.hook = cut
    async with ledger.bus.handling():
        await ledger.payments.send(7)
        await ledger.until([7])
    assert len(begun) == 2


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_the_server_ends_an_idle_handlers_transaction_within_the_lease(ledger: Ledger) -> None:
    said: list[str] = []
    shown = "SHOW idle_in_transaction_session_timeout"
    if ledger.place.kind == "mariadb":
        shown = "SELECT @@SESSION.wait_timeout"

    def ask(connection: BaseDatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute(shown)
            said.append(str(cursor.fetchone()[0]))

    connections.settings[ledger.place.alias]["CONN_MAX_AGE"] = None

    @ledger.payments.handler(within=ledger.atomic(), lease=7, concurrency=1)
    def pay(amount: int, connection: BaseDatabaseWrapper) -> None:
        ask(connection)

    @ledger.shop.orders.handler(concurrency=1)
    def look(number: int) -> None:
        ask(connections[ledger.place.alias])

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until([])
        await ledger.shop.orders.send(1)
        async with asyncio.timeout(15):
            while len(said) < 2:
                await asyncio.sleep(0.02)
    assert said[0] in ("7s", "7")
    assert said[1] in ("0", "28800")


async def starting(bus: Bus) -> None:
    async with bus.handling():
        raise AssertionError("it handles")


async def test_what_cannot_work_is_refused_at_the_start_with_what_to_write(ledger: Ledger) -> None:
    @ledger.payments.handler(within=transaction.atomic)  # the default database, and the bus is in another
    def pay(amount: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"transaction\.atomic: its database is not the bus's storage"):
        await starting(ledger.bus)

    other = Ledger(ledger.place)

    @other.payments.handler(within=other.atomic())
    async def pay_async(amount: int) -> None: ...

    with pytest.raises(ConfigurationError, match="write it without async"):
        await starting(other.bus)

    third = Ledger(ledger.place)
    third.payments.handler(within=transaction.on_commit)(lambda amount: None)
    with pytest.raises(ConfigurationError, match=r"it can be transaction\.atomic"):
        await starting(third.bus)


# ------------------------------------------------------------------------------------------------------ who is killed


def worker(place: Place, *words: str) -> list[str]:
    given = connections.settings[place.alias]
    return [sys.executable, str(WORKER), place.url, json.dumps(given), *words]


@pytest.mark.kills
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_any_point_has_one_effect(ledger: Ledger, point: str) -> None:
    @ledger.payments.handler(within=ledger.atomic(), lease=1)
    def pay(amount: int) -> None:
        ledger.write(amount)

    async with ledger.bus:
        await ledger.payments.send(7)
    killed = await asyncio.create_subprocess_exec(*worker(ledger.place, point))
    assert await asyncio.wait_for(killed.wait(), 30) == -signal.SIGKILL
    after = await sync_to_async(ledger.place.payments)()
    assert after == ([7] if point == "within.committed" else [])
    await sync_to_async(connections.close_all)()
    async with ledger.bus.handling():
        await ledger.until([7])


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_worker_that_stalled_past_its_lease_cannot_commit(ledger: Ledger) -> None:
    @ledger.payments.handler(within=ledger.atomic(), lease=1)
    def pay(amount: int) -> None:
        ledger.write(amount)

    async with ledger.bus:
        await ledger.payments.send(7)
    stalled = await asyncio.create_subprocess_exec(
        *worker(ledger.place, "within.effect", "stall"), stdout=asyncio.subprocess.PIPE
    )
    assert stalled.stdout is not None
    assert (await asyncio.wait_for(stalled.stdout.readline(), 30)).strip() == b"stalling"
    os.kill(stalled.pid, signal.SIGSTOP)
    try:
        async with ledger.bus.handling():
            await ledger.until([7])
    finally:
        os.kill(stalled.pid, signal.SIGCONT)
    assert await asyncio.wait_for(stalled.wait(), 30) == 0
    assert await sync_to_async(ledger.place.payments)() == [7]
    await sync_to_async(connections.close_all)()

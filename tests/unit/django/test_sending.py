"""Messages in Django's transactions: sent if, and only if, the caller's atomic block commits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction
from tests.unit.django.conftest import Place
from tests.unit.django.shop.models import Payment
from tests.unit.transactions.shop import Shop

from easybus import Bus, ConfigurationError


class Caller:
    """A bus without await, and a queue of it that nobody handles."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.shop = Shop(Bus(place.url, service="shop"), place.url)
        self.bus = self.shop.bus

    def send(self, number: int) -> None:
        self.bus.blocking.send(self.shop.orders, number, within=connections[self.place.alias])

    def atomic(self, **options: Any) -> Any:
        return transaction.atomic(using=self.place.alias, **options)

    def arrived(self, number: int) -> list[int]:
        return self.bus.blocking.call(self.shop.arrived(number))

    def nothing_waits(self) -> bool:
        return self.bus.blocking.call(self.shop.nothing_waits())


@pytest.fixture
def caller(place: Place) -> Iterator[Caller]:
    caller = Caller(place)
    caller.bus.blocking.open()
    yield caller
    caller.bus.blocking.close()


def test_a_committed_blocks_messages_are_published_in_their_order(caller: Caller) -> None:
    with caller.atomic():
        Payment.objects.using(caller.place.alias).create(amount=1)
        caller.send(1)
        caller.bus.blocking.send_many(caller.shop.orders, [2, 3], within=connections[caller.place.alias])
        assert caller.nothing_waits(), "it was published before the commit"
    assert caller.arrived(3) == [1, 2, 3]
    assert caller.place.payments() == [1]


def test_a_rolled_back_blocks_messages_never_existed(caller: Caller) -> None:
    with pytest.raises(ZeroDivisionError), caller.atomic():  # noqa: PT012
        caller.send(1)
        raise ZeroDivisionError
    with caller.atomic():
        caller.send(2)
        transaction.set_rollback(True, using=caller.place.alias)
    assert caller.nothing_waits()
    with caller.atomic():
        caller.send(3)
    assert caller.arrived(1) == [3]


def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(caller: Caller) -> None:
    with caller.atomic():
        caller.send(1)
        with pytest.raises(ZeroDivisionError), caller.atomic():  # noqa: PT012
            caller.send(2)
            raise ZeroDivisionError
        with caller.atomic():
            caller.send(3)
        caller.send(4)
    assert caller.arrived(3) == [1, 3, 4]


def test_outside_of_atomic_nothing_is_sent_and_the_error_shows_the_line(caller: Caller) -> None:
    line = rf"transaction\.atomic\(using='{caller.place.alias}'\)"
    with pytest.raises(ConfigurationError, match=line):
        caller.send(1)
    assert caller.nothing_waits()


def test_by_hand_without_autocommit_the_callers_commit_counts(caller: Caller) -> None:
    alias = caller.place.alias
    transaction.set_autocommit(False, using=alias)
    try:
        caller.send(1)
        transaction.rollback(using=alias)
        caller.send(2)
        transaction.commit(using=alias)
    finally:
        transaction.set_autocommit(True, using=alias)
    assert caller.arrived(1) == [2]


def test_a_commit_wakes_the_relays_and_a_rollback_does_not(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[float] = []
    monkeypatch.setattr(caller.bus.opened, "wake_relays", lambda: woken.append(time.monotonic()))
    with caller.atomic():
        caller.send(1)
        assert woken == []
    assert len(woken) == 1
    with pytest.raises(ZeroDivisionError), caller.atomic():  # noqa: PT012
        caller.send(2)
        raise ZeroDivisionError
    assert len(woken) == 1


def test_with_debug_on_djangos_log_of_statements_takes_ours(caller: Caller, settings_debug: None) -> None:
    with caller.atomic():
        caller.send(1)
    assert caller.arrived(1) == [1]


@pytest.fixture
def settings_debug(place: Place) -> Iterator[None]:
    place.connection.force_debug_cursor = True
    yield
    place.connection.force_debug_cursor = False


def test_another_database_is_refused_and_its_transaction_lives_on(caller: Caller, place: Place) -> None:
    """The default one is SQLite's, in another file."""
    with transaction.atomic():
        with pytest.raises(ConfigurationError, match=r"databases="):
            caller.bus.blocking.send(caller.shop.orders, 1, within=connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
    assert caller.nothing_waits()


async def test_on_an_event_loop_the_error_names_sync_to_async(caller: Caller) -> None:
    with pytest.raises(ConfigurationError, match="sync_to_async"):
        caller.send(1)

    def place_order() -> None:
        with caller.atomic():
            caller.send(2)
        connections[caller.place.alias].close()

    await sync_to_async(place_order)()
    assert await sync_to_async(caller.arrived)(1) == [2]


def test_an_async_send_says_the_same(caller: Caller) -> None:
    async def send() -> None:
        await caller.shop.orders.send(1, within=connections[caller.place.alias])

    with pytest.raises(ConfigurationError, match="sync_to_async"):
        caller.bus.blocking.call(send())


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_other_sqlite_library_is_refused_with_the_url_to_write(place: Place) -> None:
    bus = Bus(place.url.partition("?")[0])
    orders = bus.queue("orders", int)
    bus.blocking.open()
    try:
        with pytest.raises(ConfigurationError, match=r"library=sqlite3"):
            bus.blocking.send(orders, 1, within=connections[place.alias])
    finally:
        bus.blocking.close()


def test_a_broken_block_fails_as_djangos_own_statements_do(caller: Caller) -> None:
    with pytest.raises(DatabaseError), caller.atomic():  # noqa: PT012
        transaction.set_rollback(True, using=caller.place.alias)
        caller.send(1)
    assert caller.nothing_waits()

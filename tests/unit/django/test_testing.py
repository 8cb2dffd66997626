"""`easybus.django.testing`: each test begins with an empty bus, on the database that it shares with Django."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.django.conftest import Place

from easybus import Bus, never
from easybus.django.testing import testing


def test_an_id_that_an_earlier_test_has_used_is_new_again(place: Place, project: Callable[[Bus], Bus]) -> None:
    bus = project(Bus("memory://", retry=never()))
    numbers = bus.queue("numbers", int)
    got: list[int] = []

    @numbers.handler
    def take(number: int) -> None:
        got.append(number)

    for number in (7, 7, 8):
        with testing(place.alias) as t:
            bus.blocking.send(numbers, number, id="fixed")
            t.drain()
            assert t.dead("numbers") == []
    assert got == [7, 7, 8]


def test_what_an_earlier_test_left_is_gone(place: Place, project: Callable[[Bus], Bus]) -> None:
    bus = project(Bus("memory://", retry=never()))
    numbers, waiting = bus.queue("numbers", int), bus.queue("waiting", int)

    @numbers.handler
    def take(number: int) -> None:
        raise ConnectionError("busy")

    with testing(place.alias) as t:
        bus.blocking.send_many(numbers, [7, 8])
        bus.blocking.send(waiting, 9)
        t.drain()
        assert len(t.dead("numbers")) == 2
    with testing(place.alias) as t:
        assert t.dead("numbers") == []
        assert bus.blocking.call(bus.driver.stats("waiting")).ready == 0

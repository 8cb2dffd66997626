"""What a quick consumer has asked for ahead, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from tests.servers.nats import NatsServer
from tests.unit.engines.nats.conftest import Opener

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, Delivery, Driver, Settled
from easybus.engines.nats.driver import NatsDriver
from easybus.engines.nats.pulling import Puller
from easybus.engines.registry import create
from easybus.testing.driver_base import drain, publish, to_queue, topology

SENT = [b"%03d" % number for number in range(100)]


async def filled(driver: Driver) -> None:
    await topology(driver, ["work"])
    await publish(driver, [to_queue("work", body) for body in SENT])


async def taken(driver: Driver, lots: int, *, pause: float = 0.0) -> list[Delivery]:
    """Lots of ten, one after the other, each acked."""
    found: list[Delivery] = []
    for _ in range(lots):
        lot = await driver.fetch("work", 10, 5.0, 30.0)
        assert await driver.settle("work", [Ack(one) for one in lot]) == [Settled.DONE] * 10
        found += lot
        await asyncio.sleep(pause)
    return found


def bodies(found: Sequence[Delivery]) -> list[bytes]:
    return [one.body for one in found]


async def here(driver: NatsDriver) -> Puller:
    """The puller, when it has what it asked for ahead."""
    puller = driver._pullers["work"][0]
    async with asyncio.timeout(5.0):
        while puller._ahead is None or not puller._ahead.full:
            await asyncio.sleep(0)
    return puller


async def test_a_quick_consumer_finds_the_next_lot_here(driver: NatsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(driver)
    found = await taken(driver, 6)
    puller = await here(driver)
    requests: list[int] = []
    monkeypatch.setattr(puller, "_ask", lambda waiter, wait: requests.append(waiter.limit))  # nothing is asked for
    found += await driver.fetch("work", 4, 5.0, 30.0)
    found += await driver.fetch("work", 6, 5.0, 30.0)
    assert bodies(found) == SENT[:70]
    assert [one.attempt for one in found] == [1] * 70
    assert requests == [6]  # ahead again


async def test_a_backlog_is_taken_in_its_order_and_once(driver: NatsDriver) -> None:
    await filled(driver)
    assert bodies(await taken(driver, 10)) == SENT
    assert await drain(driver, "work") == []


async def test_a_slow_consumer_is_not_asked_ahead_for(driver: NatsDriver) -> None:
    await filled(driver)
    for _ in range(7):
        await taken(driver, 1, pause=0.15)
        assert driver._pullers["work"][0]._ahead is None


async def test_what_nobody_takes_goes_to_others(driver: NatsDriver, opened: Opener) -> None:
    await filled(driver)
    await taken(driver, 6)
    puller = await here(driver)
    began = time.monotonic()
    assert await drain(await opened(), "work", 1.5) == SENT[60:]
    assert puller._ahead is None
    assert not puller._requests
    assert time.monotonic() - began < 4.0  # not by its lease


async def test_closing_puts_it_back_at_once(driver: Driver, url: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    assert isinstance(engine.driver, NatsDriver)
    await filled(engine.driver)
    await taken(engine.driver, 6)
    await here(engine.driver)
    await engine.close()
    assert (await driver.fetch("work", 100, 1.0, 30.0))[0].body == SENT[60]


@pytest.mark.parametrize("stood_still", [0.6, 1.2])
async def test_what_is_older_than_it_may_be_is_not_handed_out(driver: NatsDriver, stood_still: float) -> None:
    await filled(driver)
    await taken(driver, 6)
    await here(driver)
    time.sleep(stood_still)
    found: list[Delivery] = []
    began = time.monotonic()
    async with asyncio.timeout(10.0):
        while len(found) < 40:
            lot = await driver.fetch("work", 40, 5.0, 30.0)
            await driver.settle("work", [Ack(one) for one in lot])
            found += lot
    assert sorted(bodies(found)) == SENT[60:]
    assert {one.attempt for one in found if one.body in SENT[60:70]} == {2}
    put_back = time.monotonic() - began < 3.0  # else its lease of five seconds has ended
    assert put_back == (stood_still < 1.0)  # later it may be another's already, who would lose it


async def test_a_lost_connection_loses_nothing_of_it(own_server: NatsServer, opened: Opener) -> None:
    driver = await opened(own_server.prefix())
    assert isinstance(driver, NatsDriver)
    await filled(driver)
    await taken(driver, 6)
    await here(driver)
    await asyncio.to_thread(own_server.restart)
    found: set[bytes] = set()
    async with asyncio.timeout(20.0):
        while len(found) < 40:
            try:
                lot = await driver.fetch("work", 40, 1.0, 30.0)
                await driver.settle("work", [Ack(one) for one in lot])
            except Exception:
                await asyncio.sleep(0.05)
            else:
                found.update(bodies(lot))
    assert found == set(SENT[60:])

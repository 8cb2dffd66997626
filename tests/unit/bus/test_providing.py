"""What handlers are given without anyone providing it."""

from __future__ import annotations

import pytest

from easybus import Bus, Queue, Router

numbers, doubled = Queue("numbers", int), Queue("doubled", int)
router = Router()


@router.handler(numbers)
async def double(number: int, bus: Bus) -> None:
    await bus.send(doubled, 2 * number)


@router.handler(doubled)
def take(number: int, bus: Bus) -> None:
    bus.blocking.send(numbers, 100, id="once") if number < 100 else None


@pytest.mark.parametrize("subclass", [False, True])
async def test_a_handler_in_a_router_sends_by_the_bus_that_runs_it(subclass: bool) -> None:
    class Ours(Bus): ...

    bus = (Ours if subclass else Bus)("memory://")
    bus.include(router)
    async with bus.testing() as t:
        await bus.send(numbers, 4)
        await t.drain()
        assert t.sent(doubled).values == [8, 200]
        assert bus.is_open
    assert not bus.is_open


async def test_another_bus_may_be_provided_instead() -> None:
    bus, other = Bus("memory://"), Bus("memory://")
    got: list[Bus] = []
    asks = bus.queue("asks", int)

    @asks.handler
    async def ask(_: int, bus: Bus) -> None:
        got.append(bus)

    async with bus.testing(provide={Bus: lambda: other}) as t:
        await asks.send(1)
        await t.drain()
    assert got == [other]

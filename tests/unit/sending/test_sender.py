"""The parts' sender: its sends, its local work, and its life from `prepare` to `stop`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from easybus.engines.contract import Binding, DeclareQueue
from easybus.errors import BadDelay, ConfigurationError, NotOpen, Rollback, SendError
from easybus.message import Message
from easybus.sending.sender import Sender, TxOptions

Make = Callable[..., Sender]


@pytest.fixture
async def make(world: Any) -> AsyncIterator[Make]:
    senders: list[Sender] = []

    def make(topic: str = "orders", **options: Any) -> Sender:
        tx = TxOptions(timeout=60.0, committed=world.committed, storage=world.storage)
        sender = Sender(topic, world.driver, **{"tx": tx, "clock": world.clock, "service": "shop", **options})
        senders.append(sender)
        return sender

    yield make
    for sender in senders:
        await sender.stop()


async def test_a_plain_send_is_confirmed_and_returns_the_message(world: Any, make: Make, order: Message) -> None:
    sender = make(tx=None)
    assert await sender.send(order) is order
    assert await world.arrived() == [order]


async def test_prepare_declares_the_topic_once(world: Any, make: Make, order: Message) -> None:
    sender = make("fresh")
    await asyncio.gather(*(sender.prepare() for _ in range(5)))
    assert world.driver.calls.count("declare") == 3  # the world's own, the topic, the queue of deferred sends
    await world.driver.declare([DeclareQueue("q"), Binding("fresh", "q")])
    await sender.send(order)
    assert len(await world.driver.fetch("q", 10, 0, 30)) == 1


async def test_an_unconfirmed_send_is_a_send_error_with_the_message(world: Any, make: Make, order: Message) -> None:
    sender = make()
    world.driver.failing("publish")
    with pytest.raises(SendError) as caught:
        await sender.send(order)
    assert caught.value.failed == [order]


async def test_a_delayed_send_is_routed_when_it_is_due(world: Any, make: Make, order: Message) -> None:
    sender = make()
    await sender.send(order, delay=10)
    await world.advance(9.9)
    assert await world.arrived() == []
    await world.advance(0.2)
    assert await world.arrived() == [order]
    with pytest.raises(BadDelay):
        await sender.send(order, delay=-1)


@pytest.mark.parametrize("answer", [True, None])
async def test_local_work_that_returns_is_published(world: Any, make: Make, order: Message, answer: Any) -> None:
    async def work(message: Message) -> bool | None:
        assert message is order
        assert await world.half() is not None
        return answer

    assert await make().send(order, work) is order
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_local_work_that_returns_false_discards(world: Any, make: Make, order: Message) -> None:
    async def work(message: Message) -> bool:
        return False

    assert await make().send(order, work) is order
    assert await world.arrived() == []
    assert await world.half() is None


async def test_local_work_that_raises_rollback_discards(world: Any, make: Make, order: Message) -> None:
    async def work(message: Message) -> bool:
        raise Rollback

    await make().send(order, work)
    assert await world.half() is None


async def test_plain_local_work_runs_in_a_thread(world: Any, make: Make, order: Message) -> None:
    ran: list[int] = []

    def work(message: Message) -> None:
        ran.append(threading.get_ident())

    await make().send(order, work)
    assert ran != [threading.get_ident()]
    assert await world.arrived() == [order]


async def test_an_exception_in_local_work_goes_on_and_is_asked_about_after_the_timeout(
    world: Any, make: Make, order: Message
) -> None:
    async def work(message: Message) -> bool:
        raise ConnectionError("the reply of COMMIT is lost")

    with pytest.raises(ConnectionError):
        await make().send(order, work)
    world.truth = True
    await world.advance(59)
    assert world.asked == []
    await world.advance(3)
    assert await world.arrived() == [order]
    assert await world.half() is None


async def test_a_sender_asks_about_what_an_earlier_one_left_behind(world: Any, make: Make, order: Message) -> None:
    block = world.checkback.transaction("orders", order)
    await block.__aenter__()
    block._extender.cancel()
    world.truth = True
    await make().prepare()
    await world.advance(62)
    assert await world.arrived() == [order]


async def test_local_work_without_tx_options_is_an_error_with_the_line_to_write(
    world: Any, make: Make, order: Message
) -> None:
    def work(message: Message) -> bool:
        pytest.fail("the work began")

    with pytest.raises(ConfigurationError, match="TxOptions"):
        await make(tx=None).send(order, work)
    with pytest.raises(ConfigurationError, match=r"storage=engine\.transactions"):
        make(tx=TxOptions(timeout=1.0, committed=world.committed))
    with pytest.raises(ConfigurationError, match="timeout is 0"):
        make(tx=TxOptions(timeout=0, committed=world.committed, storage=world.storage))


async def test_stop_ends_the_checks_and_a_second_stop_is_a_no_op(world: Any, make: Make, order: Message) -> None:
    sender = make()
    await sender.prepare()
    waiting = asyncio.create_task(sender.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    await sender.stop()
    await asyncio.wait_for(waiting, 1)
    await sender.stop()
    with pytest.raises(NotOpen, match="stopped"):
        await sender.send(order)


async def test_stop_waits_for_the_end_of_a_block_that_is_under_way(world: Any, make: Make, order: Message) -> None:
    sender = make()
    publishing = asyncio.Event()
    world.at("work.done", publishing.wait)

    async def work(message: Message) -> bool:
        return True

    sending = asyncio.create_task(sender.send(order, work))
    await world.advance(0)
    stopping = asyncio.create_task(sender.stop())
    await world.advance(0)
    assert not stopping.done()
    publishing.set()
    await stopping
    await sending
    assert await world.arrived() == [order]
    assert await world.half() is None

"""Consumers that end as they begin, and what a server says in one breath: a server of a few words says it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pika import frame, spec
from tests.servers import HOST

from easybus.clock import SystemClock
from easybus.engines.contract import Driver
from easybus.engines.rabbitmq.channel import Channel
from easybus.engines.registry import create
from easybus.errors import Unavailable

ANSWERS: dict[str, Any] = {
    "Connection.Open": spec.Connection.OpenOk,
    "Connection.Close": spec.Connection.CloseOk,
    "Channel.Open": spec.Channel.OpenOk,
    "Channel.Close": spec.Channel.CloseOk,
    "Basic.Qos": spec.Basic.QosOk,
}


class FewWords:
    """A server that lets everybody in, and delivers one message to each consumer."""

    def __init__(self) -> None:
        self.ends: list[Callable[[str], Any]] = []
        """What ends the next consumers, in one write with the answer."""
        self.silent = 0
        """How many of the next consumers get no message."""
        self.consumers: list[tuple[int, str]] = []
        """Channel and tag of those that stand."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        told = {"version": "3.10.0", "capabilities": {"publisher_confirms": True, "consumer_cancel_notify": True}}
        writer.write(frame.Method(0, spec.Connection.Start(0, 9, told, "PLAIN", "en_US")).marshal())
        unread = b""
        while data := await reader.read(65536):
            unread += data
            while (found := frame.decode_frame(unread))[0]:
                size, said = found
                unread = unread[size:]
                if isinstance(said, frame.Method):
                    writer.write(b"".join(self.answer(said.channel_number, said.method)))
        writer.close()

    def answer(self, channel: int, method: Any) -> list[bytes]:
        if method.NAME == "Connection.StartOk":
            return [frame.Method(0, spec.Connection.Tune(2047, 131072, 60)).marshal()]
        if method.NAME == "Channel.Close":
            self.consumers = [one for one in self.consumers if one[0] != channel]
        if method.NAME == "Basic.Consume":
            return self.consume(channel, method.consumer_tag)
        return [frame.Method(channel, ANSWERS[method.NAME]()).marshal()] if method.NAME in ANSWERS else []

    def consume(self, channel: int, tag: str) -> list[bytes]:
        begun = frame.Method(channel, spec.Basic.ConsumeOk(tag)).marshal()
        if self.ends:
            return [begun, frame.Method(channel, self.ends.pop(0)(tag)).marshal()]
        self.consumers.append((channel, tag))
        if self.silent:
            self.silent -= 1
            return [begun]
        delivery = frame.Method(channel, spec.Basic.Deliver(tag, 1, False, "", "jobs")).marshal()
        header = frame.Header(channel, 1, spec.BasicProperties()).marshal()
        return [begun, delivery, header, frame.Body(channel, b"x").marshal()]


@pytest.fixture
async def server() -> FewWords:
    return FewWords()


@pytest.fixture
async def driver(server: FewWords) -> AsyncIterator[Driver]:
    async with await asyncio.start_server(server.serve, HOST, 0) as listening:
        engine = create(f"amqp://{HOST}:{listening.sockets[0].getsockname()[1]}/?settle=0", SystemClock())
        await engine.open()
        assert engine.driver is not None
        yield engine.driver
        await engine.close()


@pytest.mark.parametrize(
    "end",
    [lambda tag: spec.Basic.Cancel(tag, True), lambda _: spec.Channel.Close(506, "no leader", 0, 0)],
    ids=["cancelled", "channel closed"],
)
async def test_a_consumer_that_ends_as_it_begins_is_followed_by_another(
    driver: Driver, server: FewWords, end: Any
) -> None:
    server.ends = [end]
    assert [one.body for one in await driver.fetch("jobs", 1, 5.0, 30.0)] == [b"x"]


async def test_a_consumer_whose_answer_came_as_its_time_was_up_does_not_stay_beside_the_next(
    driver: Driver, server: FewWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.silent = 1
    call, late = Channel.call, [True]

    async def called(self: Channel, method: str, what: str, seconds: float | None = None, /, **arguments: Any) -> Any:
        answer = await call(self, method, what, seconds, **arguments)
        if method == "basic_consume" and late:
            late.pop()
            raise Unavailable(f"{what}: no answer within 2 s")
        return answer

    monkeypatch.setattr(Channel, "call", called)
    assert [one.body for one in await driver.fetch("jobs", 1, 5.0, 30.0)] == [b"x"]
    assert not late
    async with asyncio.timeout(5.0):
        while len(server.consumers) > 1:
            await asyncio.sleep(0.01)
    assert len(server.consumers) == 1

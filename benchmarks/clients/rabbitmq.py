"""Clients of RabbitMQ, on a quorum queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

_QUEUE = "clients"
_QUORUM = {"x-queue-type": "quorum"}


class Pika:
    """pika's asyncio adapter: bare callbacks, over which confirms are counted here."""

    async def open(self, url: str) -> None:
        import pika
        from pika.adapters.asyncio_connection import AsyncioConnection

        loop = asyncio.get_running_loop()
        self._properties = pika.BasicProperties(delivery_mode=2)
        opened: asyncio.Future[Any] = loop.create_future()
        AsyncioConnection(
            pika.URLParameters(url),
            on_open_callback=opened.set_result,
            on_open_error_callback=lambda _, error: opened.set_exception(error),
            on_close_callback=self._lost,
        )
        self._connection = await opened
        self._lost_by: Exception | None = None
        self._confirmed, self._sent = 0, 0
        self._done: asyncio.Future[None] = loop.create_future()
        self._got: list[int] = []
        self._arrived = asyncio.Event()
        channel: asyncio.Future[Any] = loop.create_future()
        self._connection.channel(on_open_callback=channel.set_result)
        self._channel = await channel
        for call, arguments in (
            ("confirm_delivery", {"ack_nack_callback": self._confirm}),
            ("queue_declare", {"queue": _QUEUE, "durable": True, "arguments": _QUORUM}),
            ("basic_qos", {"prefetch_count": 100}),
        ):
            answered: asyncio.Future[Any] = loop.create_future()
            getattr(self._channel, call)(callback=answered.set_result, **arguments)
            await answered

    def _lost(self, _: Any, error: Exception) -> None:
        self._lost_by = error
        if not self._done.done():
            self._done.set_exception(error)

    def _confirm(self, frame: Any) -> None:
        self._confirmed = frame.method.delivery_tag
        if self._confirmed >= self._sent and not self._done.done():
            self._done.set_result(None)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        if self._lost_by is not None:
            raise self._lost_by
        self._done = asyncio.get_running_loop().create_future()
        self._sent += len(bodies)
        for body in bodies:
            self._channel.basic_publish("", _QUEUE, body, self._properties, mandatory=True)
        await self._done

    async def consume(self, limit: int) -> int:
        if self._consumer is None:
            self._consumer = self._channel.basic_consume(_QUEUE, self._deliver)
        while not self._got:
            self._arrived.clear()
            await self._arrived.wait()
        got, self._got = self._got, []
        self._channel.basic_ack(got[-1], multiple=True)
        return len(got)

    _consumer: Any = None

    def _deliver(self, _: Any, method: Any, __: Any, ___: bytes) -> None:
        self._got.append(method.delivery_tag)
        self._arrived.set()

    async def close(self) -> None:
        if self._lost_by is None:
            self._done = asyncio.get_running_loop().create_future()
            self._connection.close()
            await asyncio.wait([self._done], timeout=2)
            if self._done.done():
                self._done.exception()


class Aiormq:
    """aiormq: a future for each confirm."""

    async def open(self, url: str) -> None:
        import aiormq

        self._properties = aiormq.spec.Basic.Properties(delivery_mode=2)
        self._connection = await aiormq.connect(url)
        self._channel = await self._connection.channel(publisher_confirms=True)
        await self._channel.queue_declare(_QUEUE, durable=True, arguments=_QUORUM)
        await self._channel.basic_qos(prefetch_count=100)
        self._got: list[int] = []
        self._arrived = asyncio.Event()
        self._consumer: Any = None

    async def publish(self, bodies: Sequence[bytes]) -> None:
        publish = self._channel.basic_publish
        await asyncio.gather(
            *(publish(body, routing_key=_QUEUE, properties=self._properties, mandatory=True) for body in bodies)
        )

    async def consume(self, limit: int) -> int:
        if self._consumer is None:
            self._consumer = await self._channel.basic_consume(_QUEUE, self._deliver)
        while not self._got:
            self._arrived.clear()
            await self._arrived.wait()
        got, self._got = self._got, []
        await self._channel.basic_ack(got[-1], multiple=True)
        return len(got)

    async def _deliver(self, message: Any) -> None:
        self._got.append(message.delivery_tag)
        self._arrived.set()

    async def close(self) -> None:
        await self._connection.close()


class AioPika:
    """aio-pika, by `connect_robust`, which reconnects by itself."""

    async def open(self, url: str) -> None:
        import aio_pika

        self._message = aio_pika.Message
        self._persistent = aio_pika.DeliveryMode.PERSISTENT
        self._connection = await aio_pika.connect_robust(url)
        self._channel = await self._connection.channel(publisher_confirms=True)
        await self._channel.set_qos(prefetch_count=100)
        self._queue = await self._channel.declare_queue(_QUEUE, durable=True, arguments=_QUORUM)
        self._got: list[Any] = []
        self._arrived = asyncio.Event()
        self._consumer: Any = None

    async def publish(self, bodies: Sequence[bytes]) -> None:
        publish = self._channel.default_exchange.publish
        messages = [self._message(body, delivery_mode=self._persistent) for body in bodies]
        await asyncio.gather(*(publish(message, _QUEUE, mandatory=True) for message in messages))

    async def consume(self, limit: int) -> int:
        if self._consumer is None:
            self._consumer = await self._queue.consume(self._deliver)
        while not self._got:
            self._arrived.clear()
            await self._arrived.wait()
        got, self._got = self._got, []
        await got[-1].ack(multiple=True)
        return len(got)

    async def _deliver(self, message: Any) -> None:
        self._got.append(message)
        self._arrived.set()

    async def close(self) -> None:
        await self._connection.close()


CLIENTS = {"pika": Pika, "aiormq": Aiormq, "aio-pika": AioPika}

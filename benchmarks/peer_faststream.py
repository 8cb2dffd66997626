"""FastStream under measurement, set up for what ours does: confirmed publishes, typed payloads, acks after the handler.

Payloads are read by msgspec, the quicker of the two that it offers. It handles without deduplication.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .alone import Stamped, one_by_one
from .ours import SLOTS, Order, order, sent_by_tasks

_QUEUE = "peer-orders"


def throughput(engine: str, url: str, messages: int) -> dict[str, float]:
    """As `ours.throughput`."""

    async def main() -> dict[str, float]:
        left = messages
        all_handled = asyncio.Event()

        async def handle(_: Order) -> None:
            nonlocal left
            left -= 1
            if not left:
                all_handled.set()

        broker = _broker(engine, url)
        publish = await _prepare(engine, broker)
        figures = await sent_by_tasks([order(number) for number in range(messages)], publish)
        _subscribe(engine, broker, handle)
        began, used = time.perf_counter(), time.process_time()
        await broker.start()
        await all_handled.wait()
        await broker.stop()
        return figures | {
            "handled_per_s": messages / (time.perf_counter() - began),
            "handle_cpu_us": (time.process_time() - used) / messages * 1e6,
        }

    return asyncio.run(main())


def handle(engine: str, url: str, messages: int, ready: str) -> dict[str, list[float]]:
    """As `alone.handle`."""

    async def main() -> dict[str, list[float]]:
        took: list[float] = []
        all_handled = asyncio.Event()

        async def note(message: Stamped) -> None:
            took.append((time.monotonic_ns() - message.sent_at) / 1e6)
            if len(took) == messages:
                all_handled.set()

        broker = _broker(engine, url)
        await _prepare(engine, broker)
        _subscribe(engine, broker, note)
        await broker.start()
        Path(ready).touch()
        await all_handled.wait()
        await broker.stop()
        return {"took_ms": took}

    return asyncio.run(main())


def send(engine: str, url: str, messages: int) -> dict[str, list[float]]:
    """As `alone.send`."""

    async def main() -> dict[str, list[float]]:
        broker = _broker(engine, url)
        publish = await _prepare(engine, broker)
        took = await one_by_one(messages, publish)
        await broker.stop()
        return took

    return asyncio.run(main())


def _broker(engine: str, url: str) -> Any:
    from fast_depends.msgspec import MsgSpecSerializer

    options: dict[str, Any] = {"logger": None, "serializer": MsgSpecSerializer()}
    if engine == "rabbitmq":
        from faststream.rabbit import RabbitBroker

        return RabbitBroker(url, **options)
    if engine == "redis":
        from faststream.redis import RedisBroker

        return RedisBroker(url, max_connections=2 * SLOTS, **options)
    from faststream.nats import NatsBroker

    return NatsBroker(url, **options)


async def _prepare(engine: str, broker: Any) -> Callable[[Any], Awaitable[object]]:
    """Connect, and make the queue; returns what publishes to it and waits for the confirm."""
    logging.disable(logging.WARNING)
    if engine == "rabbitmq":
        from faststream.rabbit import QueueType, RabbitQueue

        await broker.connect()
        await broker.declare_queue(RabbitQueue(_QUEUE, queue_type=QueueType.QUORUM, durable=True))
        return lambda one: broker.publish(one, queue=_QUEUE, persist=True, mandatory=True)
    if engine == "redis":
        client = await broker.connect()
        try:
            await client.xgroup_create(_QUEUE, "peers", id="0", mkstream=True)
        except Exception as error:  # the other process has made it
            if "BUSYGROUP" not in str(error):
                raise
        return lambda one: broker.publish(one, stream=_QUEUE)
    client = await broker.connect()
    await client.jetstream().add_stream(name=_QUEUE, subjects=[_QUEUE], retention="workqueue", storage="file")
    return lambda one: broker.publish(one, subject=_QUEUE, stream=_QUEUE)


def _subscribe(engine: str, broker: Any, function: Callable[[Any], Awaitable[None]]) -> None:
    from faststream import AckPolicy

    late = AckPolicy.NACK_ON_ERROR
    if engine == "rabbitmq":
        from faststream.rabbit import Channel, QueueType, RabbitQueue

        queue = RabbitQueue(_QUEUE, queue_type=QueueType.QUORUM, durable=True)
        broker.subscriber(queue, channel=Channel(prefetch_count=SLOTS), ack_policy=late)(function)
    elif engine == "redis":
        from faststream.redis import StreamSub

        stream = StreamSub(_QUEUE, group="peers", consumer="one", max_records=SLOTS)
        broker.subscriber(stream=stream, ack_policy=late)(function)
    else:
        from faststream.nats import JStream, PullSub

        stream = JStream(_QUEUE, declare=False)
        pull = PullSub(batch_size=SLOTS)
        broker.subscriber(_QUEUE, stream=stream, durable="peers", pull_sub=pull, ack_policy=late)(function)

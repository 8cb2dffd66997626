"""The layer below the bus: senders and handlers of plain messages on drivers and storages, each used by itself.

It answers, by name, to the Go library that easybus comes from; `Bus` is built of the same pieces. An engine is opened
by its URL:

    engine = connect("sqlite:///shop.db")
    await engine.open()
    sender = Sender("orders", engine.driver)
    handler = Handler("receipts", handle, engine.driver, subscribe=[("orders", "#")],
                      idempotency=engine.idempotency, dead_letters=engine.dead_letters)
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable

from .clock import SystemClock
from .engines.contract import (
    Ack,
    Binding,
    Capabilities,
    Claim,
    Claimed,
    DeadLetter,
    DeadLetterStorage,
    DeclareQueue,
    DeclareTopic,
    Delivery,
    Driver,
    Engine,
    Half,
    IdempotencyStorage,
    Nack,
    OutboxStorage,
    Publication,
    QueueStats,
    TransactionStorage,
)
from .engines.registry import create
from .message import Message
from .receiving.handler import Handler
from .sending.sender import Sender, TxOptions

__all__ = [
    "Capabilities",
    "DeadLetter",
    "DeadLetterStorage",
    "Delivery",
    "Driver",
    "Engine",
    "Half",
    "Handler",
    "IdempotencyStorage",
    "Message",
    "OutboxStorage",
    "QueueStats",
    "Sender",
    "TransactionStorage",
    "TxOptions",
    "acquire",
    "connect",
    "create_queue",
    "create_topic",
    "receive_message",
    "release",
    "send_to_queue",
    "send_to_topic",
    "subscribe",
    "unsubscribe",
]

_WAIT = 5.0
_AGAIN = 1.0


def connect(url: str) -> Engine:
    """The engine of a URL, to be opened: `await engine.open()`.

    Raises:
        ConfigurationError: no such engine.
    """
    return create(url, SystemClock())


async def create_queue(driver: Driver, name: str, delay: float = 0.0) -> None:
    """Make a queue exist; a send without a delay of its own waits `delay` seconds in it."""
    await driver.declare([DeclareQueue(name, delay)])


async def create_topic(driver: Driver, name: str) -> None:
    """Make a topic exist."""
    await driver.declare([DeclareTopic(name)])


async def subscribe(driver: Driver, topic: str, queue: str, route_key: str = "#") -> None:
    """The queue collects the topic's messages whose route key matches. Both must exist."""
    await driver.declare([Binding(topic, queue, route_key)])


async def unsubscribe(driver: Driver, topic: str, queue: str, route_key: str = "#") -> None:
    """No more of them are collected; what is queued stays."""
    await driver.drop([Binding(topic, queue, route_key)])


async def send_to_queue(driver: Driver, queue: str, content: bytes, delay: float | None = None) -> None:
    """Send bytes to a queue, to be seen in `delay` seconds (None: the queue's own); confirmed when it returns."""
    await _publish(driver, Publication(False, queue, content, delay=delay))


async def send_to_topic(driver: Driver, topic: str, content: bytes, route_key: str = "") -> None:
    """Send bytes to every queue bound to the topic for this route key; confirmed when it returns."""
    await _publish(driver, Publication(True, topic, content, route_key))


async def _publish(driver: Driver, publication: Publication) -> None:
    [result] = await driver.publish([publication])
    if isinstance(result, Exception):
        raise result


async def receive_message(
    driver: Driver,
    queue: str,
    handler: Callable[[bytes], bool | Awaitable[bool]],
    *,
    on_error: Callable[[Exception], None] | None = None,
    lease: float = 60.0,
) -> None:
    """Receive bytes until cancelled: True from `handler` acks, anything else brings the message back in a second.

    `on_error` is told of what the handler raised; without it, the exception ends the receiving.
    """
    while True:
        for delivery in await driver.fetch(queue, 1, _WAIT, lease):
            done = False
            try:
                result = handler(delivery.body)
                done = await result if inspect.isawaitable(result) else result
            except Exception as error:
                if on_error is None:
                    raise
                on_error(error)
            finally:
                settlement = Ack(delivery) if done is True else Nack(delivery, _AGAIN)
                await asyncio.shield(driver.settle(queue, [settlement]))


async def acquire(storage: IdempotencyStorage, key: str, lease: float = 60.0) -> str | None:
    """The right to act under a key for `lease` seconds, as a token; None: another has it, or it is done with."""
    [result] = await storage.claim([Claim("", key, hashlib.blake2b(digest_size=16).digest(), lease)])
    return result.token if isinstance(result, Claimed) else None


async def release(storage: IdempotencyStorage, token: str) -> bool:
    """Give the right back; False: it was not held under this token any more."""
    [released] = await storage.release([token])
    return released

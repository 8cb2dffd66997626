"""What the driver's tests share: the fixtures that an author overrides, and how a test takes messages."""

# ruff: noqa: S101 - the asserts of this module are its product

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from ..engines.contract import (
    Ack,
    Binding,
    Change,
    DeclareQueue,
    DeclareTopic,
    Delivery,
    Driver,
    Engine,
    Publication,
    Settled,
)
from ..message import Message, new_id

__all__ = ["DriverBase", "bodies", "drain", "fresh", "needs", "publish", "receive", "to_queue", "to_topic", "topology"]

LEASE = 30.0
"""Seconds: longer than any test that does not wait for its end."""


class DriverBase:
    """Fixtures. `engine` must be overridden, the others may be."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def engine(self) -> Engine:
        """An open engine; override it with an async generator that closes it afterwards."""
        raise NotImplementedError("override the fixture `engine` with an open engine of yours")

    @pytest.fixture
    def driver(self, engine: Engine) -> Driver:
        """The engine's driver."""
        assert engine.driver is not None, "this engine has no driver, so nothing here applies to it"
        return engine.driver

    @pytest.fixture
    def reopen(self) -> Callable[[], Awaitable[Engine]] | None:
        """Opens another connection to the same data; whoever made it closes it."""
        return None

    @pytest.fixture
    def restart(self) -> Callable[[], Awaitable[None]] | None:
        """Kills the server (SIGKILL) and starts it again on the same data; returns when its port is open."""
        return None

    @pytest.fixture
    def pass_time(self) -> Callable[[float], Awaitable[None]]:
        """Lets so many seconds of the engine's clock pass."""
        return asyncio.sleep


def needs(driver: Driver, capability: str) -> None:
    """Skip, saying why, where the driver does not declare it."""
    if not getattr(driver.caps, capability):
        pytest.skip(f"{driver.caps.engine} does not declare {capability}")


def fresh(what: str) -> str:
    """A name that no other test has."""
    return f"{what}-{new_id()}"


def bodies(number: int) -> list[bytes]:
    """Envelopes, each with an id, a route key, headers and all 256 byte values."""
    return [
        Message.new(
            bytes(range(256)) + str(at).encode(), route_key="a.b", headers={"n": str(at), "é": "\U0001f600"}
        ).to_bytes()
        for at in range(number)
    ]


def to_queue(name: str, body: bytes, delay: float | None = None) -> Publication:
    return Publication(to_topic=False, name=name, body=body, delay=delay)


def to_topic(name: str, body: bytes, route_key: str = "") -> Publication:
    return Publication(to_topic=True, name=name, body=body, route_key=route_key)


async def topology(driver: Driver, queues: Sequence[str] = (), topic: str = "", delay: float = 0.0) -> None:
    """Declare these queues, and bind them to the topic if one is named."""
    changes: list[Change] = [DeclareQueue(name, delay) for name in queues]
    if topic:
        changes += [DeclareTopic(topic), *(Binding(topic, name) for name in queues)]
    await driver.declare(changes)


async def publish(driver: Driver, batch: Sequence[Publication]) -> None:
    """Publish in batches of 500, all confirmed."""
    for at in range(0, len(batch), 500):
        failed = [result for result in await driver.publish(batch[at : at + 500]) if isinstance(result, Exception)]
        assert not failed, failed[0]


async def receive(
    driver: Driver, queue: str, number: int, *, within: float = 10.0, ack: bool = True, lease: float = LEASE
) -> list[Delivery]:
    """At least `number` messages, acked or not."""
    found: list[Delivery] = []
    deadline = time.monotonic() + within
    while len(found) < number:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(found)} of {number} messages came within {within} s"
        batch = await driver.fetch(queue, min(100, number - len(found)), left, lease)
        found += batch
        if ack and batch:
            settled = await driver.settle(queue, [Ack(delivery) for delivery in batch])
            assert Settled.STALE not in settled, "an ack within the lease was refused"
    return found


async def drain(driver: Driver, queue: str, wait: float = 0.2) -> list[bytes]:
    """What is there now, acked; sorted, since not every engine keeps an order.

    An engine that counts exactly has at hand what it confirmed; others are given `wait` seconds.
    """
    found: list[bytes] = []
    while batch := await driver.fetch(queue, 100, 0.0 if driver.caps.counts else wait, LEASE):
        await driver.settle(queue, [Ack(delivery) for delivery in batch])
        found += [delivery.body for delivery in batch]
    return sorted(found)

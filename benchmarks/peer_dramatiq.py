"""Dramatiq on RabbitMQ, for how long one message alone takes: its own durable queue, which is no quorum queue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

from .alone import Stamped, one_by_one


def handle(engine: str, url: str, messages: int, ready: str) -> dict[str, list[float]]:
    """As `alone.handle`, in threads, as it does."""
    from dramatiq import Worker

    took: list[float] = []
    all_handled = threading.Event()

    def note(sent_at: int, note: str) -> None:
        took.append((time.monotonic_ns() - sent_at) / 1e6)
        if len(took) == messages:
            all_handled.set()

    broker, _ = _actor(url, note)
    worker = Worker(broker, worker_threads=8)
    worker.start()
    Path(ready).touch()
    all_handled.wait()
    worker.stop()
    return {"took_ms": took}


def send(engine: str, url: str, messages: int) -> dict[str, list[float]]:
    """As `alone.send`, blocking."""
    broker, actor = _actor(url, lambda sent_at, note: None)

    async def send_one(one: Stamped) -> None:
        actor.send(one.sent_at, one.note)

    took = asyncio.run(one_by_one(messages, send_one))
    broker.close()
    return took


def _actor(url: str, function: Any) -> Any:
    import dramatiq
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    logging.disable(logging.WARNING)
    broker: Any = RabbitmqBroker(url=url, confirm_delivery=True)
    dramatiq.set_broker(broker)
    return broker, dramatiq.actor(function, actor_name="note", queue_name="peer-dramatiq")

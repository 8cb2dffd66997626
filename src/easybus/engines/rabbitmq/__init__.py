"""RabbitMQ: queues and topics that services in other languages share. `engine.py` shows the parts."""

from __future__ import annotations

from ...clock import Clock
from .address import parse
from .engine import RabbitmqEngine

__all__ = ["create"]


def create(url: str, clock: Clock) -> RabbitmqEngine:
    """The engine of `amqp://user:password@host:5672,host2/vhost?heartbeat=10`, or `amqps://…`; not opened yet."""
    return RabbitmqEngine(parse(url))

"""NATS JetStream: a work-queue stream per queue, topics fanned out by the publisher. `engine.py` shows the parts."""

from __future__ import annotations

from ...clock import Clock
from .address import parse
from .engine import NatsEngine

__all__ = ["create"]


def create(url: str, clock: Clock) -> NatsEngine:
    """The engine of `nats://user:password@host:4222,host2:4222?prefix=bus`, or `tls://…`; not opened yet."""
    return NatsEngine(parse(url))

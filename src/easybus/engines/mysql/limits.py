"""What the engine gives, and so what it takes: the largest message hangs on the server."""

from __future__ import annotations

from dataclasses import replace

from ..contract import Capabilities
from ..limits import Limits

LARGEST_BODY = 16 << 20
"""Bytes, where the server's `max_allowed_packet` lets so much through: a value may double on its way."""
_SPARE = 64 << 10

CAPABILITIES = Capabilities(
    engine="mysql",
    durable=True,
    shared=True,
    max_body=LARGEST_BODY,
    max_name=255,
    delays_topics=False,
    atomic_move=True,
    fenced=True,
    ordered=True,
    unbroken=True,
    counts=True,
    counts_routes=True,
    lists_queues=True,
)


def capabilities(max_allowed_packet: int) -> Capabilities:
    """What the engine gives on a server that takes packets of so many bytes."""
    return replace(CAPABILITIES, max_body=max(1024, min(LARGEST_BODY, (max_allowed_packet - _SPARE) // 2)))


def limits(caps: Capabilities) -> Limits:
    """The checks on such a server."""
    return Limits(caps, why=": at most half of the server's max_allowed_packet")

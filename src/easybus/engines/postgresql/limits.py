"""What the engine gives, and so what it takes."""

from __future__ import annotations

from ..contract import Capabilities
from ..limits import Limits

CAPABILITIES = Capabilities(
    engine="postgresql",
    durable=True,
    shared=True,
    max_body=64 << 20,
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
LIMITS = Limits(CAPABILITIES)

"""Redis and Valkey, by streams. `names.py` says which keys there are, `lua/` what may happen to them."""

from __future__ import annotations

from ...clock import Clock
from .engine import RedisEngine
from .location import locate

__all__ = ["create"]


def create(url: str, clock: Clock) -> RedisEngine:
    """The engine of `redis://`, `rediss://`, `redis+sentinel://` or `rediss+sentinel://`; not opened yet."""
    return RedisEngine(locate(url), clock)

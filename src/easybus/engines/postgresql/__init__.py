"""PostgreSQL: queues, topics and all storages in one schema of a database. `engine.py` shows the parts."""

from __future__ import annotations

from ...clock import Clock
from .engine import PostgresqlEngine
from .location import locate

__all__ = ["create"]


def create(url: str, clock: Clock) -> PostgresqlEngine:
    """The engine of `postgresql://user:password@host:5432/database?schema=easybus`; not opened yet."""
    return PostgresqlEngine(locate(url), clock)

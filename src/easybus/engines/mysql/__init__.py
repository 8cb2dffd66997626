"""MySQL and MariaDB: queues, topics and all storages in tables of one database. `engine.py` shows the parts."""

from __future__ import annotations

from ...clock import Clock
from .engine import MysqlEngine
from .location import locate

__all__ = ["create"]


def create(url: str, clock: Clock) -> MysqlEngine:
    """The engine of `mysql://user:password@host:3306/database?prefix=easybus_`; not opened yet."""
    return MysqlEngine(locate(url), clock)

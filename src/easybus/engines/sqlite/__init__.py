"""SQLite: one file, several processes on one host. `engine.py` shows the parts."""

from __future__ import annotations

from ...clock import Clock
from .engine import SqliteEngine
from .location import locate

__all__ = ["create"]


def create(url: str, clock: Clock) -> SqliteEngine:
    """The engine of `sqlite:///relative.db`, `sqlite:////absolute.db`, `…?library=sqlite3`; not opened yet."""
    return SqliteEngine(locate(url), clock)

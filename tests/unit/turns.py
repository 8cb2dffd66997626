"""Turns of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["settle"]


async def settle() -> None:
    """Let the loop run until nothing more happens by itself: asyncio's own shows when it has nothing to run."""
    ready: Any = getattr(asyncio.get_running_loop(), "_ready", None)
    quiet = 0
    for _ in range(60):
        await asyncio.sleep(0)
        quiet = 0 if ready else quiet + 1
        if ready is not None and quiet == 2:
            return

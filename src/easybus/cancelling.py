"""Tasks that are to end are cancelled until they have.

A client library may swallow a cancellation that comes together with an answer, as asyncio.wait_for does up to Python
3.11; who called it then goes on as if nothing had been asked, and who waits for its end waits for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["ended"]

_AGAIN = 1.0
"""Seconds that a task may take to put away what it holds, before it is cancelled once more."""


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these, and wait until they have ended; their errors are not raised."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)

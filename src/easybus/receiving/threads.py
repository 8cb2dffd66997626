"""The threads that users' plain functions run in: a bus's own, as many as there are calls at once, reused.

idle → taken → [begin] calls, one after another [end] → idle → … → [leave] ended, when the bus closes

One call takes a thread for itself. A block of `kept` has one for all calls inside: what belongs to the thread that
opened it, such as Django's connections, is begun, used and ended there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeAlias

__all__ = ["Threads"]

Thread: TypeAlias = ThreadPoolExecutor
"""Of one worker: what is given to it runs in its order."""

_kept: ContextVar[Thread | None] = ContextVar("easybus_thread", default=None)


class Threads:
    """Used from one event loop. A library that needs care around what runs in threads derives from it."""

    def __init__(self) -> None:
        self._idle: list[Thread] = []
        self._closed = False

    def begin(self) -> None:
        """Called in a thread before the first call for a message."""

    def end(self) -> None:
        """Called in a thread after the last call for a message, whatever became of it."""

    def leave(self) -> None:
        """Called in a thread as the last thing it does."""

    async def run(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Run in a thread, and wait for its end even when cancelled: the work of a thread cannot be taken back."""
        call = functools.partial(function, *args, **named)
        kept = _kept.get()
        if kept is not None:
            return await _done(kept, call)
        thread = self._take()
        try:
            return await _done(thread, functools.partial(self._once, call))
        finally:
            self._give(thread)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncGenerator[None]:
        """One thread for all that this task runs until the end of the block."""
        thread = self._take()
        try:
            await _done(thread, self.begin)
            _kept.set(thread)
            yield
        finally:
            _kept.set(None)
            thread.submit(self.end)  # before whatever it is given next
            self._give(thread)

    async def close(self) -> None:
        """End the threads, those at work when their call returns."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_done(thread, self.leave) for thread in idle), return_exceptions=True)
        for thread in idle:
            thread.shutdown(wait=False)

    def _once(self, call: Callable[[], Any]) -> Any:
        self.begin()
        try:
            return call()
        finally:
            self.end()

    def _take(self) -> Thread:
        return self._idle.pop() if self._idle else ThreadPoolExecutor(1, thread_name_prefix="easybus")

    def _give(self, thread: Thread) -> None:
        if self._closed:
            thread.submit(self.leave)
            thread.shutdown(wait=False)
        else:
            self._idle.append(thread)


async def _done(thread: Thread, call: Callable[[], Any]) -> Any:
    context = contextvars.copy_context()
    context.run(_kept.set, None)  # a loop that the call starts, or sends work to, has threads of its own
    future = asyncio.get_running_loop().run_in_executor(thread, functools.partial(context.run, call))
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise
            cancelled = error
        except BaseException:
            if not future.done():
                raise
    if cancelled is not None:
        future.exception()  # seen: the cancellation says more
        raise cancelled
    return future.result()

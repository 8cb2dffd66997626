"""The bus without await: for Django, Flask, scripts, and handlers that are plain functions.

On a thread and a loop of its own, started at the first call; if the bus is open already on a running loop, calls from
other threads go there. Closed before a fork and reopened after it; closed at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from .errors import NotOpen, Unavailable
from .message import Message
from .outgoing import Outgoing, SendOptions

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["BlockingBus"]

T = TypeVar("T")

_CLOSING = 10.0
"""Seconds that closing waits for what is under way."""


class BlockingBus:
    """One bus's blocking face; from any thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _ALL.add(self)

    # ------------------------------------------------------------------------------------------------------ calls

    def send(
        self, target: Any, value: Any, *, within: object = None, require: bool | None = None,
        **options: Unpack[SendOptions],
    ) -> Message:  # fmt: skip
        """As `Bus.send`. With `within`, the rows are written by the calling thread, into its own transaction."""
        if within is not None:
            [message] = self.send_many(target, [Outgoing(value, **options)], within=within, require=require)
            return message
        return self.call(self._bus.send(target, value, require=require, **options))

    def send_many(
        self, target: Any, values: Iterable[Any], *, within: object = None, require: bool | None = None
    ) -> list[Message]:
        """As `Bus.send_many`."""
        if within is None:
            return self.call(self._bus.send_many(target, values, require=require))
        try:
            self.open()
        except Unavailable as error:
            raise Unavailable(
                f"{error}; if that is the transaction of within=, open the bus before it begins: bus.blocking.open()"
            ) from error
        opened = self._bus.opened
        return self._bus.write_within(opened, target, list(values), within, require)

    @contextlib.contextmanager
    def transaction(self, target: Any, value: Any, **options: Any) -> Generator[Message, None, None]:
        """As `Bus.transaction`, around plain code."""
        block: contextlib.AbstractAsyncContextManager[Message] = self.call(self._transaction(target, value, options))
        message = self.call(block.__aenter__())
        try:
            yield message
        except BaseException as error:
            if not self.call(block.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.call(block.__aexit__(None, None, None))

    async def _transaction(self, target: Any, value: Any, options: dict[str, Any]) -> Any:
        return self._bus.transaction(target, value, **options)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run any coroutine of the bus, such as `bus.dead_letters.count()`, and return its result.

        Raises:
            NotOpen: called on the bus's own loop, which it would stop: write await there.
        """
        try:
            loop = self._open_loop()
        except BaseException:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    # ------------------------------------------------------------------------------------------- opening and closing

    def open(self) -> None:
        """Open now, instead of at the first call."""
        self._open_loop()

    def close(self) -> None:
        """Finish what is under way and disconnect; the next call opens again."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._bus.__aexit__(), loop).result(_CLOSING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSING)
        if not thread.is_alive():
            loop.close()

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            opened = self._bus.opened_or_none
            if opened is not None and opened.loop.is_running() and opened.pid == os.getpid():
                self._not_on(opened.loop)
                return opened.loop
            if self._loop is None:
                self._start()
            assert self._loop is not None  # noqa: S101 - just started
            return self._loop

    def _not_on(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is loop:
            raise NotOpen(
                "bus.blocking would stop the event loop that it is called on: write `await bus.send(...)` here"
            )

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="easybus", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._bus.__aenter__(), loop).result()
        except BaseException:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING)
            loop.close()
            raise
        self._loop, self._thread = loop, thread
        _close_before_forks()


_ALL: weakref.WeakSet[BlockingBus] = weakref.WeakSet()


def _close_all() -> None:
    for bus in list(_ALL):
        bus.close()


def _close_before_forks() -> None:
    """Hooks run latest first, and engines have their own: ours must be registered after an engine is imported."""
    engines = frozenset(name for name in sys.modules if name.startswith("easybus.engines."))
    if engines not in _hooked_after:
        _hooked_after.add(engines)
        os.register_at_fork(before=_close_all)


_hooked_after: set[frozenset[str]] = set()
atexit.register(_close_all)

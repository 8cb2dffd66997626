"""One channel with calls that can be awaited: each has a deadline, and fails at once when the channel is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from pika import exceptions

from ...errors import EasybusError, Unavailable
from .faults import fault
from .link import Link

__all__ = ["Channel"]


class Channel:
    """A channel of `link`'s present connection. It is never opened again: who needs one makes another."""

    def __init__(self, link: Link, on_closed: Callable[[Exception], None]) -> None:
        self._link = link
        self._on_closed = on_closed
        self._calls: set[asyncio.Future[Any]] = set()
        self.raw: Any = None
        """pika's own."""
        self.why: Exception | None = None
        """Why it is closed; None: it is open."""

    @classmethod
    async def open(cls, link: Link, on_closed: Callable[[Exception], None] = lambda _: None) -> Channel:
        """Open one. Raises `Unavailable`, `NotOpen`."""
        self = cls(link, on_closed)
        connection = link.connection
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link.on_lost.append(self._close)
        try:
            self.raw = connection.channel(on_open_callback=partial(_answer, opened))
            self.raw.add_on_close_callback(self._closed)
            await self._finish("opening a channel", opened)
        except exceptions.AMQPError as error:
            self.forget()
            raise fault(error, "opening a channel") from error
        except BaseException:
            self.forget()
            raise
        return self

    async def call(self, method: str, what: str, seconds: float | None = None, /, **arguments: Any) -> Any:
        """Call a method of pika's channel that answers, within `seconds` if given; returns the answer's method.

        Raises: `Unavailable`, and what the server refuses; the channel is closed then.
        """
        if self.why is not None:
            raise self.why
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            getattr(self.raw, method)(callback=partial(_answer, answered), **arguments)
        except exceptions.AMQPError as error:
            raise fault(error, what) from error
        frame = await self._finish(what, answered, seconds)
        return frame.method

    async def _finish(self, what: str, future: asyncio.Future[Any], seconds: float | None = None) -> Any:
        self._calls.add(future)
        seconds = min(seconds or self._link.timeout, self._link.timeout)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError as error:
            raise Unavailable(f"{what}: no answer within {seconds:.0f} s") from error
        except EasybusError as error:
            raise type(error)(f"{what}: {error}") from error
        finally:
            self._calls.discard(future)
            if not future.done() or future.cancelled():
                self.forget()  # pika sends nothing more on it before that answer

    def forget(self) -> None:
        """Give it up, without waiting for an answer."""
        with contextlib.suppress(exceptions.AMQPError):
            if self.raw is not None and self.raw.is_open:
                self.raw.close()
        self._close(Unavailable("the channel was given up"))

    def _closed(self, _: Any, reason: BaseException) -> None:
        error = fault(reason, "the channel was closed")
        self._close(error)

    def _close(self, error: Exception) -> None:
        if self.why is not None:
            return
        self.why = error
        with contextlib.suppress(ValueError):
            self._link.on_lost.remove(self._close)
        for call in list(self._calls):
            if not call.done():
                call.set_exception(error)
        self._on_closed(error)


def _answer(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)

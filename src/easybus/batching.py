"""The one performance idea: what crosses to an engine goes together.

While one flush is under way, what arrives waits and goes in the next. There is no linger: an idle bus adds no latency.

    idle → add → flushing(first) ─ more arrive → flushing(those) ─ … → idle
    a flush refused as a whole, of more than one item: halved, so that a bad item fails alone
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from .errors import EngineError, Refused

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects items for one connection and one kind of call.

    `flush` is given up to `limit` items and returns as many results in their order; a result that is an exception
    fails its item alone. An exception out of `flush` fails the batch, but `Refused` of several items is found out
    item by item.
    """

    def __init__(
        self, flush: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]], *, limit: int = 500
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, item: Item) -> asyncio.Future[Result]:
        """Hand over one item; the future is its result. A cancelled waiter does not take its item back."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return future

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waiting."""
        return self._task is not None

    async def drained(self) -> None:
        """Wait until everything that was added has its result."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._settle(batch)
        finally:
            self._task = None
            for _, future in (*batch, *self._waiting):  # not done only when the loop is torn down under us
                future.cancel()
            self._waiting.clear()

    async def _settle(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except Refused as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
        except Exception as error:
            _fail(batch, error)
        else:
            if len(results) != len(batch):
                _fail(batch, EngineError(f"{len(results)} results came for {len(batch)} items: which, nobody knows"))
                return
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


def _fail(batch: Sequence[tuple[object, asyncio.Future[Result]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)

"""A call's way through the writer's thread, and back to its event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from .connect import Connection
from .waking import Watcher

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]

WRITE: Any = object()
"""What a `peek` returns when there is something to write."""


class Job(Generic[T]):
    """One call: `control` is run by the thread between groups, `peek` outside of a transaction, `work` inside."""

    __slots__ = ("control", "durable", "error", "future", "peek", "result", "since", "undo", "work")

    def __init__(
        self,
        work: Work[T] | None = None,
        *,
        durable: bool = False,
        peek: Work[Any] | None = None,
        undo: Callable[[T], Any] | None = None,
        control: Callable[[], T] | None = None,
    ) -> None:
        self.future: asyncio.Future[T] | None = None  # None: nobody awaits it
        self.work = work
        self.durable = durable
        self.peek = peek
        self.undo = undo
        self.control = control
        self.since = time.monotonic()
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future is not None and self.future.cancelled()

    def settle(self) -> None:
        """On the loop: hand the outcome over, or take it back if nobody waits for it any more."""
        if self.future is None:
            return
        if self.future.done():
            if self.undo is not None and self.error is None and self.result is not None:
                self.undo(self.result)
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def deliver(jobs: Sequence[Job[Any]], woken: Sequence[Watcher] = ()) -> None:
    """Bring outcomes to their event loops, and wake watchers, with one call for each loop."""
    loops: dict[asyncio.AbstractEventLoop, tuple[list[Job[Any]], list[Watcher]]] = {}
    for job in jobs:
        if job.future is not None:
            loops.setdefault(job.future.get_loop(), ([], []))[0].append(job)
    for watcher in woken:
        loops.setdefault(watcher.get_loop(), ([], []))[1].append(watcher)
    for loop, (settled, watchers) in loops.items():
        try:
            loop.call_soon_threadsafe(_arrive, settled, watchers)
        except RuntimeError:  # that loop is closed: nobody waits any more
            continue


def _arrive(jobs: list[Job[Any]], woken: list[Watcher]) -> None:
    for job in jobs:
        job.settle()
    for watcher in woken:
        if not watcher.done():
            watcher.set_result(None)

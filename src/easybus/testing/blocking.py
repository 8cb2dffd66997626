"""The harness for plain tests, without await: the bus under test runs on a thread of its own.

with bus.testing().blocking as t:
    bus.blocking.send(orders, OrderPaid(1))
    t.drain()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..bus import Bus
    from ..engines.contract import DeadLetter
    from .harness import Harness, Sent
    from .virtual import VirtualClock

__all__ = ["BlockingHarness"]

T = TypeVar("T")


class BlockingHarness:
    """A `Harness` whose calls block; each does what its namesake does."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="easybus testing", daemon=True)

    def __enter__(self) -> BlockingHarness:
        self._thread.start()
        try:
            self._call(self._harness.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._harness.__aexit__(kind, error, trace))
        finally:
            self._end()

    @property
    def bus(self) -> Bus:
        """The bus under test."""
        return self._harness.bus

    @property
    def clock(self) -> VirtualClock:
        """Its clock."""
        return self._harness.clock

    def drain(self) -> None:
        """See `Harness.drain`."""
        self._call(self._harness.drain())

    def advance(self, **spans: float) -> None:
        """See `Harness.advance`."""
        self._call(self._harness.advance(**spans))

    def retry(self, queue: str) -> int:
        """See `Harness.retry`."""
        return self._call(self._harness.retry(queue))

    def sent(self, target: Any) -> Sent:
        """See `Harness.sent`."""
        return self._harness.sent(target)

    def dead(self, queue: str) -> list[DeadLetter]:
        """See `Harness.dead`."""
        return self._harness.dead(queue)

    @property
    def failures(self) -> list[BaseException]:
        """See `Harness.failures`."""
        return self._harness.failures

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

"""What callers' transactions committed, published in their order.

    claim (whole transactions, one fresh token) → rounds: each transaction's next row
        published, confirmed → deleted by (id, token) → its next row is in the next round
        Unavailable → the transaction's remaining rows go back, behind one due time
        Refused     → the transaction is parked, and said once
        delete finds fewer rows than were published → some lease lapsed: all of that round go back under their token,
                      which gives nothing back that is another relay's now

A row is published only after the one before it in its transaction is confirmed, and never in one call with it: of a
batch that an engine confirms item by item, the second may be there when the first is not. Transactions do not wait for
each other. A relay scans and keeps no cursor: a lower id may commit later. A lapsed lease lets another relay publish
copies under the same ids; it reorders nothing, since each stops at the first delete that changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from .. import points
from ..clock import Clock, sleep
from ..connection import Publisher
from ..engines.contract import OutboxRow, OutboxStorage
from ..errors import Refused, SendError
from .outage import Outage

__all__ = ["Relay"]

_ROWS = 500
_BUSY_POLL = 0.05
_IDLE_POLL = 1.0
_IDLE_AFTER = 20
"""So many empty looks in a row, and the relay looks less often."""
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 5.0


@dataclass(slots=True)
class _Taken:
    """One claimed transaction: its rows that are not published yet, and until when they are safely ours."""

    rows: deque[OutboxRow]
    until: float


def _first(taken: _Taken) -> OutboxRow:
    return taken.rows[0]


class Relay:
    """Publishes one outbox's rows of one service."""

    def __init__(
        self,
        *,
        service: str,
        outbox: OutboxStorage,
        publisher: Publisher,
        clock: Clock,
        logger: logging.Logger,
        lease: float = 10.0,
    ) -> None:
        """`lease`: seconds until another relay may take what this one claimed and did not finish: how long committed
        messages wait when a process is killed while it publishes them."""
        self._service = service
        self._outbox = outbox
        self._publisher = publisher
        self._clock = clock
        self._logger = logger
        self._lease = lease
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._look = False
        self._relaying = 0
        self._failure: BaseException | None = None
        self.published: Counter[tuple[bool, str]] = Counter()
        """How many messages this relay has published, by whether it was to a topic, and the name."""

    def wake(self) -> None:
        """Rows may have been committed: look now. From any thread: commit hooks run on the caller's."""
        self._look = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
                self._loop.call_soon_threadsafe(self._woken.set)

    @property
    def busy(self) -> bool:
        """Whether rows are being published, or are to be looked for."""
        return self._relaying > 0 or self._look

    async def run(self) -> None:
        """Publish what is committed, until cancelled. Outages are survived: one log line down and one up."""
        self._loop = asyncio.get_running_loop()
        storage = Outage(f"the outbox of {self._service!r}", self._logger)
        broker = Outage(f"publishing from the outbox of {self._service!r}", self._logger)
        empty = 0
        while True:
            if self._look:
                empty = 0
            try:
                published = await self.relay_due()
                storage.over()
                if self._failure is not None:
                    await sleep(self._clock, broker.failed(self._failure))
                elif published:
                    broker.over()
                    empty = 0
                else:
                    empty += 1
                    await self._wait(_BUSY_POLL if empty <= _IDLE_AFTER else _IDLE_POLL)
            except Exception as error:
                await sleep(self._clock, storage.failed(error))

    async def _wait(self, seconds: float) -> None:
        """Until rows may have been committed, here or elsewhere; polling alone would find them too."""
        moved = asyncio.ensure_future(self._outbox.wait(seconds))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait([moved, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            woken.cancel()
        await asyncio.wait([moved, woken])
        if not moved.cancelled():
            moved.result()

    async def relay_due(self) -> int:
        """Publish what is committed and due now; returns how many rows were published and deleted.

        Raises:
            EngineError: the outbox cannot be reached; whatever was claimed is free when its lease has passed.
        """
        self._relaying += 1
        self._look = False
        self._woken.clear()
        self._failure = None
        published = 0
        try:
            taken = await self._claim(_ROWS)
            while taken:
                count, taken = await self._round(taken)
                published += count
                room = _ROWS - sum(len(each.rows) for each in taken)
                if taken and room > 0 and self._failure is None:
                    taken += await self._claim(room)  # a long transaction keeps no other waiting
        finally:
            self._relaying -= 1
        return published

    async def _claim(self, limit: int) -> list[_Taken]:
        until = self._clock.time() + self._lease / 2
        rows = await self._outbox.claim(self._service, limit, self._lease)
        if rows and points.hook is not None:
            await points.reach("outbox.claimed")
        return [_Taken(deque(group), until) for _, group in itertools.groupby(rows, lambda row: row.transaction)]

    async def _round(self, taken: list[_Taken]) -> tuple[int, list[_Taken]]:
        """Publish the first row of each; returns how many, and the transactions with rows left."""
        now = self._clock.time()
        await self._give_back([each for each in taken if each.until <= now])
        taken = [each for each in taken if each.until > now]
        results = await asyncio.gather(
            *(self._publisher.publish(each.rows[0].publication) for each in taken), return_exceptions=True
        )
        confirmed = [each for each, result in zip(taken, results, strict=True) if not isinstance(result, BaseException)]
        self.published.update((row.publication.to_topic, row.publication.name) for row in map(_first, confirmed))
        deleted = await self._delete(confirmed)
        for each, result in zip(taken, results, strict=True):
            if isinstance(result, BaseException):
                await self._fail(each, result)
        left = [each for each in confirmed if each.rows]
        if deleted < len(confirmed):
            await self._give_back(left)
            left = []
        return deleted, left

    async def _delete(self, confirmed: Sequence[_Taken]) -> int:
        if not confirmed:
            return 0
        if points.hook is not None:
            await points.reach("outbox.published")
        rows = [each.rows.popleft() for each in confirmed]
        deleted = await self._outbox.delete([(row.id, row.token) for row in rows])
        if points.hook is not None:
            await points.reach("outbox.deleted")
        return deleted

    async def _give_back(self, taken: Sequence[_Taken]) -> None:
        for each in taken:
            await self._outbox.release(each.rows[0].transaction, each.rows[0].token, 0.0)

    async def _fail(self, taken: _Taken, error: BaseException) -> None:
        row = taken.rows[0]
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, Refused | SendError):
            await self._outbox.park(row.transaction, row.token, text)
            self._logger.error(
                "the outbox parks a transaction: message %s to %r is refused: %s; mend the cause and unpark %s",
                row.publication.dedupe_id,
                row.publication.name,
                text,
                row.transaction,
            )
            return
        self._failure = error
        backoff = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(row.failures, 10))
        await self._outbox.release(row.transaction, row.token, backoff, text)

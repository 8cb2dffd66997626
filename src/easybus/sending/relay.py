"""What callers' transactions committed, published in their order.

    claim (whole transactions, one fresh token) → rounds: each transaction's next rows
        published, confirmed → deleted by (id, token) → its next rows are in the next round
        Unavailable → the transaction's remaining rows go back, behind one due time
        Refused     → the transaction is parked, and said once
        delete finds fewer rows than were published → some lease lapsed: all of that round go back under their token,
                      which gives nothing back that is another relay's now

A row is never there without the one before it in its transaction. Most engines confirm a batch item by item, and the
second may be there when the first is not: to them each round publishes one row of each transaction, and the next only
after its confirm. To engines that are `unbroken` a round publishes several, each `behind` the one before it; when such
a call fails, all of it is published again, from its first row on. Transactions do not wait for each other. A relay
scans and keeps no cursor: a lower id may commit later. A lapsed lease lets another relay publish copies under the same
ids; it reorders nothing, since each stops at the first delete that changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from .. import points
from ..clock import Clock, sleep
from ..connection import Publisher
from ..engines.contract import OutboxRow, OutboxStorage
from ..errors import Refused, SendError
from ..outages import Outage, Outages
from ..shown import described

__all__ = ["Relay"]

_ROWS = 500
_BYTES = 4 << 20
"""Rows, and bytes of them, that a round publishes of transactions' later rows."""
_FIRST_POLL = 0.005
_BUSY_POLL = 0.05
_IDLE_POLL = 0.5
_IDLE_AFTER = 100
"""So many empty looks in a row, and the relay looks less often."""
_SHORTEST_LEASE = 1.0
_LONGEST_LEASE = 10.0
_ROUNDS = 5.0
"""A lease lasts at least as long as so many of the slowest of the last claims and rounds."""
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 5.0


@dataclass(slots=True)
class _Taken:
    """One claimed transaction: its rows that are not published yet, and until when they are safely ours."""

    rows: deque[OutboxRow]
    until: float


@dataclass(slots=True)
class _Part:
    """What a round publishes of one transaction, and how many of these rows are confirmed."""

    taken: _Taken
    rows: list[OutboxRow]
    confirmed: int = 0
    error: BaseException | None = None

    def take(self, results: Sequence[object]) -> None:
        """The results of its rows."""
        for result in results:
            if isinstance(result, BaseException):
                self.error = result
                return
            self.confirmed += 1


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
        lease: float | None = None,
        outages: Outages | None = None,
    ) -> None:
        """`lease`: seconds until another relay may take what this one claimed and did not finish: how long committed
        messages wait when a process is killed while it publishes them. None: a second, and more where publishing is
        slow."""
        self._service = service
        self._outbox = outbox
        self._publisher = publisher
        self._clock = clock
        self._logger = logger
        self._fixed_lease = lease
        self._outages = outages or Outages(logger)
        self._slowest = 0.0
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
        storage = Outage(f"the outbox of {self._service!r}", self._outages)
        broker = Outage(f"publishing from the outbox of {self._service!r}", self._outages)
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
                    # A send that rides in a transaction wakes us before its commit, which mostly follows at once.
                    soon = min(_BUSY_POLL, _FIRST_POLL * 2**empty)
                    empty = min(empty + 1, _IDLE_AFTER + 1)
                    await self._wait(soon if empty <= _IDLE_AFTER else _IDLE_POLL)
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

    @property
    def _lease(self) -> float:
        if self._fixed_lease is not None:
            return self._fixed_lease
        return min(_LONGEST_LEASE, max(_SHORTEST_LEASE, self._slowest * _ROUNDS))

    async def _claim(self, limit: int) -> list[_Taken]:
        lease, began = self._lease, self._clock.time()
        rows = await self._outbox.claim(self._service, limit, lease)
        self._note(began)
        if rows and points.hook is not None:
            await points.reach("outbox.claimed")
        return [
            _Taken(deque(group), began + lease / 2) for _, group in itertools.groupby(rows, lambda row: row.transaction)
        ]

    async def _round(self, taken: list[_Taken]) -> tuple[int, list[_Taken]]:
        """Publish the next rows of each; returns how many, and the transactions with rows left."""
        began = self._clock.time()
        await self._give_back([each for each in taken if each.until <= began])
        parts = self._parts([each for each in taken if each.until > began])
        await self._publish(parts)
        for part in parts:
            rows = part.rows[: part.confirmed]
            self.published.update((row.publication.to_topic, row.publication.name) for row in rows)
        confirmed = sum(part.confirmed for part in parts)
        deleted = await self._delete(parts)
        for part in parts:
            if part.error is not None:
                await self._fail(part.taken, part.error)
        left = [part.taken for part in parts if part.error is None and part.taken.rows]
        if deleted < confirmed:
            await self._give_back(left)
            left = []
        self._note(began)
        return deleted, left

    def _note(self, began: float) -> None:
        """How long a claim or a round took: a lease must outlast several, else nothing would ever be published."""
        self._slowest = max(self._slowest * 0.9, self._clock.time() - began)

    def _parts(self, taken: list[_Taken]) -> list[_Part]:
        parts = [_Part(each, [each.rows[0]]) for each in taken]
        room, size = _ROWS - len(parts), 0
        if not self._publisher.driver.caps.unbroken:
            return parts
        for part in parts:
            for row in itertools.islice(part.taken.rows, 1, max(1, _ROWS // len(parts))):
                size += len(row.publication.body)
                if room <= 0 or size > _BYTES:
                    return parts
                room -= 1
                part.rows.append(row)
        return parts

    async def _publish(self, parts: list[_Part]) -> None:
        if any(len(part.rows) > 1 for part in parts):
            batch = [
                row.publication if at == 0 else replace(row.publication, behind=True)
                for part in parts
                for at, row in enumerate(part.rows)
            ]
            try:
                results = iter(await self._publisher.publish_unbroken(batch))
            except Refused:  # some item of it, and who knows which: one row of each, then
                for part in parts:
                    del part.rows[1:]
            except Exception as error:
                for part in parts:
                    part.error = error
                return
            else:
                for part in parts:
                    part.take(list(itertools.islice(results, len(part.rows))))
                return
        waiting = (self._publisher.publish(part.rows[0].publication) for part in parts)
        for part, result in zip(parts, await asyncio.gather(*waiting, return_exceptions=True), strict=True):
            part.take([result])

    async def _delete(self, parts: Sequence[_Part]) -> int:
        rows = [part.taken.rows.popleft() for part in parts for _ in range(part.confirmed)]
        if not rows:
            return 0
        if points.hook is not None:
            await points.reach("outbox.published")
        deleted = await self._outbox.delete([(row.id, row.token) for row in rows])
        if points.hook is not None:
            await points.reach("outbox.deleted")
        return deleted

    async def _give_back(self, taken: Sequence[_Taken]) -> None:
        for each in taken:
            await self._outbox.release(each.rows[0].transaction, each.rows[0].token, 0.0)

    async def _fail(self, taken: _Taken, error: BaseException) -> None:
        row = taken.rows[0]
        text = described(error)
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

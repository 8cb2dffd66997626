"""One queue's loop: slots, workers, leases, and a clean stop.

    fetching: as many as there are free slots → ready → workers (long-lived, one a slot at most) → pipeline
              (a slot whose function has returned, and whose transaction is being committed, counts as free here;
              where handlers are quick, some more are fetched ahead, and go back if they are not begun soon)
    renewing: every third of the lease, what is in hand is extended; what is held no more is cancelled
    stopping: no more fetches → what is ready and unbegun goes back → handlers end, or are cancelled after the grace,
              until they have → what is finished is settled to the end

A worker is started when all are at work and something is ready: a task a message would cost half of the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from ..cancelling import ended
from ..clock import Clock, sleep, wait
from ..engines.contract import Taken
from ..errors import EngineError, NotDeclared
from ..outages import Outage, Outages
from .ahead import Ahead
from .claim import Intake
from .hand import Hand, Why
from .pipeline import Pipeline
from .replay import Replayer
from .settle import Settler

__all__ = ["Receiver"]

_WAIT = 5.0
"""Seconds of one fetch that finds nothing."""
_INTERRUPT = 0.02
"""Seconds within which a fetch finds what there is; past them it only waits, and a stop cancels it."""
_CLEAN_UP = 5.0
"""Seconds that a cancelled handler may take to put away what it holds, before it is cancelled once more."""


class Receiver:
    """Fetches, handles and settles the messages of one queue."""

    def __init__(
        self,
        pipeline: Pipeline,
        intake: Intake,
        settler: Settler,
        *,
        replayer: Replayer | None,
        clock: Clock,
        logger: logging.Logger,
        outages: Outages | None = None,
    ) -> None:
        self.queue = pipeline.subscription.queue
        self._options = pipeline.options
        self._pipeline = pipeline
        pipeline.on_room(self._wake_fetch)
        self._intake = intake
        self._settler = settler
        self.replayer = replayer
        self._clock = clock
        self._logger = logger
        self._outage = Outage(f"queue {self.queue!r}", outages or Outages(logger), longest_pause=2.0)
        self._ready: deque[tuple[Taken, float]] = deque()
        self._ahead = Ahead(self._options.concurrency, self._options.lease, clock, never=intake.looks_ahead)
        self._refill = 0
        """More is fetched as soon as no more than this are ready."""
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False
        """A worker was woken, and has not looked yet: it will see what is ready, and wake the next if there is more."""
        self._at_work = 0
        self._slot_free: asyncio.Future[None] | None = None
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        self._fetching: asyncio.Task[None] | None = None
        self._asked = 0.0
        """When the fetch under way was begun, by the loop's clock."""
        self._hurried = False

    # ------------------------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Begin to fetch and handle. Starting again after a stop works."""
        if self._loops:
            return
        self._stopping = self._waking = self._hurried = False
        loop = asyncio.get_running_loop()
        self._fetching = loop.create_task(self._guarded(self._fetch), name=f"easybus fetch {self.queue}")
        self._loops = [self._fetching, loop.create_task(self._guarded(self._renew), name=f"easybus renew {self.queue}")]
        if self.replayer is not None:
            self._loops.append(loop.create_task(self._guarded(self.replayer.run), name=f"easybus replay {self.queue}"))

    async def stop(self, grace: float | None = None) -> None:
        """Stop: what is in flight ends uncancelled within `grace` seconds (None: however long it takes), what was not
        begun goes back, what has finished is completed and acked. Past the grace handlers are cancelled, again each
        5 seconds until they have ended. A second stop does nothing."""
        if not self._loops:
            return
        self._stopping = True
        self._wake_fetch()
        fetching, renewing, *others = self._loops
        await self._end(fetching)
        self._outage.ended()
        for task in others:
            task.cancel()
        self._give_back()
        await self._wait_for_handlers(grace)
        self._release_idle()
        while self._workers:
            for hand in self.at_work:
                hand.cancel(Why.STOPPED)
            await asyncio.wait(self._workers, timeout=_CLEAN_UP)
        await self._settler.drained()
        await ended(renewing, *others)
        self._loops = []

    def hurry(self) -> None:
        """End the grace time of a stop now."""
        self._hurried = True
        self._wake_fetch()

    async def _end(self, fetching: asyncio.Task[None]) -> None:
        left = self._asked + _INTERRUPT - asyncio.get_running_loop().time()
        await asyncio.wait([fetching], timeout=max(0.0, left))
        await ended(fetching)

    def _give_back(self) -> None:
        """What is ready and not begun goes back."""
        if self._ready:
            self._settler.not_begun([taken for taken, _ in self._ready])
            self._ready.clear()

    async def _wait_for_handlers(self, grace: float | None) -> None:
        """Until all have ended, or the grace time is over."""
        ends = None if grace is None else self._clock.time() + grace
        while self._at_work and not self._hurried:
            left = None if ends is None else ends - self._clock.time()
            if left is not None and left <= 0:
                return
            self._slot_free = asyncio.get_running_loop().create_future()
            await wait(self._clock, self._slot_free, left)

    @property
    def busy(self) -> bool:
        """Whether messages are ready, at work, or being settled."""
        return bool(self._ready or self._at_work or self._settler.busy)

    @property
    def settling(self) -> bool:
        """Whether messages are ready, or on their way to the engine: all but handlers at work."""
        return bool(self._ready or self._settler.busy)

    @property
    def at_work(self) -> list[Hand]:
        """What is in hand."""
        return list(self._pipeline.holding)

    # -------------------------------------------------------------------------------------------------- fetching

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            limit, ahead = self._room()
            if not limit:
                await self._until_room()
                continue
            self._asked = loop.time()
            try:
                taken = await self._intake.take(limit, _WAIT)
                taken = await self._pipeline.one_suspect(taken, (one for one, _ in self._ready))
            except NotDeclared as error:
                self._logger.error("queue %r is not handled: %s", self.queue, error)
                await sleep(self._clock, 5.0)
                continue
            except EngineError as error:
                await sleep(self._clock, self._outage.failed(error))
                continue
            self._outage.over()
            if not taken:
                continue
            # A tenth for the reply's way: the claims were written before now.
            until = self._clock.time() + self._options.lease * 0.9
            self._ready.extend((one, until) for one in taken)
            self._ahead.took(taken)
            if ahead:  # the next lot is asked for first, and then these are handled while it comes
                loop.call_soon(self._wake_worker)
            else:
                self._wake_worker()

    def _room(self) -> tuple[int, int]:
        """How many are to be fetched now, and how many may wait for slots."""
        slots, ready = self._options.concurrency, len(self._ready)
        self._refill = 0
        if not self._pipeline.room(one for one, _ in self._ready):
            return 0, 0  # what would wait for one that may kill its process would be begun in vain with it
        ahead = self._ahead.most(ready)
        self._refill = ahead // 2
        # While their work is committed, what comes next may be fetched and claimed.
        waiting = ahead + (0 if self._ahead.paused else self._pipeline.ending)
        room = slots + waiting - self._at_work - ready
        if room < max(1, self._refill) or ready > waiting:
            return 0, ahead
        return min(room, (slots + ahead + 1) // 2) if ahead else room, ahead

    async def _until_room(self) -> None:
        self._slot_free = asyncio.get_running_loop().create_future()
        if not self._ready:
            await self._slot_free
        elif not await wait(self._clock, self._slot_free, self._ahead.patience, poll=True):
            self._ahead.went_back(len(self._ready))
            self._give_back()
            return
        await asyncio.sleep(0)  # let every worker that is done say so: one fetch for all of them

    def _wake_fetch(self) -> None:
        if self._slot_free is not None and not self._slot_free.done():
            self._slot_free.set_result(None)

    # --------------------------------------------------------------------------------------------------- workers

    def _wake_worker(self) -> None:
        """One more worker looks at what is ready; it wakes the next if it does not get through alone."""
        if self._waking:
            return
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)
                self._waking = True
                return
        if len(self._workers) < self._options.concurrency:
            self._waking = True
            task = asyncio.get_running_loop().create_task(self._guarded(self._work), name=f"easybus {self.queue}")
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)

    def _release_idle(self) -> None:
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        ready, handle, worker, clock = self._ready, self._pipeline.handle, asyncio.current_task(), self._clock
        self._waking = False
        while True:
            if not ready:
                self._wake_fetch()  # a slot is free
                if self._stopping:
                    return
                future = loop.create_future()
                self._idle.append(future)
                await future
                self._waking = False
                continue
            taken, until = ready.popleft()
            if until <= clock.time():  # this process stood still: they may be another's by now
                lapsed = [taken]
                while ready and ready[0][1] <= clock.time():
                    lapsed.append(ready.popleft()[0])
                self._settler.not_begun(lapsed)
                continue
            self._at_work += 1
            if ready:
                self._wake_worker()
            if len(ready) <= self._refill:
                self._wake_fetch()
            try:
                await handle(taken, until, worker)
            except Exception:
                # A fault of ours: the message stays in flight, and its lease brings it back.
                self._logger.exception("queue %r: a message is left to its lease", self.queue)
            finally:
                self._at_work -= 1

    # ---------------------------------------------------------------------------------------------------- leases

    async def _renew(self) -> None:
        lease = self._options.lease
        while True:
            slept_at = self._clock.time()
            await sleep(self._clock, lease / 3, poll=True)
            now = self._clock.time()
            hands = list(self._pipeline.holding)
            if now - slept_at > lease:  # the loop itself stood still: what lapsed meanwhile is another's
                for hand in hands:
                    if hand.held_until <= now:
                        hand.cancel(Why.FENCED)
            if hands := [hand for hand in hands if not hand.acked]:  # these their transactions hold: until they end
                await self._extend(hands, now, lease)

    async def _extend(self, hands: list[Hand], now: float, lease: float) -> None:
        for hand in hands:
            hand.extended = True
        try:
            lost = await self._settler.extend(hands, lease)
        except EngineError:
            for hand in hands:
                if hand.held_until <= now + lease / 3:  # it ends before the next renewal could tell
                    hand.cancel(Why.FENCED)
            return
        gone = set(lost)
        for hand in hands:
            if hand in gone:
                hand.cancel(Why.FENCED)
            else:
                hand.held_until = now + lease

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A loop of ours that ends by an error is a fault of ours: said, never silent."""
        try:
            await loop()
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._logger.critical("queue %r is handled no more", self.queue, exc_info=True)
            with contextlib.suppress(Exception):
                self._wake_fetch()
            raise

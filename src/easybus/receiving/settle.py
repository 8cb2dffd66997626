"""From an outcome to the engine: each order loses nothing, whatever dies between two steps.

    done         complete(token) → ack                 one step where the engine holds both
    retry        Move → release(token)                 where Move is atomic; an unknown result lets the lease end
                 publish, confirmed → release → ack    elsewhere: at worst a copy
                 refused for good by what it is        nothing has happened: a dead letter
    dead letter  store → release → ack                 with no claim, or in conflict: store → ack
                 refused for good                      back, said once, later each time: never lost, never in a loop
    back         release → nack                        not begun: its starts are counted again in between
    not the holder any more at completion: read again; DONE → ack, else nack, never ack

What fails here because the engine is away stays in flight: its lease ends, and another takes it over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, cast

from .. import points
from ..batching import Batcher
from ..clock import Clock, sleep
from ..connection import Publisher
from ..engines.contract import (
    Ack,
    Claimed,
    DeadLetterStorage,
    Delivery,
    Driver,
    Extend,
    Finish,
    FusedDriver,
    IdempotencyStorage,
    Move,
    Nack,
    Publication,
    Settled,
    Settlement,
    Taken,
)
from ..errors import BadDelay, EngineError, Refused, TooLarge, Unavailable
from ..message import FIRST_FAILED, Message, new_id
from .claim import claim_of
from .hand import Hand
from .letters import Letters, letter_of
from .subscription import Subscription

__all__ = ["Settler"]

_BUSY_DELAY = 1.0
_AT_ONCE = 500
_UNKEPT_FIRST, _UNKEPT_CAP = 60.0, 3600.0
"""Seconds until what cannot be kept as a dead letter is tried again: twice as long each time."""
_MOST_SAID = 1000


class Settler:
    """Settles one queue's messages, in batches."""

    def __init__(
        self,
        subscription: Subscription,
        publisher: Publisher,
        keys: IdempotencyStorage | None,
        letters: DeadLetterStorage | None,
        *,
        fused: bool,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`letters` None: dead letters go to a queue of their own, `<queue>.dead`."""
        self.queue = subscription.queue
        self._keep = subscription.options.keep
        self._publisher = publisher
        self._driver: Driver = publisher.driver
        self._keys = keys
        self._letters = Letters(self.queue, letters, publisher, logger)
        self._unkept: set[str] = set()
        """Messages of which it was said that they cannot be kept."""
        self._fused = cast("FusedDriver", publisher.driver) if fused and keys is not None else None
        self._clock = clock
        self._logger = logger
        self._settlements: Batcher[Settlement, Settled] = Batcher(self._settle)
        self._releases: Batcher[str, bool] = Batcher(self._release)
        self._finished: list[Hand] = []
        self._finishing: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        """What nobody waits for but a stop."""
        self._going_back: set[asyncio.Task[None]] = set()
        """Of these, messages that did not begin."""

    @property
    def busy(self) -> bool:
        """Whether anything is on its way to the engine."""
        return bool(self._finishing or self._settlements.busy or self._releases.busy or self._beside)

    async def drained(self) -> None:
        """Wait until everything that was handed over is settled."""
        while self.busy:
            if self._finishing is not None:
                await asyncio.wait([self._finishing])
            await self._settlements.drained()
            await self._releases.drained()
            if self._beside:
                await asyncio.wait(self._beside)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a fault of ours
            self._logger.error("queue %r: messages are left to their leases", self.queue, exc_info=error)

    # ------------------------------------------------------------------------------------------------------- done

    def done(self, hand: Hand) -> None:
        """The handler returned: complete, then ack. Nobody waits for it: a future each would cost more than that."""
        if not hand.token:
            self.committed(hand)
            return
        self._finished.append(hand)
        if self._finishing is None:
            self._finishing = asyncio.get_running_loop().create_task(self._finish_all())

    def committed(self, hand: Hand) -> None:
        """The handler returned, and DONE is committed with its work, or not asked for: ack. Nobody waits for it."""
        acked = self._ack(hand.delivery)
        acked.add_done_callback(lambda future: self._acked(hand.delivery, future))

    def _acked(self, delivery: Delivery, future: asyncio.Future[Settled]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, EngineError):
            self._left(delivery, error)

    async def _finish_all(self) -> None:
        try:
            # One turn of the loop later the next fetch is asked for too: where it can, the engine does both in one
            # transaction, which halves what is flushed to the disk.
            await asyncio.sleep(0)
            while self._finished:
                hands, self._finished = self._finished[:_AT_ONCE], self._finished[_AT_ONCE:]
                try:
                    completed = await self._finish(hands)
                except EngineError as error:
                    for hand in hands:
                        self._start(self._finish_again(hand, error))
                    continue
                if not all(completed):
                    for hand, ok in zip(hands, completed, strict=True):
                        if not ok:
                            self._start(self.reread(hand))
        finally:
            self._finishing = None

    async def _finish(self, hands: list[Hand]) -> list[bool]:
        if points.hook is not None:
            await points.reach("handler.done")
        if self._fused is not None:
            completed = await self._fused.finish(
                self.queue, [Finish(hand.delivery, hand.token, self._keep) for hand in hands]
            )
        else:
            assert self._keys is not None  # noqa: S101 - a token came from them
            completed = await self._keys.complete([(hand.token, self._keep) for hand in hands])
            if points.hook is not None:
                await points.reach("key.completed")
            await self._driver.settle(
                self.queue, [Ack(hand.delivery) for hand, ok in zip(hands, completed, strict=True) if ok]
            )
        if points.hook is not None:
            await points.reach("delivery.acked")
        return completed

    async def _finish_again(self, hand: Hand, error: EngineError | None) -> None:
        """DONE was not written, or nobody knows: try again while the claim is surely ours, then look who has it."""
        pause = 0.05
        while error is not None:
            if self._clock.time() >= hand.held_until:
                self._logger.warning(
                    "message %s of queue %r is handled, and DONE could not be written: %s",
                    hand.id,
                    self.queue,
                    error,
                )
                return
            await sleep(self._clock, pause)
            pause = min(pause * 2, 2.0)
            try:
                [completed] = await self._finish([hand])
            except EngineError as again:
                error = again
            else:
                if completed:
                    return
                error = None
        await self.reread(hand)

    async def reread(self, hand: Hand) -> None:
        """A completion changed nothing: DONE → ack, else nack, never ack."""
        assert self._keys is not None  # noqa: S101 - a token came from them
        try:
            if await self._keys.lookup(self.queue, hand.id) == "done":
                await self._ack(hand.delivery)
            else:
                await self._settlements.add(Nack(hand.delivery, _BUSY_DELAY))
        except EngineError as error:
            self._left(hand.delivery, error)

    # ----------------------------------------------------------------------------------- outcomes other than done

    async def ack(self, delivery: Delivery) -> None:
        """It is handled already: gone."""
        try:
            await self._ack(delivery)
        except EngineError as error:
            self._left(delivery, error)

    async def busy_elsewhere(self, delivery: Delivery) -> None:
        """Another has it in hand: look again later; that is no attempt."""
        try:
            await self._settlements.add(Nack(delivery, _BUSY_DELAY))
        except EngineError as error:
            self._left(delivery, error)

    async def back(self, hand: Hand, delay: float = 0.0) -> None:
        """Not handled, and not counted: release, then nack."""
        await self._back(hand.delivery, hand.token, delay)

    async def _back(self, delivery: Delivery, token: str, delay: float) -> None:
        try:
            if token:
                await self._releases.add(token)
            await self._settlements.add(Nack(delivery, delay))
        except EngineError as error:
            self._left(delivery, error)

    def not_begun(self, taken: Sequence[Taken], delay: float = 0.0) -> None:
        """Back, with their starts as they were before these claims: they were to wait, and did not begin."""
        task = self._start(self._uncount(taken, delay))
        self._going_back.add(task)
        task.add_done_callback(self._going_back.discard)

    async def all_back(self) -> None:
        """Wait until what did not begin has gone back."""
        if self._going_back:
            await asyncio.wait(self._going_back)

    async def _uncount(self, taken: Sequence[Taken], delay: float) -> None:
        again = [(one.parsed.message, one.claim) for one in taken if isinstance(one.claim, Claimed)]
        try:
            if again:
                assert self._keys is not None  # noqa: S101 - their claims came from them
                await self._keys.release([claim.token for _, claim in again])
                most = max(claim.starts for _, claim in again)
                for count in range(1, most):  # a release forgets all starts; dying in between counts too few: harmless
                    claims = [claim_of(self.queue, message, 0.0) for message, claim in again if claim.starts > count]
                    await self._keys.claim(claims)
            await self._driver.settle(self.queue, [Nack(one.delivery, delay) for one in taken])
        except EngineError as error:
            for one in taken:
                self._left(one.delivery, error)

    async def retry(self, hand: Hand, delay: float, reason: str, error: BaseException | None = None) -> None:
        """Failed, for this reason: the same message again in `delay` seconds, one attempt older."""
        again = Message.from_bytes(hand.delivery.body)  # what was sent, whatever the handler did to its copy
        again.id = again.id or new_id()
        again.retried += 1
        again.headers = {FIRST_FAILED: f"{self._clock.time():.3f}", **again.headers}
        body = again.to_bytes()
        dedupe_id = f"{again.id}/{hand.token or new_id()}"
        try:
            if points.hook is not None:
                await points.reach("retry.publishing")
            if self._driver.caps.atomic_move:
                settled = await self._settlements.add(Move(hand.delivery, body, delay, dedupe_id))
                if settled is Settled.UNKNOWN:
                    return
            else:
                await self._publisher.publish(Publication(False, self.queue, body, "", delay, dedupe_id))
            if points.hook is not None:
                await points.reach("retry.published")
            if hand.token:
                await self._releases.add(hand.token)
            if points.hook is not None:
                await points.reach("retry.released")
            if not self._driver.caps.atomic_move:
                await self._ack(hand.delivery)
        except (TooLarge, BadDelay) as refused:  # only a publish or a move is refused so: the claim is still held
            reason = f"{reason}; it cannot be retried: {refused}"
            await self.dead(hand.delivery, hand.message, reason, error, hand.token)
        except EngineError as failed:
            self._left(hand.delivery, failed)

    async def dead(
        self,
        delivery: Delivery,
        message: Message | None,
        reason: str,
        error: BaseException | None = None,
        token: str = "",
    ) -> None:
        """It cannot be handled: kept as a dead letter, then gone from the queue."""
        try:
            if points.hook is not None:
                await points.reach("dead.storing")
            letter = letter_of(delivery, message, reason, error, self._clock.time())
            try:
                await self._letters.keep(letter)
            except Refused as refused:
                await self._keep_later(delivery, letter.message_id or letter.reason, token, refused)
                return
            if points.hook is not None:
                await points.reach("dead.stored")
            if token:
                await self._releases.add(token)
            if points.hook is not None:
                await points.reach("dead.released")
            await self._ack(delivery)
        except EngineError as failed:
            self._left(delivery, failed)

    async def _keep_later(self, delivery: Delivery, what: str, token: str, refused: Refused) -> None:
        """No dead letter takes it, for good: it stays in its queue, and is tried again, later each time."""
        delay = min(_UNKEPT_FIRST * 2 ** min(delivery.attempt - 1, 10), _UNKEPT_CAP)
        level = logging.DEBUG if what in self._unkept else logging.ERROR
        if len(self._unkept) >= _MOST_SAID:
            self._unkept.clear()
        self._unkept.add(what)
        self._logger.log(
            level,
            "queue %r: message %s cannot be kept as a dead letter, stays in its queue, and is tried again, in %.0f s "
            "for the first time: %s",
            self.queue, what, delay, refused,
        )  # fmt: skip
        await self._back(delivery, token, delay)

    # ------------------------------------------------------------------------------------------------------ leases

    async def extend(self, hands: Sequence[Hand], lease: float) -> list[Hand]:
        """Renew claims and deliveries; returns those that are held no more. Raises `Unavailable`."""
        claimed = [hand for hand in hands if hand.token]
        lost: list[Hand] = []
        if claimed and self._keys is not None:
            renewed = await self._keys.renew([hand.token for hand in claimed], lease)
            lost = [hand for hand, ok in zip(claimed, renewed, strict=True) if not ok]
        settled = await self._driver.settle(self.queue, [Extend(hand.delivery, lease) for hand in hands])
        for hand, state in zip(hands, settled, strict=True):
            # With a claim, a delivery that is gone may come again and finds the key busy: no reason to stop.
            if state is Settled.STALE and not hand.token:
                lost.append(hand)
        return lost

    def _ack(self, delivery: Delivery) -> asyncio.Future[Settled]:
        return self._settlements.add(Ack(delivery))

    async def _settle(self, batch: list[Settlement]) -> list[Settled]:
        return await self._driver.settle(self.queue, batch)

    async def _release(self, tokens: list[str]) -> list[bool]:
        assert self._keys is not None  # noqa: S101 - a token came from them
        return await self._keys.release(tokens)

    def _left(self, delivery: Delivery, error: EngineError) -> None:
        level = logging.DEBUG if isinstance(error, Unavailable) else logging.ERROR
        self._logger.log(level, "queue %r: a delivery is left to its lease: %s", self.queue, error)

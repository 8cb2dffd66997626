"""The stages of handling one message, in their order. This file reads top to bottom as a message goes.

taken (fetched, decoded, claimed) → turn (beside others, or alone) → already handled? → invoke → outcome → settle

FREE → CLAIMED(token, lease) → DONE(expires)        failure: CLAIMED → FREE, which remembers that it was claimed
CLAIMED past its lease → CLAIMED by the next taker, with a new token (a takeover)

no message, wrong type, no handler     dead letter, at once
CONFLICT (the id had another payload)  dead letter
BUSY → nack with delay, not counted;   DONE → ack
claimed before                         already_handled? True → complete, ack;  None or an error → back, with delay
returned                               complete → ack
Reject                                 dead letter
Retry, False, exception, time-out      retry by policy, or dead letter when none is left
fenced off                             nothing: the message is another's
stopped                                release → nack
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..clock import Clock
from ..engines.contract import Busy, Claimed, Conflict, Done, Taken
from ..errors import Reject, Retry
from ..message import Message
from ..shown import described, said
from .hand import Company, Hand, Parsed, Why
from .invoke import Invoker, call_with_message
from .retry import delay_after
from .settle import Settler
from .subscription import Subscription
from .threads import Threads
from .within import ExactlyOnce, NotTheHolder

__all__ = ["Pipeline"]

_ASKED_AGAIN = 5.0
"""Seconds until `already_handled` is asked again, when it did not know."""
_SUSPECTS_NEXT, _SUSPECTS_LATER = 0.1, 1.0
"""Seconds until those that wait to run alone are looked at again, after one has got its turn, or none could."""


class Pipeline:
    """Handles one queue's messages, each from its claim to its outcome."""

    def __init__(
        self,
        subscription: Subscription,
        settler: Settler,
        company: Company,
        *,
        exactly_once: ExactlyOnce | None,
        clock: Clock,
        logger: logging.Logger,
        failed: Callable[[Message, BaseException], None] | None = None,
        threads: Threads | None = None,
    ) -> None:
        """`failed`: told of every exception that a handler raised; `threads`: where `already_handled` runs if it is
        plain."""
        self.subscription = subscription
        self.options = subscription.options
        self._settler = settler
        self._company = company
        self._exactly_once = exactly_once
        self._clock = clock
        self._logger = logger
        self._failed = failed
        self._threads = threads or Threads()
        self.holding: set[Hand] = set()
        """What is claimed and not settled: renewed."""
        self.ending = 0
        """Of these, whose function has returned and whose transaction is being committed."""
        self._room_again: Callable[[], None] = lambda: None

    async def handle(self, taken: Taken, until: float, worker: asyncio.Task[Any] | None) -> None:
        """Handle one message in the task `worker` (the current one); `until` is when its claim ends if it is not
        renewed."""
        parsed: Parsed = taken.parsed
        invoker = parsed.invoker
        claim = taken.claim
        if claim.__class__ is not Claimed and await self._settled_before(taken, parsed):
            return
        message = parsed.message
        assert invoker is not None and message is not None  # noqa: S101, PT018 - else settled before
        token = claim.token if isinstance(claim, Claimed) else ""
        hand = Hand(
            taken.delivery, message, parsed.payload, invoker, message.id, message.retried + 1, token, until, worker
        )
        self.holding.add(hand)
        try:
            if isinstance(claim, Claimed) and claim.before:
                await self._again(hand, invoker, claim.starts)
            elif self._company.open:
                self._company.running += 1
                try:
                    await self._invoke(hand, invoker)
                finally:
                    self._company.leave()
            else:
                await self._beside(hand, invoker)
        finally:
            self.holding.discard(hand)

    def on_room(self, call: Callable[[], None]) -> None:
        """Call this when a function has returned, whose slot will be free when its transaction is committed, and when
        messages may begin beside each other again."""
        self._room_again = call
        self._company.reopened.append(call)

    def room(self, waiting: Iterable[Taken]) -> bool:
        """Whether what comes next could begin: not beside one that runs alone, or is the next to do so."""
        return self._company.open and not any(self._suspect(one) for one in waiting)

    async def one_suspect(self, taken: list[Taken], waiting: Iterable[Taken]) -> list[Taken]:
        """Of what was begun before without an outcome, one may stay, if no other is at work or among those that wait
        for a slot. The rest go back, before it begins, and uncounted: what it kills the process with must not count
        for them."""
        suspects = [one for one in taken if self._suspect(one)]
        if not suspects:
            return taken
        kept = suspects[:1] if self.room(waiting) else []
        back = [one for one in suspects if one not in kept]
        rest = [one for one in taken if one not in back]
        if back:
            self._settler.not_begun(back, _SUSPECTS_NEXT if kept else _SUSPECTS_LATER)
        try:
            await self._settler.all_back()
        except asyncio.CancelledError:  # a stop: nobody takes the rest any more
            self._settler.not_begun(rest)
            raise
        return rest

    def _suspect(self, one: Taken) -> bool:
        return isinstance(one.claim, Claimed) and 1 < one.claim.starts <= self.options.max_starts + 1

    async def _settled_before(self, taken: Taken, parsed: Parsed) -> bool:
        """What needs no handler is settled here; False: it goes on, without a claim."""
        delivery, message = taken.delivery, parsed.message
        if parsed.error is not None:
            if parsed.unmatched and self.options.unmatched == "ignore":
                await self._settler.ack(delivery)
            else:
                await self._settler.dead(delivery, message, said(parsed.error), parsed.error)
        elif isinstance(taken.claim, Busy):
            await self._settler.busy_elsewhere(delivery)
        elif isinstance(taken.claim, Done):
            await self._settler.ack(delivery)
        elif isinstance(taken.claim, Conflict):
            reason = "its id was used before for another payload"
            await self._settler.dead(delivery, message, reason)
        else:
            return False
        return True

    # ------------------------------------------------------------------------------------------------- its turn

    async def _beside(self, hand: Hand, invoker: Invoker) -> None:
        if not await self._waited(hand, self._company.enter()):
            return
        try:
            await self._invoke(hand, invoker)
        finally:
            self._company.leave()

    async def _again(self, hand: Hand, invoker: Invoker, starts: int) -> None:
        """Claimed before: maybe handled, and from its second start without an outcome, handled alone."""
        if self.options.already_handled is not None and await self._already_handled(hand):
            return
        if starts <= 1:
            await self._beside(hand, invoker)
            return
        if starts - 1 > self.options.max_starts:
            reason = f"it was begun {starts - 1} times without an outcome: it may kill its process"
            await self._settler.dead(hand.delivery, hand.message, reason, token=hand.token)
            return
        if not await self._waited(hand, self._company.enter_alone(hand)):
            return
        try:
            await self._invoke(hand, invoker)
        finally:
            self._company.leave_alone()

    async def _waited(self, hand: Hand, waiting: Awaitable[None]) -> bool:
        """Wait for this; False: cancelled meanwhile, and settled."""
        hand.task = hand.worker
        try:
            await waiting
        except asyncio.CancelledError:
            if hand.cancelled is None:
                raise
        finally:
            hand.task = None
        if hand.cancelled is None:
            return True
        await self._let_go(hand)
        if hand.cancelled is not Why.FENCED:
            await self._settler.back(hand)
        return False

    async def _already_handled(self, hand: Hand) -> bool:
        """True: settled here, the handler is not to run."""
        answer: Any = None

        async def ask() -> None:
            nonlocal answer
            answer = await self._answer(hand)

        if not await self._waited(hand, ask()):
            return True
        if answer is True:
            self._settler.done(hand)
        elif answer is not False:
            await self._settler.back(hand, _ASKED_AGAIN)
        return answer is not False

    async def _answer(self, hand: Hand) -> Any:
        asked = self.options.already_handled
        assert asked is not None  # noqa: S101 - asked only then
        try:
            return await call_with_message(asked, hand.message, lambda: hand.payload, self._threads)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            queue = self._settler.queue
            self._logger.warning("already_handled of queue %r failed, asked again: %s", queue, described(error))
            return None

    # --------------------------------------------------------------------------------------- invoke, and its outcome

    async def _invoke(self, hand: Hand, invoker: Invoker) -> None:
        hand.task = hand.worker
        timeout = self.options.timeout
        timer = None if timeout is None else self._clock.call_later(timeout, lambda: hand.cancel(Why.TIMEOUT))
        try:
            if self._exactly_once is not None and hand.token:
                result = await self._exactly_once.call(hand, invoker, self._ending)
            else:
                result = await invoker.call(hand.message, hand.payload, None)
        except asyncio.CancelledError as error:
            await self._cancelled(hand, error)
        except NotTheHolder:
            await self._let_go(hand)
            await self._settler.reread(hand)
        except (Exception, SystemExit) as error:
            await self._let_go(hand)
            await self._raised(hand, error)
        else:
            hand.task = None
            if hand.cancelled is not None:
                await self._let_go(hand)
            if result is False:
                await self._again_or_dead(hand, "the handler returned False", None)
            elif self._exactly_once is not None and hand.token:
                if not hand.acked:
                    self._settler.committed(hand)
            else:
                self._settler.done(hand)
        finally:
            hand.task = None
            if timer is not None:
                timer.cancel()

    def _ending(self, change: int) -> None:
        self.ending += change
        if change > 0:
            self._room_again()

    async def _let_go(self, hand: Hand) -> None:
        """The function has ended, and from now on cannot be cancelled: what follows settles its message, on a worker
        that goes on. It may have ended in the instant of being cancelled."""
        hand.task = None
        if hand.cancelled is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            _uncancel()

    async def _cancelled(self, hand: Hand, error: asyncio.CancelledError) -> None:
        hand.task = None
        why = hand.cancelled
        if why is None:
            if _is_cancelled():
                raise error  # the worker itself is being torn down
            await self._raised(hand, error)  # the handler's own: something that it awaited was cancelled
            return
        _uncancel()
        if why is Why.TIMEOUT:
            reason = f"the handler was cancelled, {why.value}: {self.options.timeout} s"
            await self._again_or_dead(hand, reason, TimeoutError(reason))
        elif why is Why.STOPPED:
            await self._settler.back(hand)
        else:
            self._logger.warning("handler of message %s was cancelled: %s", hand.id, why.value)

    async def _raised(self, hand: Hand, error: BaseException) -> None:
        if self._failed is not None:
            self._failed(hand.message, error)
        if isinstance(error, Reject):
            await self._settler.dead(hand.delivery, hand.message, said(error) or "rejected", error, hand.token)
            return
        await self._again_or_dead(hand, described(error), error)

    async def _again_or_dead(self, hand: Hand, reason: str, error: BaseException | None) -> None:
        try:
            delay = delay_after(self.options.retry, error, hand.attempts)
        except Exception as wrong:
            self._logger.error("the retry policy of queue %r failed: %s", self._settler.queue, described(wrong))
            delay = 60.0
        if delay is not None and isinstance(error, Retry) and error.after is not None:
            delay = max(0.0, error.after)
        if delay is None:
            await self._settler.dead(hand.delivery, hand.message, reason, error, hand.token)
            return
        self._logger.warning(
            "message %s of queue %r failed in attempt %d, again in %.1f s: %s",
            hand.id, self._settler.queue, hand.attempts, delay, reason,
        )  # fmt: skip
        await self._settler.retry(hand, delay, reason, error)


def _is_cancelled() -> bool:
    """Whether the worker's task is: else a CancelledError is of something that the user's function awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _uncancel() -> None:
    """Our own cancellation is dealt with: the worker's task goes on."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()

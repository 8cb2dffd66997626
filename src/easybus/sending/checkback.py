"""Sending with work that is no database transaction: published if the work took place, asked about if nobody knows.

A half is the message stored before its work. It changes only by (id, token): storing and claiming write a fresh token,
everything else needs the last one.

    sender   T1 store T2 ─ T3 ─ block: the work, T4, T5 ─ T6 publish T7, confirmed ─ stop extending ─ T8 remove
             every third of the timeout: extend (takes the half back from a checker, stores it again if it is gone)
             Rollback: remove; any other exception: store again, due after the timeout (the work may still land)
    checker  claim_due ─ C1 ask ─┬─ True ──────────────── publish, confirmed ─ remove
    (of its own (service, topic) ├─ False ─────────────── remove
     scopes only)                └─ None, an exception ── postpone, counted; past max_checks parked, still asked, rarely

    point                                       where a process dies, or a reply is lost, and the only right outcome
    T1  half.storing                            before the half: nothing was sent, nothing happened
    T2                                          half stored, reply lost: SendError before the work; asked → discarded
    T3  half.stored                             before the work: asked → discarded once the answer is final
    T4                                          in the work: asked → as the work went
    T5                                          work done, its reply lost: asked → published
    T6  work.done                               done, not published: asked → published
    T7                                          published, confirm lost: sent again, same id
    T8  half.published                          published, half not removed: sent again, same id
    C1  check.claimed answered published        the checker dies: its lease passes, another one asks
    C2                                          asked while the work runs or may yet land: None

A half is never deleted on doubt. A failed publish never counts as a check without an answer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeAlias, cast

from .. import points
from ..clock import Clock, sleep, wait
from ..connection import Publisher
from ..engines.contract import Half, TransactionStorage
from ..errors import BadDelay, ConfigurationError, Refused, TooLarge
from ..message import Message
from ..outages import Outage, Outages
from ..shown import described
from .transaction import Transaction, half_of, message_of, publication_of

__all__ = ["CheckPolicy", "Checkback", "Committed", "call", "exponential_delay"]

Committed: TypeAlias = Callable[[Message], bool | Awaitable[bool | None] | None]

_ROUND = 100
_LEASE = 60.0
_LONGEST_ANSWER = 45.0
"""An answer is waited for within the lease: later, the half is another's."""
_LONGEST_POLL = 1.0
_SHORTEST_POLL = 0.02
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


def exponential_delay(attempt: int) -> float:
    """5 s after the first check without an answer, twice as long after each next one, 10 minutes at most."""
    return min(600.0, 5.0 * 2.0 ** min(attempt - 1, 20))


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """When a topic's halves are asked about. Times in seconds.

    Raises:
        ConfigurationError: a value that cannot be; the text says which are possible.
    """

    timeout: float = 60.0
    """The longest that the work may still land after its block ended in an exception, or its process died."""
    retry_delay: Callable[[int], float] = exponential_delay
    """From the number of checks without an answer to the seconds until the next one."""
    max_checks: int = 10
    """After so many checks without an answer a half is parked: shown to operators, and asked about rarely."""
    rarely: float = 3600.0
    """How often a parked half is still asked about."""

    def __post_init__(self) -> None:
        for name, value in (("timeout", self.timeout), ("rarely", self.rarely)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} is {value!r}; a number of seconds above 0 is possible, such as 60")
        if self.max_checks < 1:
            raise ConfigurationError(f"max_checks is {self.max_checks!r}; 1 or more is possible")
        first = self.retry_delay(1)
        if not (math.isfinite(first) and first >= 0):
            raise ConfigurationError(f"retry_delay(1) is {first!r}; it returns seconds, 0 or more")


class Checkback:
    """Transactions of one bus on one transaction storage, and the checker of what they left behind."""

    def __init__(
        self,
        *,
        service: str,
        storage: TransactionStorage,
        publisher: Publisher,
        clock: Clock,
        logger: logging.Logger,
        outages: Outages | None = None,
    ) -> None:
        self._service = service
        self._storage = storage
        self._publisher = publisher
        self._clock = clock
        self._logger = logger
        self._outages = outages or Outages(logger)
        self._answers: dict[str, tuple[Committed, CheckPolicy]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._checking = 0
        self._publish_pause = _FIRST_PAUSE

    def answer(self, topic: str, committed: Committed, policy: CheckPolicy) -> None:
        """`committed` answers for this topic: True: the work took place. False: it did not, and never will.
        None, or an exception: it is not known yet."""
        self._answers[topic] = (committed, policy)

    def transaction(
        self, topic: str, message: Message, delay: float | None = None
    ) -> AbstractAsyncContextManager[Message]:
        """The block of one message; `delay` is in seconds and counts from the publication.

        Raises:
            ConfigurationError: nobody answers for the topic, or the message has no id; nothing was stored.
            BadDelay, TooLarge: the message could not be published afterwards; nothing was stored.
            SendError: on entering, it is not known to be stored, and the work has not begun; on leaving, the work
                is done, and the message is neither surely published nor surely kept.
        """
        known = self._answers.get(topic)
        if known is None:
            raise ConfigurationError(
                f"nobody can say, after a crash, whether the work of a transaction on {topic!r} took place; write"
                f"\n    @{topic if topic.isidentifier() else 'topic'}.committed"
                "\n    async def committed(event) -> bool | None: ..."
                "\nor, with the parts, TxOptions(committed=...)"
            )
        if not message.id:
            raise ConfigurationError("the message of a transaction needs an id; Message.new(value) gives it one")
        half = half_of(self._service, topic, message, delay)
        caps = self._publisher.driver.caps
        if delay is not None and not 0 <= delay <= caps.max_delay:
            raise BadDelay(f"a delay of {delay} s; from 0 to {caps.max_delay:.0f} s is possible")
        if len(half.body) > caps.max_body:
            raise TooLarge(f"a message of {len(half.body)} bytes; {caps.max_body} are possible")
        return Transaction(
            half,
            message,
            known[1].timeout,
            storage=self._storage,
            publisher=self._publisher,
            clock=self._clock,
            logger=self._logger,
            ending=self._ending,
        )

    @property
    def busy(self) -> bool:
        """Whether a block is being ended, or halves are being checked; an open block alone is not."""
        return bool(self._ending) or self._checking > 0

    async def drained(self) -> None:
        """Wait until every block that is being ended is settled."""
        while self._ending:
            await asyncio.wait(list(self._ending))

    async def run(self) -> None:
        """Check what is due, until cancelled. Outages are survived: one log line down and one up."""
        outage = Outage(f"checks of transactions of {self._service!r}", self._outages)
        while True:
            try:
                checked = await self.check_due()
                outage.over()
                pause = 0.0 if checked == _ROUND else self._poll()
            except Exception as error:
                pause = outage.failed(error)
            await sleep(self._clock, pause, poll=True)

    def _poll(self) -> float:
        shortest = min((policy.timeout for _, policy in self._answers.values()), default=_LONGEST_POLL)
        return min(max(shortest / 4, _SHORTEST_POLL), _LONGEST_POLL)

    async def check_due(self) -> int:
        """Ask about the halves that are due, one round; returns how many were looked at.

        Raises:
            EngineError: the storage cannot be reached; whatever was claimed is due again when its lease has passed.
        """
        scopes = [(self._service, topic) for topic in self._answers]
        if not scopes:
            return 0
        halves = await self._storage.claim_due(scopes, _ROUND, _LEASE)
        self._checking += 1
        try:
            if halves and points.hook is not None:
                await points.reach("check.claimed")
            results = await asyncio.gather(*(self._check(half) for half in halves), return_exceptions=True)
        finally:
            self._checking -= 1
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return len(halves)

    async def _check(self, half: Half) -> None:
        committed, policy = self._answers[half.topic]
        try:
            answer = await self._ask(committed, half)
            doubt = "committed returned None"
            if not (answer is None or isinstance(answer, bool)):
                doubt, answer = f"committed returned {answer!r}, which is none of True, False and None", None
        except Exception as error:
            doubt, answer = described(error), None
        if points.hook is not None:
            await points.reach("check.answered")
        if answer is None:
            await self._ask_later(half, policy, doubt)
        elif not answer:
            await self._storage.remove(half.id, half.token)
        elif await self._publish(half):
            if points.hook is not None:
                await points.reach("check.published")
            await self._storage.remove(half.id, half.token)

    async def _ask(self, committed: Committed, half: Half) -> object:
        asking = asyncio.ensure_future(call(committed, message_of(half)))
        try:
            if await wait(self._clock, asking, _LONGEST_ANSWER):
                return asking.result()
            raise TimeoutError(f"committed did not answer in {_LONGEST_ANSWER:.0f} s")
        finally:
            asking.cancel()

    async def _ask_later(self, half: Half, policy: CheckPolicy, doubt: str) -> None:
        checks = half.checks + 1
        parked = half.parked or checks >= policy.max_checks
        delay = policy.rarely if parked else max(0.0, policy.retry_delay(checks))
        held = await self._storage.postpone(half.id, half.token, delay, checked=True, parked=parked, error=doubt)
        if held and parked and not half.parked:
            self._logger.error(
                "the half %s on %r is parked, still asked about every %.0f s: %d checks without an answer: %s",
                half.id,
                half.topic,
                policy.rarely,
                checks,
                doubt,
            )

    async def _publish(self, half: Half) -> bool:
        try:
            await self._publisher.publish(publication_of(half))
        except Exception as error:
            # Not counted: the answer is known, and a broker's outage must park nothing.
            pause = self._publish_pause
            self._publish_pause = min(pause * 2, _LONGEST_PAUSE)
            if isinstance(error, Refused):
                pause = _LONGEST_PAUSE
                self._logger.error("the half %s is done and cannot be published, tried again: %s", half.id, error)
            await self._storage.postpone(
                half.id, half.token, pause, checked=False, parked=half.parked, error=described(error)
            )
            return False
        self._publish_pause = _FIRST_PAUSE
        return True

    # ------------------------------------------------------------------------------------------------ for operators

    async def publish(self, id: str) -> bool:
        """An operator says that the work took place. False: no such half of this service.

        Raises:
            EngineError: it is not surely published; the half stands.
        """
        half = await self._claim(id)
        if half is None:
            return False
        try:
            await self._publisher.publish(publication_of(half))
        except Exception:
            await self._storage.postpone(half.id, half.token, 0.0, checked=False, parked=half.parked, error=half.error)
            raise
        await self._storage.remove(half.id, half.token)
        return True

    async def discard(self, id: str) -> bool:
        """An operator says that the work did not take place and never will. False: no such half of this service, or
        it was extended or claimed by another in between."""
        half = await self._claim(id)
        return half is not None and await self._storage.remove(half.id, half.token)

    async def _claim(self, id: str) -> Half | None:
        # Another service's half may belong to another broker.
        half = await self._storage.fetch(id)
        if half is None or half.service != self._service:
            return None
        return await self._storage.claim(id, _LEASE)


async def call(function: Callable[[Message], object], message: Message) -> object:
    """What a user's function returns: a coroutine function runs here, any other in a thread."""
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(called):
        result = function(message)
    else:
        result = await asyncio.to_thread(function, message)
    return await cast("Awaitable[object]", result) if inspect.isawaitable(result) else result

"""Users' tests: their own bus, the same pipeline, on memory and a clock that the test moves.

    async with bus.testing() as t:
        await orders.send(OrderPaid(1))
        await t.drain()                      # everything that is due is handled
        await t.advance(minutes=5)           # retries, delays and checks until then take place
        assert t.dead("receipts") == []

Only the bus's clock is virtual: a handler that really sleeps takes its time. Dead letters that nobody looked at fail
the test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..engines.contract import DeadLetter, Publication
from ..engines.registry import create
from ..errors import ConfigurationError
from ..message import REPLAY, Message
from ..receiving.hand import Hand, Why
from ..receiving.invoke import Provided
from .virtual import VirtualClock

if TYPE_CHECKING:
    from ..bus import Bus
    from .blocking import BlockingHarness

__all__ = ["Harness", "Sent"]

_PATIENCE = 10.0
"""Real seconds that one drain may take; then it says what is still at work."""
_MOVABLE = ("memory:", "sqlite:")
"""Engines that go by the clock that they are given."""
_HAIR = 0.001
"""Seconds of the clock past the end of an `advance` that still belong to it: sums of times are rounded, and a file's
times are whole microseconds, so what is due at the end may be due a hair later."""
_STILL = 1.0
"""Real seconds after which a handler that is still at work counts as waiting for the clock. Long, for a busy machine:
the clock moves on under a handler that is only slow, and what it does comes later than it should."""


class Sent:
    """What was sent to one topic or queue: messages, and their values."""

    def __init__(self, messages: list[Message], decode: Callable[[Message], Any]) -> None:
        self.messages = messages
        self._decode = decode

    @property
    def values(self) -> list[Any]:
        """The payloads, in the order of sending."""
        return [self._decode(message) for message in self.messages]

    def __len__(self) -> int:
        return len(self.messages)

    def __repr__(self) -> str:
        return f"Sent({self.values!r})"


class Harness:
    """A bus under test; see the module."""

    def __init__(self, bus: Bus, *, provide: Mapping[Any, Callable[..., Any]], storage: str | None) -> None:
        self.bus = bus
        self.clock = VirtualClock()
        self._provide = provide
        self._storage = storage
        self._publications: list[Publication] = []
        self._failures: list[tuple[Message, BaseException]] = []
        self._letters: list[DeadLetter] = []
        self._seen: set[tuple[str, str, str]] = set()
        """What was looked at: by its fence, since what fails again after a replay is not what was seen."""
        self._stack = AsyncExitStack()
        self._waiting: set[tuple[Hand, asyncio.Task[Any] | None, Why | None]] = set()
        """Hands that stood still once, as they were then: their handlers wait for the clock, or for the test."""

    @property
    def blocking(self) -> BlockingHarness:
        """For plain tests: `with bus.testing().blocking as t:`."""
        from .blocking import BlockingHarness

        return BlockingHarness(self)

    async def __aenter__(self) -> Harness:
        if self.bus.is_open:
            raise ConfigurationError("the bus is open: bus.testing() opens it itself, on memory")
        url = "memory://" if self._storage is None else self._storage
        engine = create(url, self.clock)
        if self.bus.handlers and engine.dead_letters is None:
            raise ConfigurationError(
                f"{engine.url} keeps no dead letters, so this test could not tell what failed; test on memory, or on a "
                "file: bus.testing(storage='sqlite:///test.db')"
            )
        self._stack.callback(self.bus.pretend(url=url, clock=self.clock, provide=self._provided()))
        try:
            await self._stack.enter_async_context(self.bus.handling(grace=0.0))
            self.bus.opened.publisher.observer = self._observe
            running = self.bus.running
            if running is not None:
                running.failures = lambda message, error: self._failures.append((message, error))
            await self.drain()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._look()
        finally:
            await self._stack.aclose()
        unseen = [letter for letter in self._letters if _identity(letter) not in self._seen]
        if kind is None and unseen:
            lines = "\n".join(f"  {letter.queue}: {letter.reason}\n{letter.traceback}" for letter in unseen)
            raise AssertionError(f"{len(unseen)} dead letters that the test did not look at with t.dead():\n{lines}")

    def _provided(self) -> dict[Any, Provided]:
        replaced = dict(self.bus.provided)
        for kind, factory in self._provide.items():
            per = replaced[kind].per if kind in replaced else "process"
            replaced[kind] = Provided(factory, per)
        return replaced

    def _observe(self, publication: Publication) -> None:
        self._publications.append(publication)

    # ---------------------------------------------------------------------------------------------- looking at it

    def sent(self, target: Any) -> Sent:
        """What was sent to a topic or queue (itself, or its name), outbox and transactions included."""
        name = target if isinstance(target, str) else target.name
        messages = [
            message
            for message in (Message.from_bytes(one.body) for one in self._publications if one.name == name)
            if REPLAY not in message.headers
        ]
        contract = self.bus.targets.get(("topic", name)) or self.bus.targets.get(("queue", name))
        return Sent(messages, lambda message: contract.payloads.decode(message)[1] if contract else message.payload)

    def dead(self, queue: str) -> list[DeadLetter]:
        """The dead letters of a queue, oldest first, as of the last `drain` or `advance`; they count as looked at."""
        found = [letter for letter in self._letters if letter.queue == queue]
        self._seen |= {_identity(letter) for letter in found}
        return found

    @property
    def failures(self) -> list[BaseException]:
        """Every exception that a handler raised, retried or not."""
        return [error for _, error in self._failures]

    async def retry(self, queue: str) -> int:
        """Mark all of a queue's dead letters for retry, as an operator would, and let them be handled."""
        letters = self.bus.dead_letters
        marked = 0
        if letters is not None:
            marked = await letters.mark_for_retry(queue, [letter.key for letter in self.dead(queue)])
        await self.drain()
        return marked

    async def _look(self) -> None:
        letters = self.bus.dead_letters
        if letters is not None:
            self._letters = await letters.find(limit=10_000)

    # ------------------------------------------------------------------------------------------------- moving it on

    async def drain(self) -> None:
        """Wait until everything that is due now is handled, settled and sent on.

        Raises:
            TimeoutError: it is still not after 10 real seconds; the text names what is at work.
        """
        await self._settle(patient=True)
        await self._look()

    async def advance(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Let this time pass: what falls due on the way takes place at its time, in order.

        Not where `storage=` is a server: that keeps its own time, and this raises `ConfigurationError`.
        Over long spans, the bus's own looking-around (for halves, for marked letters) is coarser: a hundredth of it.
        """
        if self._on_a_server:
            raise ConfigurationError(
                "this test runs on a server, whose own clock nobody can move: drain() works there; for time to pass, "
                "test on memory, or on a file: bus.testing(storage='sqlite:///test.db')"
            )
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days).total_seconds()
        if span < 0:
            raise ValueError(f"time runs forward: {span} seconds were given")
        until = self.clock.time() + span
        step = max(0.5, span / 100)
        await self._settle(patient=False)
        while (now := self.clock.time()) < until:
            # A handler at work has a lease to be renewed in time; else only what is really due makes a stop.
            due = self.clock.next_due(polls=self._only_handlers_wait())
            self.clock.advance_to(min(until, now + step if due is None else max(now, min(due, now + step))))
            await self._settle(patient=False)
        while (due := self.clock.next_due(polls=False)) is not None and due <= until + _HAIR:
            self.clock.advance_to(due)
            await self._settle(patient=False)
        await self._look()

    async def _settle(self, *, patient: bool) -> None:
        """Until nothing moves. Patient: handlers at work are waited for; else they may be waiting for the clock."""
        begun = time.monotonic()
        quiet = 0
        while quiet < 3:
            self.clock.run_due()
            await asyncio.sleep(0)
            if await self._still():
                quiet += 1
                continue
            quiet = 0
            waited = time.monotonic() - begun
            if waited > _PATIENCE:
                raise TimeoutError(f"still at work after {_PATIENCE:.0f} real seconds: {self._at_work()}")
            if not patient and self._only_handlers_wait():
                # One whose function has ended meanwhile, or is being cancelled, is not what it was: it moves.
                hands = {(hand, hand.task, hand.cancelled) for hand in self._hands()}
                if waited > _STILL or hands <= self._waiting:
                    self._waiting = hands
                    return
            if waited > 0.005:
                await asyncio.sleep(0.001)

    async def _still(self) -> bool:
        running = self.bus.running
        if self.bus.opened.busy or (running is not None and running.busy):
            return False
        driver = self.bus.driver
        if running is not None:
            for queue in running.receivers:
                stats = await driver.stats(queue)
                # From a server a message may be on its way here, which memory and a file's one thread do not know.
                if stats.ready or (self._on_a_server and stats.in_flight):
                    return False
        return True

    @property
    def _on_a_server(self) -> bool:
        return self._storage is not None and not self._storage.startswith(_MOVABLE)

    def _hands(self) -> list[Hand]:
        running = self.bus.running
        return [] if running is None else [hand for one in running.receivers.values() for hand in one.at_work]

    def _only_handlers_wait(self) -> bool:
        """Whether all that moves is handlers at work, and they do nothing that the bus could see."""
        running = self.bus.running
        return (
            running is not None
            and not self.bus.opened.busy
            and not any(receiver.settling for receiver in running.receivers.values())
            and bool(self._hands())
        )

    def _at_work(self) -> str:
        names = [f"{hand.invoker.name if hand.invoker else '?'} on {hand.message.id}" for hand in self._hands()]
        return ", ".join(names) or "the bus itself"


def _identity(letter: DeadLetter) -> tuple[str, str, str]:
    return letter.queue, letter.key, letter.fence

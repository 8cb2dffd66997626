"""Who waits for which queue, and how they are woken: here at once, in other processes by NOTIFY.

    publish → touch(queue ids) → watchers of this process
                               → pending → NOTIFY, in a transaction of its own, at most one per queue in 5 ms
    another's NOTIFY           → watchers of this process
    the connection is lost     → opened again; meanwhile, and behind a pooler that drops notifications, waiters look
                                 for themselves every second (`POLL`), and whenever something falls due

NOTIFY inside a publishing transaction would make all commits of the database wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias, TypeVar

from ...cancelling import ended
from ...clock import Clock, wait
from ...errors import EasybusError
from .connections import Connection, Cut, connect, disconnect
from .failures import is_foreign
from .location import Location

T = TypeVar("T")
Watcher: TypeAlias = "asyncio.Future[None]"

OUTBOX = 0
"""What those wait for who wait for outbox rows; no queue has this id."""
POLL = 1.0
"""Seconds after which a waiter looks for itself."""
_APART = 0.005
"""Seconds between two notifications of one queue: a busy sender costs the server 200 of them in a second at most."""
_PING = 10.0
_NOTIFY = "SELECT pg_notify($1, $2)"
_AT_ONCE = 300  # ids in one notification, whose text ends at 8000 bytes
_SLACK = 0.0005
"""Seconds past a due time, so that rounding does not wake us before it."""

_log = logging.getLogger("easybus")


class Watchers:
    """Futures by the id of what they wait for; each is woken once."""

    def __init__(self) -> None:
        self._by_id: dict[int, set[Watcher]] = {}

    def watch(self, number: int) -> Watcher:
        """A future that the next wake of `number` sets."""
        watcher: Watcher = asyncio.get_running_loop().create_future()
        self._by_id.setdefault(number, set()).add(watcher)
        return watcher

    def forget(self, number: int, watcher: Watcher) -> None:
        """Wait no longer."""
        there = self._by_id.get(number)
        if there is not None:
            there.discard(watcher)
            if not there:
                del self._by_id[number]

    def wake(self, numbers: Iterable[int]) -> None:
        """Wake all who wait for any of these."""
        for number in numbers:
            for watcher in self._by_id.pop(number, ()):
                if not watcher.done():
                    watcher.set_result(None)

    def wake_all(self) -> None:
        """Wake all."""
        self.wake(list(self._by_id))


class Waker:
    """One engine's watchers, and the connection that tells and hears of changes elsewhere."""

    def __init__(self, location: Location) -> None:
        self.watchers = Watchers()
        self._location = location
        self._channel = location.names.channel
        self._pending: set[int] = set()
        self._last: dict[int, float] = {}
        self._asked = asyncio.Event()
        self._closing = False
        self._telling = False
        """Connected: what is pending will be told."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="easybus postgresql listener")

    def touch(self, numbers: Iterable[int]) -> None:
        """Something of these was committed: wake who waits for it, anywhere."""
        touched = set(numbers)
        self.watchers.wake(touched)
        self._pending |= touched
        self._asked.set()

    async def close(self) -> None:
        """Tell what is pending, and hear nothing more; who waits is woken."""
        self._closing = True
        self._asked.set()
        if self._telling:  # nor may a statement be cancelled half way
            await asyncio.wait([self._task], timeout=2.0)
        await ended(self._task)
        self.watchers.wake_all()

    async def _run(self) -> None:
        pause = 0.1
        while not self._closing:
            connection: Connection = None
            try:
                connection = await connect(self._location, plain=True)
                connection.add_termination_listener(self._lost)
                await connection.add_listener(self._channel, self._heard)
                self.watchers.wake_all()  # nobody told us what was committed meanwhile
                pause = 0.1
                self._telling = True
                await self._tell(connection)
            except Exception as error:
                if not isinstance(error, EasybusError) and not is_foreign(error):
                    _log.exception("%s: the listener failed, and begins again", self._location.url)
                _log.debug("%s: no notifications now: %s", self._location.url, error)
            finally:
                self._telling = False
                if connection is not None:
                    with contextlib.suppress(Exception):
                        await disconnect(connection)
            if not self._closing:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _tell(self, connection: Connection) -> None:
        """Send what is pending, until the connection is lost, or all is sent at the close."""
        loop = asyncio.get_running_loop()
        while not connection.is_closed() and (self._pending or not self._closing):
            silent = False
            try:
                async with asyncio.timeout(_PING):
                    await self._asked.wait()
            except TimeoutError:
                silent = True  # a ping finds out a connection that is dead
            self._asked.clear()
            now = loop.time()
            latest = now if self._closing else now - _APART
            due = [number for number in self._pending if self._last.get(number, 0.0) <= latest][:_AT_ONCE]
            if due or silent:
                self._last.update(dict.fromkeys(due, now))
                self._pending.difference_update(due)
                await self._notify(connection, due)
            if self._closing or self._pending:
                self._asked.set()
                await asyncio.sleep(0.0 if self._closing else _APART / 4)

    async def _notify(self, connection: Connection, numbers: Iterable[int]) -> None:
        cut = Cut(connection, self._location.timeout)
        try:
            await connection.execute(_NOTIFY, self._channel, ",".join(map(str, numbers)))
        finally:
            cut.cancel()

    def _lost(self, connection: Connection) -> None:
        self._asked.set()

    def _heard(self, connection: Connection, pid: int, channel: str, payload: str) -> None:
        if payload and pid != connection.get_server_pid():
            self.watchers.wake(int(number) for number in payload.split(",") if number.isdecimal())


async def until_found(
    watchers: Watchers,
    clock: Clock,
    seconds: float,
    number: int,
    attempt: Callable[[], Awaitable[tuple[list[T], float | None, int]]],
) -> list[T]:
    """What `attempt` finds, tried again on every wake, due time and `POLL`; nothing after `seconds`.

    `attempt` returns what it found, the seconds until the next row is due (None: none is known), and the id to wait
    for. A watcher is registered before the attempt that may find nothing, so that no commit in between is missed.
    """
    end = clock.time() + seconds
    while True:
        watching = number
        watcher = watchers.watch(watching)
        try:
            found, due, number = await attempt()
            left = end - clock.time()
            if found or left <= 0:
                return found
            if number == watching:
                until = POLL if due is None else min(POLL, due + _SLACK)
                await wait(clock, watcher, max(_SLACK, min(left, until)))
        finally:
            watchers.forget(watching, watcher)

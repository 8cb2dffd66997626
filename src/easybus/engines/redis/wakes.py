"""Who waits for which queue. One connection listens for what publishers announce; where it cannot, waiters look often.

A watcher is registered before the look that may find nothing, and a channel counts as heard only from its confirmation
on: what is announced in between is never missed. A lost announcement costs at most `HEARD` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import RedisError

from ...cancelling import ended
from ...clock import Clock, wait

T = TypeVar("T")
Watcher: TypeAlias = "asyncio.Future[None]"

HEARD, UNHEARD = 0.5, 0.05
"""Seconds between two looks, where announcements are heard and where not. Leases of the dead end in between."""
_CONFIRMATION = 1.0
_SILENCE = 5.0
_LONGEST_PAUSE = 5.0


class Wakes:
    """Watchers by channel."""

    def __init__(self, client: Redis, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._watchers: dict[str, set[Watcher]] = {}
        self._channels: set[str] = set()
        self._heard: set[str] = set()
        self._listening: Any = None
        self._task: asyncio.Task[None] | None = None

    def heard(self, channel: str) -> bool:
        """Whether announcements on it reach us."""
        return channel in self._heard

    async def until_found(
        self, channel: str, seconds: float, attempt: Callable[[], Awaitable[tuple[list[T], float]]]
    ) -> list[T]:
        """What `attempt` finds, tried again at every announcement and due time; nothing after `seconds`.

        `attempt` returns what it found, and the seconds until something is due (negative: nothing is known).
        """
        end, asked = self._clock.time() + seconds, False
        while True:
            heard = self.heard(channel)
            watcher: Watcher = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(channel, set()).add(watcher)
            try:
                found, due = await attempt()
                left = end - self._clock.time()
                if found or left <= 0:
                    return found
                if not heard and not asked:
                    asked = True
                    await self._hear(channel)
                    continue
                left = min(left, HEARD if heard else UNHEARD)
                await wait(self._clock, watcher, min(left, due) if due >= 0 else left)
            finally:
                self._forget(channel, watcher)

    def _forget(self, channel: str, watcher: Watcher) -> None:
        there = self._watchers.get(channel)
        if there is not None:
            there.discard(watcher)
            if not there:
                del self._watchers[channel]

    def _wake(self, channel: str) -> None:
        for watcher in self._watchers.pop(channel, ()):
            if not watcher.done():
                watcher.set_result(None)

    async def _hear(self, channel: str) -> None:
        """Subscribe, and wait a little for the confirmation."""
        confirmed: Watcher = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(channel, set()).add(confirmed)
        try:
            if channel not in self._channels:
                self._channels.add(channel)
                if self._task is None:
                    self._task = asyncio.get_running_loop().create_task(self._run(), name="easybus redis wakes")
                elif self._listening is not None:
                    with contextlib.suppress(RedisError, OSError):  # the listener finds out, and subscribes to all
                        await self._listening.subscribe(channel)
            await wait(self._clock, confirmed, _CONFIRMATION)
        finally:
            self._forget(channel, confirmed)

    async def _run(self) -> None:
        pause = UNHEARD
        while True:
            listening: Any = self._client.pubsub()  # pyright: ignore[reportUnknownMemberType]
            try:
                subscribed = self._channels.copy()
                await listening.subscribe(*subscribed)
                self._listening = listening
                await self._listen(listening, subscribed)
            except (RedisError, OSError):
                pause = UNHEARD if self._heard else min(pause * 2, _LONGEST_PAUSE)
            finally:
                self._listening = None
                self._heard.clear()
                for channel in list(self._watchers):
                    self._wake(channel)
                with contextlib.suppress(RedisError, OSError):
                    await listening.aclose()
            await asyncio.sleep(pause)

    async def _listen(self, listening: Any, subscribed: set[str]) -> None:
        asked = False
        if missed := self._channels - subscribed:
            await listening.subscribe(*missed)
        while True:
            message = await listening.get_message(timeout=_SILENCE)
            if message is None:
                if asked:
                    raise Lost("no answer to a ping")
                asked = True
                await listening.ping()
                continue
            asked = False
            if message["type"] in ("subscribe", "message"):
                channel: str = message["channel"].decode()
                if message["type"] == "subscribe":
                    self._heard.add(channel)
                self._wake(channel)

    async def close(self) -> None:
        """Stop listening; who waits looks once more, and finds the link closed."""
        if self._task is not None:
            await ended(self._task)
            self._task = None
        for channel in list(self._watchers):
            self._wake(channel)

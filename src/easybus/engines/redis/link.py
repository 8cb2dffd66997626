"""One open server: the scripts run on it, and what is known of it.

With `replicas=` a lasting script counts as run only when so many replicas have what it wrote:

    in step → script, WAIT: reached → in step       not reached → behind, Unavailable; what was written may be lost
    behind  → WAIT alone:   reached → in step → …   not reached → Unavailable, and nothing is written

So a master that was given up, and does not know it yet, confirms nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError

from ...clock import Clock
from ...errors import NotOpen, Unavailable
from .client import connect
from .failures import CAUGHT, translated
from .location import Location
from .names import Names
from .scripts import Script
from .topology import Topology
from .wakes import Wakes

T = TypeVar("T")
_AT_ONCE = 32
_LOAD = Script("topology")


class Behind(Unavailable):
    """Written, but too few replicas have it: it may be lost with the master."""


class Link:
    """Connected to one server, or to the master that Sentinel names."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self.names = Names(location.prefix)
        self.topology = Topology()
        self._client, self._sentinels = connect(location)
        self._execute: Any = self._client.execute_command  # pyright: ignore[reportUnknownMemberType]
        self.wakes = Wakes(self._client, clock)
        self._calls = asyncio.Semaphore(_AT_ONCE)
        self._replicas = location.replicas
        self._patience = max(1, int(location.timeout * 800))
        """Milliseconds that replicas have; less than a call has."""
        self._behind = False
        self._later: set[asyncio.Task[Any]] = set()
        self._closed = False

    def check(self) -> None:
        """Raises `NotOpen` once it is closed."""
        if self._closed:
            raise NotOpen(f"{self.url} is closed; write: async with bus: …")

    async def command(self, *words: Any) -> Any:
        """Run one command. Raises as the table in `failures.py` says."""
        return await self._answer(self._execute, words)

    async def _answer(self, ask: Callable[..., Coroutine[Any, Any, T]], words: Sequence[Any]) -> T:
        self.check()
        task = asyncio.current_task()
        asked = 0 if task is None else task.cancelling()
        try:
            async with self._calls:
                result = await ask(*words)
        except NoScriptError:
            raise
        except CAUGHT as error:
            if self._closed:
                raise NotOpen(f"{self.url} was closed while it was asked") from error
            raise translated(error, self.url) from error
        if task is not None and task.cancelling() > asked:  # swallowed by the client's asyncio.wait_for
            raise asyncio.CancelledError
        return result

    async def run(self, script: Script, keys: Sequence[str] = (), values: Sequence[Any] = ()) -> Any:
        """Run one script, sent again where the server does not know it (then it has done nothing yet)."""
        command = self._lasting if script.lasting and self._replicas else self.command
        try:
            return await command("EVALSHA", script.sha, len(keys), *keys, *values)
        except NoScriptError:
            return await command("EVAL", script.text, len(keys), *keys, *values)

    async def _lasting(self, *words: Any) -> Any:
        """Run one command, and wait for the replicas. Raises `Behind`; `Unavailable` where nothing was written."""
        if self._behind:
            reached = await self.command("WAIT", self._replicas, self._patience)
            if reached < self._replicas:
                raise Unavailable(f"{self.url}: {reached} of {self._replicas} replicas answer (replicas=)")
            self._behind = False
        reply, reached = await self._answer(self._awaited, words)
        if reached < self._replicas:
            self._behind = True
            raise Behind(f"{self.url}: {reached} of {self._replicas} replicas have what was written (replicas=)")
        return reply

    async def _awaited(self, *words: Any) -> tuple[Any, int]:
        """On one connection, for WAIT is about what that has written."""
        pipeline: Any = self._client.pipeline(transaction=False)
        pipeline.execute_command(*words)
        pipeline.execute_command("WAIT", self._replicas, self._patience)
        reply, reached = await pipeline.execute(raise_on_error=False)
        for answer in (reply, reached):
            if isinstance(answer, Exception):
                raise answer
        return reply, reached

    async def refresh(self) -> Topology:
        """Read what is declared."""
        self.topology.read(await self.run(_LOAD, self.names.topology))
        return self.topology

    async def uncancelled(self, work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, Any]]) -> T:
        """The result of `work`; a caller that is cancelled leaves it to end, and its result to be undone."""
        task = self.later(work)

        def ended(task: asyncio.Task[T]) -> None:
            if not task.cancelled() and task.exception() is None and not self._closed:
                self.later(undo(task.result()))

        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(ended)
            raise

    def later(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let it run by itself, until the link is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._later.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._later.discard(task)
        if not task.cancelled():
            task.exception()  # what nobody waits for is no warning: leases bring back what was held

    async def close(self) -> None:
        """Disconnect; what is under way ends with an error."""
        self._closed = True
        await self.wakes.close()
        if self._later:
            await asyncio.wait(self._later, timeout=0.5)
        for client in (self._client, *self._sentinels):
            await client.aclose(close_connection_pool=True)
        if self._later:
            await asyncio.wait(self._later, timeout=1.0)

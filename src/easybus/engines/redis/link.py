"""One open server: its connections, the scripts run on them, and what is known of it.

The client never tries again by itself: a publish that it sends twice would be there twice. Its pool has no limit, so
that it never refuses; ours is how many calls may be under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from ...clock import Clock
from ...errors import NotOpen
from .failures import CAUGHT, translated
from .location import Location
from .names import Names
from .scripts import Script
from .topology import Topology
from .wakes import Wakes

T = TypeVar("T")
_AT_ONCE = 32
_LOAD = Script("topology")


class Link:
    """Connected to one server, or to the master that Sentinel names."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self.names = Names(location.prefix)
        self.topology = Topology()
        self._client, self._sentinels = _client(location)
        self._execute: Any = self._client.execute_command  # pyright: ignore[reportUnknownMemberType]
        self.wakes = Wakes(self._client, clock)
        self._calls = asyncio.Semaphore(_AT_ONCE)
        self._later: set[asyncio.Task[Any]] = set()
        self._closed = False

    def check(self) -> None:
        """Raises `NotOpen` once it is closed."""
        if self._closed:
            raise NotOpen(f"{self.url} is closed; write: async with bus: …")

    async def command(self, *words: Any) -> Any:
        """Run one command. Raises as the table in `failures.py` says."""
        self.check()
        try:
            async with self._calls:
                return await self._execute(*words)
        except NoScriptError:
            raise
        except CAUGHT as error:
            if self._closed:
                raise NotOpen(f"{self.url} was closed while it was asked") from error
            raise translated(error, self.url) from error

    async def run(self, script: Script, keys: Sequence[str] = (), values: Sequence[Any] = ()) -> Any:
        """Run one script, sent again where the server does not know it (then it has done nothing yet)."""
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *values)
        except NoScriptError:
            return await self.command("EVAL", script.text, len(keys), *keys, *values)

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


def _client(location: Location) -> tuple[Redis, list[Redis]]:
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": location.timeout,
        "socket_connect_timeout": location.timeout,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
    }
    account = {"username": location.username, "password": location.password, "db": location.database}
    secure = location.tls is not None
    if not location.service:
        host, port = location.hosts[0]
        pool = ConnectionPool(
            connection_class=SSLConnection if secure else Connection,
            max_connections=2**31,
            host=host,
            port=port,
            **options,
            **account,
            **(location.tls or {}),
        )
        return Redis.from_pool(pool), []
    tls = {"ssl": True, **(location.tls or {})} if secure else {}
    asking = {"username": location.sentinel_username, "password": location.sentinel_password}
    sentinel = Sentinel(list(location.hosts), sentinel_kwargs={**options, **asking, **tls})
    master_for: Any = getattr(sentinel, "master_for")  # noqa: B009 - its signature is half unknown
    client: Redis = master_for(location.service, max_connections=2**31, **options, **account, **tls)
    return client, list(sentinel.sentinels)

"""One URL's engine: the driver and three storages on one server, checked when it is opened.

There is no outbox: a caller's database transaction cannot write here.
"""

from __future__ import annotations

import contextlib
import logging
import math
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from redis.exceptions import NoPermissionError

from ...clock import Clock
from ...errors import ConfigurationError, NotOpen, Refused, Unavailable
from ..contract import Known
from .fused import RedisFusedDriver
from .halves import RedisHalves
from .keys import RedisKeys
from .letters import RedisLetters
from .limits import CAPABILITIES
from .link import Link
from .location import Location

_OLDEST = (7, 0)


class RedisEngine:
    """Redis or Valkey, 7.0 or later."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.url = location.url
        self._location = location
        self._clock = clock
        self._link: Link | None = None
        self.driver = RedisFusedDriver(self.link)
        self.idempotency = RedisKeys(self.link)
        self.dead_letters = RedisLetters(self.link)
        self.transactions = RedisHalves(self.link)
        self.outbox = None

    def link(self) -> Link:
        """The open server. Raises `NotOpen`."""
        if self._link is None:
            raise NotOpen(f"{self.url} is not open; write: async with bus: …")
        return self._link

    async def open(self) -> None:
        if self._link is not None:
            return
        link = Link(self._location, self._clock)
        try:
            info = await self._info(link)
            self._check(info)
            durable = await self._durable(link, info)
        except Refused as error:
            await link.close()
            raise ConfigurationError(str(error)) from error
        except BaseException:
            await link.close()
            raise
        self.driver.caps = replace(CAPABILITIES, durable=durable)
        self._link = link

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        return None

    async def durability(self) -> list[str]:
        """See `AuditedEngine`."""
        link = self.link()
        info = await self._info(link)
        found: list[str] = []
        if info.get("aof_enabled") not in (1, "1"):
            found.append(
                "there is no append-only file: all since the last snapshot is gone when the server dies; "
                "set appendonly yes, appendfsync always"
            )
        elif (sync := await self._appendfsync(link)) != "always":
            says = (
                f"appendfsync {f'is {sync}' if sync else 'cannot be read'}, not always: what was confirmed in the last "
                f"{'half minute' if sync == 'no' else 'one or two seconds'} may be gone when the server dies"
            )
            if self._location.accept_everysec and sync != "no":
                found.append(Known(f"{says}; durability=everysec in its URL accepts that"))
            else:
                found.append(f"{says}; set appendfsync always, or accept everysec: ?durability=everysec in the URL")
        wanted, there = self._location.replicas, int(info.get("connected_slaves", 0))
        if self._location.service and not wanted:
            found.append(
                "no replica is waited for, so a failover may lose what was confirmed just before it; with two replicas "
                "write ?replicas=1 in the URL"
            )
        elif wanted > there and info:
            found.append(f"replicas={wanted} in the URL, and {there} are connected: nothing can be sent")
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            found.append(f"maxmemory-policy is {info['maxmemory_policy']}: a full server throws messages away")
        return found

    async def _info(self, link: Link) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await link.command("INFO")
        except Refused as error:
            if not isinstance(error.__cause__, NoPermissionError):
                raise
            if self._location.accept_eviction:
                return {}
            raise ConfigurationError(
                f"{self.url}: whether keys may be evicted cannot be seen, for the user may not run INFO; allow it "
                "(ACL SETUSER … +info), or write ?eviction=accept"
            ) from error
        return info

    def _check(self, info: dict[str, Any]) -> None:
        """Raises what keeps this server from keeping its promises."""
        version = str(info.get("redis_version", "7.0"))
        with contextlib.suppress(ValueError):
            if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
                raise ConfigurationError(f"{self.url}: this is Redis {version}; 7.0 or later, or Valkey, is needed")
        if info.get("cluster_enabled") in (1, "1"):
            raise ConfigurationError(
                f"{self.url}: this is a cluster, where one step cannot reach the queues of a topic; use a server, "
                "with replicas and Sentinel if need be: redis+sentinel://host1,host2/mymaster"
            )
        if info.get("role") not in (None, "master"):
            raise Unavailable(f"{self.url}: this is a replica; give the master's address, or that of Sentinel")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not self._location.accept_eviction:
            raise ConfigurationError(
                f"{self.url}: maxmemory-policy is {policy}, so the server may throw messages away when it is full; set "
                "maxmemory-policy noeviction, or write ?eviction=accept if you can bear it"
            )

    async def _durable(self, link: Link, info: dict[str, Any]) -> bool:
        """Whether what is confirmed is on the disk: only with `appendfsync always`, if that can be seen."""
        if info.get("aof_enabled") not in (1, "1"):
            logging.getLogger("easybus").warning(
                "%s keeps no append-only file: what was sent since its last snapshot is gone when it dies; "
                "set appendonly yes",
                self.url,
            )
            return False
        return await self._appendfsync(link) == "always"

    async def _appendfsync(self, link: Link) -> str:
        """Empty where it cannot be read."""
        with contextlib.suppress(Refused):
            reply = await link.command("CONFIG GET", "appendfsync")
            return str(reply.get("appendfsync", ""))
        return ""

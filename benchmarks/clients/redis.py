"""Clients of Redis, on a stream with a group: pipelines, as our scripts' batches cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_STREAM, _GROUP = "clients", "group"


class RedisPy:
    """redis-py with hiredis, without retries of its own."""

    library = "redis"

    async def open(self, url: str) -> None:
        import importlib

        library: Any = importlib.import_module(f"{self.library}.asyncio")
        self._client = library.from_url(url)
        await self._make()

    async def _make(self) -> None:
        await self._client.delete(_STREAM)
        await self._client.xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for body in bodies:
            pipeline.xadd(_STREAM, {"b": body})
        await pipeline.execute()

    async def consume(self, limit: int) -> int:
        [(_, entries)] = await self._client.xreadgroup(_GROUP, "one", {_STREAM: ">"}, count=limit)
        ids = [one for one, _ in entries]
        pipeline = self._client.pipeline(transaction=False)
        pipeline.xack(_STREAM, _GROUP, *ids)
        pipeline.xdel(_STREAM, *ids)
        await pipeline.execute()
        return len(ids)

    async def close(self) -> None:
        await self._client.aclose()


class ValkeyPy(RedisPy):
    """valkey-py, its fork."""

    library = "valkey"


class Coredis(RedisPy):
    """coredis."""

    async def open(self, url: str) -> None:
        import coredis

        self._client = coredis.Redis.from_url(url)
        self._entered = await self._client.__aenter__()
        await self._make()

    async def _make(self) -> None:
        await self._client.delete([_STREAM])
        await self._client.xgroup_create(_STREAM, _GROUP, identifier="0", mkstream=True)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.xadd(_STREAM, {"b": body})

    async def consume(self, limit: int) -> int:
        found = await self._client.xreadgroup(_GROUP, "one", {_STREAM: ">"}, count=limit)
        [entries] = found.values()
        ids = [one.identifier for one in entries]
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.xack(_STREAM, _GROUP, ids)
            pipeline.xdel(_STREAM, ids)
        return len(ids)

    async def close(self) -> None:
        await self._client.__aexit__(None, None, None)


CLIENTS = {"redis-py": RedisPy, "valkey-py": ValkeyPy, "coredis": Coredis}

"""Ways to use NATS's client: its own JetStream layer, and the plain requests that our driver sends over it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

_STREAM = "clients"


class JetStream:
    """nats-py's `jetstream()`: awaited publishes side by side, `fetch`, and an ack each."""

    async def open(self, url: str) -> None:
        import nats
        from nats.js.api import RetentionPolicy, StorageType

        self._client: Any = await nats.connect(url, max_reconnect_attempts=-1)
        self._stream = self._client.jetstream()
        await self._stream.add_stream(
            name=_STREAM, subjects=[_STREAM], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
        )
        self._pulling = await self._stream.pull_subscribe(_STREAM, durable="one")

    async def publish(self, bodies: Sequence[bytes]) -> None:
        await asyncio.gather(*(self._stream.publish(_STREAM, body) for body in bodies))

    async def consume(self, limit: int) -> int:
        messages = await self._pulling.fetch(limit, timeout=5)
        await asyncio.gather(*(message.ack_sync() for message in messages))
        return len(messages)

    async def close(self) -> None:
        await self._client.close()


class Requests(JetStream):
    """nats-py's core: requests whose answers are awaited together on one inbox, as our driver does."""

    async def open(self, url: str) -> None:
        await super().open(url)
        self._inbox = self._client.new_inbox()
        self._left = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _answered(self, _: Any) -> None:
        self._left -= 1
        if self._left <= 0 and not self._done.done():
            self._done.set_result(None)

    async def _ask(self, calls: Sequence[tuple[str, bytes]]) -> None:
        self._left, self._done = len(calls), asyncio.get_running_loop().create_future()
        for number, (subject, body) in enumerate(calls):
            await self._client.publish(subject, body, reply=f"{self._inbox}.{number}")
        await self._done

    async def publish(self, bodies: Sequence[bytes]) -> None:
        await self._ask([(_STREAM, body) for body in bodies])

    async def consume(self, limit: int) -> int:
        messages = await self._pulling.fetch(limit, timeout=5)
        await self._ask([(message.reply, b"+ACK") for message in messages])
        return len(messages)


CLIENTS = {"nats-py, its JetStream layer": JetStream, "nats-py, requests": Requests}

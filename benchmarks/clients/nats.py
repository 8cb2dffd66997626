"""Ways to use NATS's client: its own JetStream layer, plain requests, and its connection alone, as our driver."""

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
    """nats-py's core: requests whose answers are awaited together on one inbox."""

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


class Lines(JetStream):
    """nats-py's connection: what crosses in numbers is read and written by our driver's own lines."""

    async def open(self, url: str) -> None:
        from easybus.engines.nats.wire import Wire

        await super().open(url)
        self._wire = Wire()
        await self._wire.client.connect(url, allow_reconnect=False)
        self._inbox = self._wire.client.new_inbox()
        self._number = 0
        self._left = 0
        self._got: list[Any] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wire.listen(f"{self._inbox}.*", self._came)

    def _came(self, message: Any) -> None:
        self._got.append(message)
        self._left -= 1
        if not self._left:
            self._done.set_result(None)

    async def _sent(self, lines: list[bytes], answers: int) -> list[Any]:
        self._left, self._got, self._done = answers, [], asyncio.get_running_loop().create_future()
        self._wire.write(b"".join(lines))
        await self._done
        return self._got

    async def publish(self, bodies: Sequence[bytes]) -> None:
        from easybus.engines.nats.wire import publication

        await self._sent([publication(_STREAM, body, f"{self._inbox}.1") for body in bodies], len(bodies))

    async def consume(self, limit: int) -> int:
        from easybus.engines.nats.wire import ack, publication

        asked = b'{"batch": %d, "no_wait": true}' % limit
        pull = publication(f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.one", asked, f"{self._inbox}.2")
        got = await self._sent([pull], limit)
        *others, last = got
        acks = [ack(message.reply, b"+ACK") for message in others]
        await self._sent([*acks, publication(last.reply.decode(), b"+ACK", f"{self._inbox}.3")], 1)
        return len(got)

    async def close(self) -> None:
        await self._wire.client.close()
        await super().close()


CLIENTS = {
    "nats-py, its JetStream layer": JetStream,
    "nats-py, requests": Requests,
    "nats-py's connection, our lines": Lines,
}

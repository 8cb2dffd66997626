"""Publishing with confirms, many in flight.

A message is confirmed when quorum queues have written it. One that no queue takes comes back just before its confirm;
which it was is told by its exchange, key and body, the earliest first. When the channel or the connection is lost, or
the server says that it takes none now, what is not confirmed may or may not be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pika
from pika import exceptions, spec

from ...errors import EngineError, Unavailable
from .channel import Channel
from .faults import fault
from .link import Link
from .topology import Way

__all__ = ["RETURNED", "Confirms", "Parcel"]

Ack: Any = spec.Basic.Ack
RETURNED = "returned"
"""No queue took it."""
Outcome = Exception | str | None
Parcel = tuple[Way, bytes, str, int]
"""The way, the body, the message id, the attempts that it has behind it."""
ATTEMPTS = "easybus-attempts"


class _Batch:
    """What is sent together and awaited together."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self.parcels = parcels
        self.outcomes: list[Outcome] = [None] * len(parcels)
        self.left = len(parcels)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, at: int, outcome: Outcome) -> None:
        if outcome is not None:
            self.outcomes[at] = outcome
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Confirms:
    """Publishes by one channel of a link at a time.

    none → open → refused (something was) → closed when nothing is pending on it; new sends open another meanwhile
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._opening = asyncio.Lock()
        self._publishing: _Publishing | None = None
        link.on_blocked.append(self._blocked)

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Publish; the outcome of each: None (confirmed), `RETURNED`, or an error.

        Raises: `Unavailable` where nothing was sent.
        """
        if self._link.blocked:
            raise self._link.refusal()
        publishing = self._publishing
        if publishing is None or publishing.over:
            publishing = await self._open()
        return await publishing.send(parcels, self._link.timeout) if parcels else []

    async def _open(self) -> _Publishing:
        async with self._opening:
            if self._publishing is not None and not self._publishing.over:
                return self._publishing
            publishing = _Publishing()
            await publishing.open(self._link)
            if self._link.blocked:
                publishing.channel.forget()
                raise self._link.refusal()
            self._publishing = publishing
            return publishing

    def _blocked(self, error: EngineError) -> None:
        if self._publishing is not None:
            self._publishing.fail(error)


class _Publishing:
    """One channel with confirms, and what is pending on it by delivery tag."""

    channel: Channel

    def __init__(self) -> None:
        self._last = 0
        self._pending: dict[int, tuple[_Batch, int]] = {}
        self._refused = False

    async def open(self, link: Link) -> None:
        """Open its channel. Raises `Unavailable`, `NotOpen`."""
        self.channel = await Channel.open(link, self.fail)
        self.channel.raw.add_on_return_callback(self._returned)
        await self.channel.call("confirm_delivery", "asking for confirms", ack_nack_callback=self._confirmed)

    @property
    def over(self) -> bool:
        """Nothing more is to be sent on it. A channel may hold a queue's old leader to be its leader for ever (3.10:
        one that was opened while it was elected); a new one asks who leads now."""
        return self._refused or self.channel.why is not None

    async def send(self, parcels: Sequence[Parcel], seconds: float) -> list[Outcome]:
        """As `Confirms.send`."""
        batch = _Batch(parcels)
        publish, pending, first = self.channel.raw.basic_publish, self._pending, self._last + 1
        for at, (way, body, message_id, attempts) in enumerate(parcels):
            try:
                publish(way.exchange, way.key, body, _properties(message_id, attempts), mandatory=True)
            except exceptions.AMQPError as error:
                batch.settle(at, fault(error, "publishing"))
                continue
            self._last += 1
            pending[self._last] = (batch, at)
        try:
            async with asyncio.timeout(seconds):
                await batch.done
        except TimeoutError:
            late = Unavailable(f"publishing: not confirmed within {seconds:.0f} s")
            for tag in range(first, first + len(parcels)):
                if (found := pending.pop(tag, None)) is not None:
                    batch.outcomes[found[1]] = late
            self._refused = True
        if self._refused and not self._pending:
            self.channel.forget()
        return batch.outcomes

    # ------------------------------------------------------------------------------------- what the server says

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tag, taken = method.delivery_tag, isinstance(method, Ack)
        outcome = None if taken else Unavailable("RabbitMQ did not take it: the queue is full, or has no leader now")
        self._refused |= not taken
        if not method.multiple:
            self._settle(tag, outcome)
            return
        for earlier in list(takewhile(lambda one: one <= tag, self._pending)):
            self._settle(earlier, outcome)

    def _settle(self, tag: int, outcome: Outcome) -> None:
        found = self._pending.pop(tag, None)
        if found is not None:
            batch, at = found
            batch.settle(at, outcome)

    def _returned(self, _: Any, method: Any, __: Any, body: bytes) -> None:
        way = (method.exchange, method.routing_key)
        for batch, at in self._pending.values():
            parcel = batch.parcels[at]
            if parcel[0] == way and batch.outcomes[at] is None and parcel[1] == body:
                batch.outcomes[at] = RETURNED
                return

    def fail(self, error: Exception) -> None:
        """What is pending may or may not be there."""
        pending, self._pending = self._pending, {}
        for batch, at in pending.values():
            batch.settle(at, error)


def _properties(message_id: str, attempts: int) -> Any:
    return pika.BasicProperties(
        delivery_mode=2,
        message_id=message_id if message_id and len(message_id.encode()) <= 255 else None,
        headers={ATTEMPTS: attempts} if attempts else None,
    )

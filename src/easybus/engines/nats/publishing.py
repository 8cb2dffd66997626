"""Publishing: each item's queues by the bindings as they are now, one copy to each, all confirmed.

read the version → route → send all copies → answers: every copy of an item confirmed → it counts
nobody took a copy: its queue has no leader → sent again, within the timeout, but not where that was in vain last time
                    its queue is gone → one copy less
a copy unconfirmed → the item fails, and sending the same message again adds only what is missing: the server
drops a second copy of an id and body in each queue's stream for two minutes
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from ...errors import EasybusError, Unavailable, Unroutable
from ...message import new_id
from ..contract import Publication
from .api import Api
from .failures import NO_STREAM, JetStreamError, refused
from .link import Call
from .names import Names, check_publication, message_id
from .topology import LONG, Snapshot, Topology, no_queue, no_topic, too_old
from .wire import Received, status

__all__ = ["DELAY", "Publishing"]

DELAY = "Easybus-Delay"
"""A header: seconds after its storing before which a message may not be seen."""
_PART = 8 << 20
"""Bytes that are sent before their answers are waited for."""
_ELECTING = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds until what nobody took is sent again; then always the last."""
_ASKING = 0.1
"""The part of the timeout that is left to ask why, where it was in vain."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: dict[str, str | int] | None = None


_decode = msgspec.json.Decoder(_Ack).decode


class _Copy(msgspec.Struct):
    at: int
    """Of its item in the batch."""
    queue: str
    call: Call


class Publishing:
    """Sends batches."""

    def __init__(self, api: Api, topology: Topology, names: Names) -> None:
        self._api = api
        self._topology = topology
        self._names = names
        self._in_vain: dict[str, Exception] = {}
        """Queues that nobody answers for, and why, since they were waited for: those who send to others would wait too
        each time. It holds until something is confirmed."""

    def forget(self) -> None:
        """Wait again for what was waited for in vain."""
        self._in_vain.clear()

    async def publish(self, batch: Sequence[Publication], most: int) -> list[int | Exception | None]:
        """`most`: bytes that a body may have."""
        end = asyncio.get_running_loop().time() + self._api.link.address.timeout
        snapshot = await self._topology.current()
        results: list[int | Exception | None] = []
        copies: list[_Copy] = []
        for at, item in enumerate(batch):
            try:
                check_publication(item, most)
                reached = _reached(snapshot, item)
                copies += [_Copy(at, queue, self.call(queue, item, snapshot.queues[queue])) for queue in reached]
            except EasybusError as error:
                results.append(error)
            else:
                results.append(_counted(item, len(reached)))
        missed = await self._ask(copies, results)
        if missed:
            await self._again(batch, missed, results, end)
        return results

    async def _ask(
        self, copies: Sequence[_Copy], results: list[int | Exception | None], seconds: float | None = None
    ) -> list[_Copy]:
        """Send these, and note what failed. Returns those that surely nobody took: their stream is not there."""
        missed: list[_Copy] = []
        for part in _parts(copies):
            for copy, answer in zip(part, await self._api.link.ask([one.call for one in part], seconds), strict=True):
                if answer is not None and status(answer) == "503":
                    missed.append(copy)
                elif (error := self.failure(answer)) is not None:
                    results[copy.at] = error
                elif self._in_vain:
                    self._in_vain.pop(copy.queue, None)
        return missed

    def call(self, queue: str, item: Publication, default: float) -> Call:
        """One copy for one queue, on its way. Raises `BadDelay`."""
        headers: dict[str, str] = {}
        if item.dedupe_id:
            headers["Nats-Msg-Id"] = message_id(item.dedupe_id, item.body)
        delay = default if item.delay is None else item.delay
        subject = self._names.ready(queue)
        if delay >= LONG:
            if not self._api.schedules:
                raise too_old(self._api)
            subject = self._names.delayed(queue, new_id())
            headers["Nats-Schedule"] = f"@at {_moment(self._api.latest() + delay)}"
            headers["Nats-Schedule-Target"] = self._names.ready(queue)
        elif delay:
            headers[DELAY] = f"{delay:.6f}"
        return subject, item.body, headers or None

    async def move(self, queue: str, body: bytes, delay: float, dedupe_id: str) -> Call:
        """A retry's copy. A server without schedules keeps its delay too: in the queue, put back when it is fetched."""
        headers = {"Nats-Msg-Id": dedupe_id}
        if delay >= LONG and not self._api.schedules:
            headers[DELAY] = f"{delay:.6f}"
            return self._names.ready(queue), body, headers
        if delay >= LONG:
            await self._api.earliest(self._names.bucket)
        subject, _, others = self.call(queue, Publication(False, queue, body, delay=delay), 0.0)
        return subject, body, headers | (others or {})

    def failure(self, answer: Received | None) -> Exception | None:
        """Why a copy is not confirmed; None: it is."""
        if answer is None:
            return self._api.link.silent(
                "a publish", "it may or may not be there; a server whose disk is full does so, and says it in its log"
            )
        try:
            ack = _decode(answer.data)
        except msgspec.MsgspecError:
            return Unavailable(f"{self._api.link.address.url}: this is no confirmation: {answer.data[:100]!r}")
        if ack.error is not None:
            return refused(JetStreamError(ack.error), self._api.link.address.url)
        return None

    async def _again(
        self, batch: Sequence[Publication], missed: list[_Copy], results: list[int | Exception | None], end: float
    ) -> None:
        """Nobody took these copies: their queues were dropped meanwhile, or are missing, or have no leader. A cluster
        elects one within moments, and has none for a new stream at first, so the last are sent again until `end`."""
        loop = asyncio.get_running_loop()
        pauses = itertools.chain(_ELECTING, itertools.repeat(_ELECTING[-1]))
        latest = end - _ASKING * self._api.link.address.timeout
        try:
            while missed := self._awaited(await self._declared(batch, missed, results, end), results):
                pause = next(pauses)
                if loop.time() + pause > latest:
                    await self._give_up(missed, results, end)
                    return
                await asyncio.sleep(pause)
                missed = await self._ask(missed, results, max(0.0, end - loop.time()))
        except EasybusError as error:  # what is confirmed stays so
            for copy in missed:
                results[copy.at] = error

    def _awaited(self, missed: Sequence[_Copy], results: list[int | Exception | None]) -> list[_Copy]:
        """Those whose queue was not waited for in vain; the others fail."""
        awaited: list[_Copy] = []
        for copy in missed:
            if (why := self._in_vain.get(copy.queue)) is None:
                awaited.append(copy)
            else:
                results[copy.at] = Unavailable(f"{why}; since then nobody has answered for queue {copy.queue!r}")
        return awaited

    async def _give_up(self, missed: Sequence[_Copy], results: list[int | Exception | None], end: float) -> None:
        """Ask why, once for each queue, until `end`."""
        queues = list(dict.fromkeys(copy.queue for copy in missed))
        whys = await asyncio.gather(*[self.absent(queue, end) for queue in queues])
        self._in_vain.update(zip(queues, whys, strict=True))
        for copy in missed:
            results[copy.at] = self._in_vain[copy.queue]

    async def _declared(
        self, batch: Sequence[Publication], missed: Sequence[_Copy], results: list[int | Exception | None], end: float
    ) -> list[_Copy]:
        """Those whose queue is declared, and whose item may still be confirmed."""
        self._topology.forget()
        try:
            async with asyncio.timeout_at(end):
                snapshot = await self._topology.current()
        except TimeoutError:
            raise self._api.link.silent("a look at what is declared") from None
        for queue in self._in_vain.keys() - snapshot.queues.keys():
            del self._in_vain[queue]
        declared: list[_Copy] = []
        for copy in missed:
            item, result = batch[copy.at], results[copy.at]
            if isinstance(result, Exception):
                continue
            if copy.queue in snapshot.queues:
                declared.append(copy)
            elif not item.to_topic:
                results[copy.at] = no_queue(item.name)
            elif result:
                results[copy.at] = _counted(item, result - 1)
        return declared

    async def absent(self, queue: str, end: float | None = None) -> Exception:
        """Why nobody answers for a queue that is declared; by `end` if given."""
        try:
            async with asyncio.timeout_at(end):
                await self._api.stream_info(self._names.stream(queue))
        except JetStreamError as error:
            if error.code == NO_STREAM:
                return no_queue(queue)
            return refused(error, self._api.link.address.url)
        except EasybusError as error:
            return error
        except TimeoutError:
            pass
        return Unavailable(f"{self._api.link.address.url}: queue {queue!r} has no leader now")


def _reached(snapshot: Snapshot, item: Publication) -> Sequence[str]:
    if not item.to_topic:
        if item.name not in snapshot.queues:
            raise no_queue(item.name)
        return (item.name,)
    routes = snapshot.routes.get(item.name)
    if routes is None:
        raise no_topic(item.name)
    return [queue for queue in routes.queues(item.route_key) if queue in snapshot.queues]


def _counted(item: Publication, reached: int) -> int | Exception:
    """What a send that reached so many queues results in."""
    if reached or not item.require:
        return reached
    return Unroutable(f"no queue of the topic {item.name!r} is bound for {item.route_key!r}")


def _moment(seconds: float) -> str:
    """RFC 3339, rounded up to the microsecond."""
    return (_EPOCH + timedelta(seconds=seconds, microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parts(copies: Sequence[_Copy]) -> Iterator[Sequence[_Copy]]:
    begin = size = 0
    for at, copy in enumerate(copies):
        size += len(copy.call[1])
        if size > _PART and at > begin:
            yield copies[begin:at]
            begin, size = at, len(copy.call[1])
    if copies:
        yield copies[begin:]

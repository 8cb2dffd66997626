"""The driver. A lease lives at the server: it is the consumer's own, or what a put-back with a delay makes of it.

A late ack is taken by NATS whoever holds the message by then, so nothing is fenced; what is past its lease by this
process's own clock is neither put back, extended nor moved: it is another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...errors import EasybusError, NotOpen, Refused, Unavailable
from ..contract import (
    Ack,
    Binding,
    Change,
    DeclareQueue,
    Delivery,
    Extend,
    Move,
    Nack,
    Publication,
    QueueStats,
    Settled,
    Settlement,
)
from .api import Api
from .failures import NO_STREAM, JetStreamError, refused
from .link import Call, Link
from .names import CAPABILITIES, Names, capabilities, check_settlement, message_id
from .publishing import DELAY, Publishing
from .pulling import Gone, Puller, nak
from .topology import ACK_WAIT, Topology, no_queue, throws_away
from .wire import Received, ack, header

__all__ = ["NatsDriver"]

_ACK = b"+ACK"
_DELAY = DELAY.encode()
_PURGE_PART = 500


class Held:
    """A delivery's receipt."""

    __slots__ = ("ack", "deadline", "delivered", "sequence", "settled")

    def __init__(self, ack: bytes, sequence: int, delivered: int, deadline: float) -> None:
        self.ack = ack
        """The subject that settles it."""
        self.sequence = sequence
        self.delivered = delivered
        self.deadline = deadline
        """The end of its lease, by the loop's clock."""
        self.settled = False


class NatsDriver:
    """`Driver` on NATS JetStream."""

    def __init__(self, link: Link) -> None:
        self.caps = CAPABILITIES
        self._link = link
        self._names = Names(link.address.prefix)
        self._api = Api(link)
        self._topology = Topology(self._api, self._names)
        self._publishing = Publishing(self._api, self._topology, self._names)
        self._pullers: dict[str, tuple[Puller, float]] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        link.on_lost.append(self._lost)
        link.on_forbidden.append(self._forbidden)

    async def start(self) -> None:
        """Look whether the server serves. Raises `ConfigurationError`, `Unavailable`."""
        await self._api.check()
        self.caps = capabilities(int(self._link.wire.info.get("max_payload", 1 << 20)))

    def _lost(self) -> None:
        pullers, self._pullers = self._pullers, {}
        self._topology.forget()
        self._publishing.forget()
        error = Unavailable(f"{self._link.address.url}: the connection was lost")
        for puller, _ in pullers.values():
            puller.fail(error)

    def _forbidden(self, subject: str, error: Refused) -> None:
        for puller, _ in self._pullers.values():
            if puller.subject.lower() == subject:
                puller.fail(error)

    async def stop(self) -> None:
        """End every fetch."""
        pullers, self._pullers = self._pullers, {}
        self._starting.clear()
        error = NotOpen(f"{self._link.address.url} was closed")
        for puller, _ in pullers.values():
            puller.stop(error)

    # ----------------------------------------------------------------------------------------------------- topology

    async def declare(self, changes: Sequence[Change]) -> None:
        await self._topology.declare(changes)

    async def drop(self, changes: Sequence[Change]) -> None:
        await self._topology.drop(changes)
        for change in changes:
            if isinstance(change, DeclareQueue) and (standing := self._pullers.pop(change.name, None)) is not None:
                standing[0].stop(no_queue(change.name))

    async def queues(self) -> list[DeclareQueue]:
        snapshot = await self._topology.current()
        return [DeclareQueue(name, delay) for name, delay in sorted(snapshot.queues.items())]

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        snapshot = await self._topology.current()
        return [
            (topic, [Binding(topic, queue, pattern) for queue, pattern in bound])
            for topic, bound in sorted(snapshot.document.topics.items())
        ]

    async def stats(self, queue: str) -> QueueStats:
        """Ready is what was never delivered; what was put back counts as in flight until it is delivered again."""
        stream = self._names.stream(queue)
        try:
            info = await self._api.consumer_info(stream, self._names.consumer)
            state = (await self._api.stream_info(stream))["state"]
        except JetStreamError as error:
            raise self._missing(queue, error) from error
        ready, in_flight = info["num_pending"], info["num_ack_pending"]
        return QueueStats(ready, in_flight, max(0, state["messages"] - ready - in_flight))

    async def purge(self, queue: str) -> int:
        """What waits for its own time at the server goes at once; what is ready is fetched and acked, since a purge
        of the stream would take what is in flight."""
        stream = self._names.stream(queue)
        try:
            said = await self._api.request(f"STREAM.PURGE.{stream}", {"filter": self._names.delayed(queue)})
        except JetStreamError as error:
            raise self._missing(queue, error) from error
        total: int = said["purged"]
        while messages := await self._take(queue, _PURGE_PART, 0.0, ACK_WAIT):
            await self._tell([(message.reply, _ACK) for message in messages])
            total += len(messages)
        return total

    async def durability(self) -> list[str]:
        """A sentence for each queue whose stream was set up to forget."""
        found: list[str] = []
        for queue in await self.queues():
            try:
                config = (await self._api.stream_info(self._names.stream(queue.name)))["config"]
            except JetStreamError as error:
                raise self._missing(queue.name, error) from error
            if config.get("storage") == "memory":
                found.append(
                    f"stream {config['name']} lies in memory: what is in it is gone when its servers stop; "
                    "make it anew with storage file"
                )
            if limits := throws_away(config):
                found.append(f"stream {config['name']} {limits}")
            if config.get("persist_mode") == "async":
                found.append(
                    f"stream {config['name']} confirms before it has written (persist_mode async): what was confirmed "
                    "just before its server is killed may be lost; make it anew with persist_mode default"
                )
        return found

    def _missing(self, queue: str, error: JetStreamError) -> EasybusError:
        return no_queue(queue) if error.code == NO_STREAM else refused(error, self._link.address.url)

    # --------------------------------------------------------------------------------------------------- publishing

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        return await self._publishing.publish(batch, self.caps.max_body)

    # ----------------------------------------------------------------------------------------------------- consuming

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        while True:
            messages = await self._take(queue, limit, max(0.0, end - loop.time()), lease)
            if not messages:
                return []
            try:
                if found := await self._due(queue, messages, lease):
                    return found
            except BaseException:
                if queue in self._pullers:
                    self._pullers[queue][0].back(messages)
                raise

    async def _take(self, queue: str, limit: int, wait: float, lease: float) -> list[Received]:
        for last in (False, True):
            puller, standing = await self._puller(queue)
            try:
                # What comes ahead of its asking has its lease told when it is taken: so not where none is told.
                return await puller.take(limit, wait, ahead=lease != standing)
            except Gone:
                if self._pullers.get(queue, (None,))[0] is puller:
                    del self._pullers[queue]
                    puller.stop(Unavailable(f"{self._link.address.url}: queue {queue!r} was made anew"))
                if last:
                    raise await self._publishing.absent(queue) from None
        return []

    async def _puller(self, queue: str) -> tuple[Puller, float]:
        standing = self._pullers.get(queue)
        if standing is not None and standing[0].serves:
            return standing
        async with self._starting.setdefault(queue, asyncio.Lock()):
            standing = self._pullers.get(queue)
            if standing is not None and standing[0].serves:
                return standing
            stream = self._names.stream(queue)
            try:
                info = await self._topology.ensure_consumer(queue)
            except JetStreamError as error:
                raise self._missing(queue, error) from error
            puller = Puller(self._link, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self._names.consumer}")
            self._pullers[queue] = standing = (puller, info["config"].get("ack_wait", ACK_WAIT * 1e9) / 1e9)
        return standing

    async def _due(self, queue: str, messages: Sequence[Received], lease: float) -> list[Delivery]:
        """Those that may be seen, under their lease; the others go back until they may."""
        _, standing = self._pullers.get(queue, (None, 0.0))
        deadline = asyncio.get_running_loop().time() + lease
        found: list[Delivery] = []
        answers: list[bytes] = []
        for message in messages:
            delivered, sequence, stored = _told(message.reply)
            attempt = delivered
            if message.headers and (delay := _delay(message)):
                attempt = max(1, delivered - 1)  # the first was too early
                early = stored + delay - await self._api.earliest(self._names.bucket)
                if early > 0:
                    answers.append(ack(message.reply, nak(early)))
                    continue
            if lease != standing:
                answers.append(ack(message.reply, nak(lease)))
            held = Held(message.reply, sequence, delivered, deadline)
            found.append(Delivery(queue, message.data, attempt, held))
        if answers:
            self._link.wire.write(b"".join(answers))
        return found

    # ------------------------------------------------------------------------------------------------------ settling

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> list[Settled]:
        for item in batch:
            check_settlement(item, self.caps.max_body)
        loop = asyncio.get_running_loop()
        began = loop.time()
        moved = await self._move(queue, [item for item in batch if isinstance(item, Move) and _live(item, began)])
        now = loop.time()  # moving takes its time
        results = [Settled.UNKNOWN] * len(batch)
        answers: list[tuple[bytes, bytes]] = []
        asked: list[int] = []
        for at, item in enumerate(batch):
            held: Held = item.delivery.receipt
            if held.settled or not (isinstance(item, Ack) or _live(item, began if isinstance(item, Move) else now)):
                results[at] = Settled.STALE
                continue
            if isinstance(item, Extend):
                held.deadline = min(held.deadline, now + item.lease)  # until the server has taken it
                answers.append((held.ack, nak(item.lease)))
            elif isinstance(item, Move) and held not in moved:
                continue  # its lease will tell
            else:
                held.settled = True
                answers.append((held.ack, nak(item.delay) if isinstance(item, Nack) else _ACK))
            asked.append(at)
        told = False
        try:
            told = await self._tell(answers)
        finally:
            for at in asked:
                item, held = batch[at], batch[at].delivery.receipt
                if not told:
                    held.settled = False  # it may be tried again
                    continue
                results[at] = Settled.DONE
                if isinstance(item, Extend):
                    held.deadline = now + item.lease
        return results

    async def _tell(self, answers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Answer deliveries of one queue; whether the server took it. Its consumer takes what one connection sends in
        the order of sending, so it is asked about the last only: an ack where there is one, which is answered when most
        replicas have it, and so those before it; a put-back is answered at once."""
        if not answers:
            return True
        *others, (last, body) = sorted(answers, key=lambda answer: answer[1] == _ACK)
        before = b"".join([ack(reply, said) for reply, said in others])
        [answer] = await self._link.ask([(last.decode(), body, None)], before=before)
        return answer is not None and not answer.headers

    async def _move(self, queue: str, moves: Sequence[Move]) -> set[Held]:
        """Publish the copies; returns the receipts of those that are confirmed. Sent again, a copy is the same."""
        if not moves:
            return set()
        moves = list({item.delivery.receipt: item for item in moves if not item.delivery.receipt.settled}.values())
        calls: list[Call] = []
        for item in moves:
            held: Held = item.delivery.receipt
            identity = f"{message_id(item.dedupe_id, item.body)}/{held.sequence}/{held.delivered}"
            calls.append(await self._publishing.move(queue, item.body, item.delay, identity))
        confirmed: set[Held] = set()
        for item, answer in zip(moves, await self._link.ask(calls), strict=True):
            error = self._publishing.failure(answer)
            if isinstance(error, Refused):
                raise error
            if error is None:
                confirmed.add(item.delivery.receipt)
        return confirmed


def _live(item: Settlement, now: float) -> bool:
    return now < item.delivery.receipt.deadline


def _delay(message: Received) -> float:
    """Seconds after its storing before which it may not be seen. Other programs write headers too: what is no delay is
    none, and fails nobody."""
    try:
        delay = float(header(message, _DELAY) or 0)
    except ValueError:
        return 0.0
    return delay if 0 < delay <= CAPABILITIES.max_delay else 0.0


def _told(reply: bytes) -> tuple[int, int, float]:
    """What a message's reply subject says: how often it was delivered, its sequence, when it was stored."""
    # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<…>.<time>.<pending>; with a domain two tokens come before
    tokens = reply.split(b".")
    at = 4 if len(tokens) < 11 else 6
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3]) / 1e9

"""What is declared: one document in a bucket, replaced by compare-and-swap, and a stream per queue.

    declare: streams, consumers → document      drop: document → streams
    so a queue of the document has its stream, but for a moment while it is dropped

The bucket's last sequence is the version. It is asked of the leader (a watch, or a direct read, may lag), and the
document is read only when it has moved.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from ...errors import BadDelay, DeclaredOtherwise, NotDeclared, TooLarge, Unavailable
from ...routing import Routes
from ..contract import Binding, Change, DeclareQueue, DeclareTopic
from .api import Api
from .failures import NO_CONSUMER, NO_MESSAGE, NO_STREAM, OTHER_STREAM, WRONG_SEQUENCE, JetStreamError, refused
from .names import Names, check_change
from .wire import status

__all__ = ["ACK_WAIT", "Snapshot", "Topology", "no_queue", "no_topic"]

ACK_WAIT = 5.0
"""Seconds of a lease that needs no message to the server: what the consumers are made with. It is short, since a
server that comes back looks at its leases, and at what was put back for later, only after so long."""
LONG = 1.0
"""Seconds of a delay from which the server's own schedules keep it: they come up to 0.3 s late where several are
near each other, so shorter ones wait in their queue, put back by whoever fetches them too early."""
_DUPLICATES = 120.0
_TRIES = 50
_SETTLING = (0.1, 0.2, 0.4, 0.8, 1.6, None)
"""Seconds until a stream that was just made is looked for again."""


class _Document(msgspec.Struct):
    queues: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    topics: dict[str, list[tuple[str, str]]] = msgspec.field(default_factory=dict[str, list[tuple[str, str]]])


_decode = msgspec.json.Decoder(_Document).decode


class Snapshot:
    """The topology at one version."""

    def __init__(self, version: tuple[str, int], document: _Document, sequence: int) -> None:
        self.version = version
        self.document = document
        self.sequence = sequence
        """The document's own; 0: there is none."""
        self.queues = document.queues
        self.routes = {topic: Routes(bound) for topic, bound in document.topics.items()}

    def has(self, change: Change) -> bool:
        """Whether it is declared. Raises `DeclaredOtherwise` for a queue with another delay."""
        if isinstance(change, DeclareTopic):
            return change.name in self.document.topics
        if isinstance(change, Binding):
            return (change.queue, change.route_key) in self.document.topics.get(change.topic, ())
        delay = self.queues.get(change.name)
        if delay is not None and delay != change.delay:
            raise DeclaredOtherwise(
                f"queue {change.name!r} has a delay of {delay:g} s, and {change.delay:g} s was declared: "
                "keep the first, or drop the queue when it is empty"
            )
        return delay is not None


class Topology:
    """Reads and changes it."""

    def __init__(self, api: Api, names: Names) -> None:
        self._api = api
        self._names = names
        self._last: Snapshot | None = None

    def forget(self) -> None:
        """Read the document again next time."""
        self._last = None

    @property
    def _url(self) -> str:
        return self._api.link.address.url

    # ----------------------------------------------------------------------------------------------- reading

    async def current(self) -> Snapshot:
        """As it is now."""
        try:
            info = await self._api.stream_info(self._names.bucket)
        except JetStreamError as error:
            if error.code != NO_STREAM:
                raise refused(error, self._url) from error
            version = ("", 0)
        else:
            version = (info["created"], info["state"]["last_seq"])
        last = self._last
        if last is None or last.version != version:
            last = self._last = Snapshot(version, *await self._read(version))
        return last

    async def _read(self, version: tuple[str, int]) -> tuple[_Document, int]:
        if not version[1]:
            return _Document(), 0
        try:
            found = await self._api.request(f"STREAM.MSG.GET.{self._names.bucket}", {"last_by_subj": self._names.key})
        except JetStreamError as error:
            if error.code in (NO_MESSAGE, NO_STREAM):
                return _Document(), 0
            raise refused(error, self._url) from error
        message = found["message"]
        try:
            return _decode(base64.b64decode(message.get("data", ""))), message["seq"]
        except msgspec.MsgspecError as error:
            raise Unavailable(f"{self._url}: key topology of bucket {self._names.prefix} was overwritten") from error

    # ---------------------------------------------------------------------------------------------- declaring

    async def declare(self, changes: Sequence[Change]) -> None:
        """Make these exist."""
        for change in changes:
            check_change(change)
            if isinstance(change, DeclareQueue) and change.delay >= LONG and not self._api.schedules:
                raise too_old(self._api)
        snapshot = await self.current()
        for change in changes:
            snapshot.has(change)
        self._check_bindings(snapshot, changes)
        await _all(self._make(change.name) for change in changes if isinstance(change, DeclareQueue))

        def change_document(document: _Document, snapshot: Snapshot) -> bool:
            missing = [change for change in changes if not snapshot.has(change)]
            self._check_bindings(snapshot, changes)
            for change in sorted(missing, key=lambda change: isinstance(change, Binding)):
                if isinstance(change, DeclareQueue):
                    document.queues[change.name] = change.delay
                elif isinstance(change, DeclareTopic):
                    document.topics.setdefault(change.name, [])
                elif (bound := (change.queue, change.route_key)) not in document.topics[change.topic]:
                    document.topics[change.topic].append(bound)
            return bool(missing)

        await self._replace(change_document, snapshot)

    async def drop(self, changes: Sequence[Change]) -> None:
        """Make these not exist."""

        def change_document(document: _Document, snapshot: Snapshot) -> bool:
            before = msgspec.json.encode(document)
            for change in changes:
                if isinstance(change, DeclareQueue):
                    document.queues.pop(change.name, None)
                    for topic, bound in document.topics.items():
                        document.topics[topic] = [pair for pair in bound if pair[0] != change.name]
                elif isinstance(change, DeclareTopic):
                    document.topics.pop(change.name, None)
                elif change.topic in document.topics:
                    gone = (change.queue, change.route_key)
                    document.topics[change.topic] = [pair for pair in document.topics[change.topic] if pair != gone]
            return msgspec.json.encode(document) != before

        for change in changes:
            check_change(change)
        await self._replace(change_document, await self.current())
        for change in changes:
            if isinstance(change, DeclareQueue):
                await self._delete(change.name)

    def _check_bindings(self, snapshot: Snapshot, changes: Sequence[Change]) -> None:
        queues = {change.name for change in changes if isinstance(change, DeclareQueue)}
        topics = {change.name for change in changes if isinstance(change, DeclareTopic)}
        for change in changes:
            if isinstance(change, Binding):
                if change.queue not in queues and change.queue not in snapshot.queues:
                    raise no_queue(change.queue)
                if change.topic not in topics and change.topic not in snapshot.routes:
                    raise no_topic(change.topic)

    async def _replace(self, change_document: Any, snapshot: Snapshot) -> None:
        for attempt in range(_TRIES):
            document = _decode(msgspec.json.encode(snapshot.document))
            if not change_document(document, snapshot):
                return
            if not snapshot.version[0]:
                await self._make_bucket()
            if await self._store(document, snapshot.sequence):
                return
            await asyncio.sleep(0.002 * attempt)
            self.forget()
            snapshot = await self.current()
        raise Unavailable(f"{self._url}: queues and bindings changed faster than they could be stored")

    async def _make_bucket(self) -> None:
        try:
            await self._create(_bucket(self._names, self._api.link.address.replicas))
        except JetStreamError as error:
            if error.code != NO_STREAM:  # seen as none yet: looked for again before anything is stored
                raise refused(error, self._url) from error

    async def _store(self, document: _Document, sequence: int) -> bool:
        body = msgspec.json.encode(document)
        most = int(self._api.link.wire.info.get("max_payload", 1 << 20)) - 1024
        if len(body) > most:
            raise TooLarge(f"{self._url}: queues and bindings take {len(body)} bytes, the server's max_payload is less")
        headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        [answer] = await self._api.link.ask([(self._names.key, body, headers)])
        self.forget()
        if answer is None:
            raise self._api.link.silent("a declaration")
        if status(answer) == "503":  # the bucket was deleted
            return False
        said: dict[str, Any] = msgspec.json.decode(answer.data)
        if "error" not in said:
            return True
        error = JetStreamError(said["error"])
        if error.code in WRONG_SEQUENCE:
            return False
        raise refused(error, self._url)

    # ------------------------------------------------------------------------------------------------ streams

    async def _make(self, queue: str) -> None:
        for pause in _SETTLING:
            try:
                await self._make_once(queue)
                break
            except JetStreamError as error:
                if pause is None or error.code != NO_STREAM:
                    raise refused(error, self._url) from error
            # Another process is making it: servers of a cluster come to know of a stream one after another.
            await asyncio.sleep(pause)

    async def _make_once(self, queue: str) -> None:
        names, address = self._names, self._api.link.address
        stream = names.stream(queue)
        config = _stream(names, queue, address.replicas, schedules=self._api.schedules)
        standing = await self._create(config)
        if not set(config["subjects"]) <= set(standing["subjects"]) or standing["retention"] != "workqueue":
            raise DeclaredOtherwise(f"{self._url}: stream {stream} is none of easybus': delete it, or write ?prefix=")
        if limits := throws_away(standing):
            raise DeclaredOtherwise(f"{self._url}: stream {stream} {limits}")
        if self._api.schedules and not standing.get("allow_msg_schedules"):  # made by an older server
            await self._api.request(f"STREAM.UPDATE.{stream}", {**standing, "allow_msg_schedules": True})
        await self.ensure_consumer(queue)

    async def ensure_consumer(self, queue: str) -> dict[str, Any]:
        """The consumer's info; made where it is missing. Raises `JetStreamError`."""
        stream, consumer = self._names.stream(queue), self._names.consumer
        try:
            return await self._api.consumer_info(stream, consumer)
        except JetStreamError as error:
            if error.code != NO_CONSUMER:
                raise
        config = {
            "durable_name": consumer,
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * 1e9),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "max_waiting": 4096,
            "filter_subject": self._names.ready(queue),
        }
        return await self._api.request(
            f"CONSUMER.DURABLE.CREATE.{stream}.{consumer}", {"stream_name": stream, "config": config}, slow=True
        )

    async def _create(self, config: dict[str, Any]) -> dict[str, Any]:
        """Make a stream if it is missing; what stands is left as it is, and its settings are returned. Raises
        `JetStreamError`."""
        name = config["name"]
        try:
            return (await self._api.request(f"STREAM.CREATE.{name}", config, slow=True))["config"]
        except JetStreamError as error:
            if error.code != OTHER_STREAM:
                raise
        return (await self._api.stream_info(name))["config"]  # an operator's settings: kept

    async def _delete(self, queue: str) -> None:
        stream = self._names.stream(queue)
        try:
            with contextlib.suppress(JetStreamError):
                await self._api.request(f"STREAM.DELETE.{stream}")
        finally:
            self.forget()
        if queue in (await self.current()).queues:  # declared again meanwhile
            await self._make(queue)


def throws_away(config: dict[str, Any]) -> str:
    """What of a stream's settings makes it throw messages away, and what to do; empty: nothing does. Where there are
    schedules, the server makes room for new messages and takes no setting that refuses them."""
    limits = [name for name in ("max_age", "max_bytes", "max_msgs", "max_msgs_per_subject") if config.get(name, 0) > 0]
    if config.get("discard") == "new":
        limits = [name for name in limits if name in ("max_age", "max_msgs_per_subject")]
    if not limits:
        return ""
    return (
        f"throws its oldest messages away at its limit ({', '.join(limits)}): take that away (nats stream edit), and "
        "limit the account instead, or max_file_store: then new messages are refused"
    )


def _stream(names: Names, queue: str, replicas: int, *, schedules: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": names.stream(queue),
        "subjects": [names.ready(queue), names.delayed(queue)],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "duplicate_window": int(_DUPLICATES * 1e9),
        "metadata": {"easybus.queue": queue},
    }
    if schedules:
        config["allow_msg_schedules"] = True
    return config


def _bucket(names: Names, replicas: int) -> dict[str, Any]:
    return {
        "name": names.bucket,
        "subjects": [f"$KV.{names.prefix}.>"],
        "storage": "file",
        "retention": "limits",
        "num_replicas": replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }


async def _all(calls: Any) -> None:
    waiting: list[Coroutine[Any, Any, None]] = list(calls)
    for at in range(0, len(waiting), 50):
        results = await asyncio.gather(*waiting[at : at + 50], return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                for rest in waiting[at + 50 :]:
                    rest.close()
                raise result


def too_old(api: Api) -> BadDelay:
    """The error for a delay that the server cannot keep."""
    return BadDelay(f"delays of {LONG:g} s and more need NATS 2.12 or later, this server is {api.version}: upgrade it")


def no_queue(name: str) -> NotDeclared:
    """The error for a queue that is not there."""
    return NotDeclared(f"there is no queue {name!r}: declare it first")


def no_topic(name: str) -> NotDeclared:
    """The error for a topic that is not there."""
    return NotDeclared(f"there is no topic {name!r}: declare it first")

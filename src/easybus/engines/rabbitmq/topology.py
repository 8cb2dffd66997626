"""What exists on the server: queues, exchanges, bindings; and the way there of what is published.

    send to a queue    no delay given → its front queue, or itself; 0 → itself; else → the delays → itself
    send to a topic    no delay given → exchange T → front queues, or queues; 0 → T's own exchange → queues;
                       else → the delays → T's own exchange → queues

Services in other languages bind to T. What was found or made is remembered for as long as the connection lives, and
forgotten where the server says otherwise; so a publish needs no question first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from ...errors import DeclaredOtherwise, NotDeclared
from ..contract import Binding, Change, DeclareQueue, DeclareTopic, Publication
from .channel import Channel
from .delays import DUE, LEVELS, NOWHERE, bits, bits_of, level_name, milliseconds
from .link import Link
from .names import check_change, check_publication, encoded, front_of, key_bytes, own_of, token

__all__ = ["Topology", "Way"]

_DEAD = "easybus:dead"
_QUORUM = {"x-queue-type": "quorum"}
_SAFE = {**_QUORUM, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
_ZEROS = bits(0)


class Way(NamedTuple):
    """Where a publication goes in: what AMQP's `basic.publish` takes."""

    exchange: str
    key: str


class Topology:
    """Declarations, one at a time, on a channel of their own: a refused one closes it."""

    def __init__(self, link: Link, settle: float) -> None:
        self._link = link
        self._settle = settle
        self._made = False
        """A queue was made, and `_settled` is not awaited yet."""
        self._channel: Channel | None = None
        self._turn = asyncio.Lock()
        self._known: set[tuple[str, str]] = set()
        self._fronts: dict[str, bool] = {}
        link.on_lost.append(lambda _: self._forget_all())

    def _forget_all(self) -> None:
        self._known.clear()
        self._fronts.clear()
        self._channel = None

    # --------------------------------------------------------------------------------------------- declare and drop

    async def declare(self, changes: Sequence[Change]) -> None:
        """Make these exist: queues and topics first. Raises as the contract says."""
        for change in changes:
            check_change(change)
        async with self._turn:
            for change in changes:
                if isinstance(change, DeclareQueue):
                    await self._declare_queue(encoded(change.name, "a queue"), change)
                elif isinstance(change, DeclareTopic):
                    await self._declare_topic(encoded(change.name, "a topic"))
            await self._settled()
            for change in changes:
                if isinstance(change, Binding):
                    await self._bind(change)

    async def _declare_queue(self, queue: str, change: DeclareQueue) -> None:
        delay = math.ceil(change.delay * 1000)
        await self._once("base", "", self._declare_base)
        # The delay is among the arguments so that the server itself refuses another one, in any process.
        fixed = {"x-delivery-limit": 100_000, "x-dead-letter-exchange": _DEAD, "x-dead-letter-routing-key": f"{delay}"}
        what = f"declaring queue {change.name!r} with a delay of {change.delay} s"
        try:
            await self._queue(queue, what, _SAFE | fixed)
        except DeclaredOtherwise as error:
            raise DeclaredOtherwise(
                f"{error}. A queue's delay and kind cannot be changed: handle what is in it, then delete it (easybus "
                f"queues drop, or RabbitMQ's management page) and declare it again"
            ) from error
        if delay:
            waits = {"x-message-ttl": delay, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
            await self._queue(front_of(queue), what, _SAFE | waits)
        self._fronts[queue] = bool(delay)
        await self._bind_due(queue)

    async def _declare_topic(self, topic: str) -> None:
        await self._exchange(topic)
        self._known.add(("topic", topic))
        self._known.discard(("own", topic))
        await self._own(topic)

    async def _declare_base(self) -> None:
        """What all queues and topics share."""
        for name, arguments in ((_DEAD, _QUORUM), (NOWHERE, {**_QUORUM, "x-max-length": 1})):
            await self._exchange(name, kind="fanout")
            await self._queue(name, f"declaring {name}", arguments)
            await self._call("queue_bind", f"binding {name}", queue=name, exchange=name, routing_key="")
        # What comes out of the delays must go somewhere, or it would be held there and tried again for ever.
        await self._exchange(DUE, {"alternate-exchange": NOWHERE})
        any_topic = "*." * LEVELS + "t.#"
        await self._call("queue_bind", f"binding {NOWHERE}", queue=NOWHERE, exchange=DUE, routing_key=any_topic)

    async def _bind(self, binding: Binding) -> None:
        queue, topic = encoded(binding.queue, "a queue"), encoded(binding.topic, "a topic")
        what = f"binding queue {binding.queue!r} to topic {binding.topic!r}"
        own_key = key_bytes(_own_key(_ZEROS_ANY, topic, binding.route_key))
        into = front_of(queue) if await self._has_front(queue) else queue
        await self._call("queue_bind", what, queue=into, exchange=topic, routing_key=binding.route_key)
        await self._once("own", topic, lambda: self._own(topic))
        await self._call("queue_bind", what, queue=queue, exchange=own_of(topic), routing_key=own_key)

    async def drop(self, changes: Sequence[Change]) -> None:
        """Make these not exist."""
        for change in changes:
            check_change(change)
        async with self._turn:
            for change in changes:
                await self._drop(change)

    async def _drop(self, change: Change) -> None:
        what = f"dropping {change}"
        if isinstance(change, Binding):
            queue, topic = encoded(change.queue, "a queue"), encoded(change.topic, "a topic")
            own_key = _own_key(_ZEROS_ANY, topic, change.route_key)
            for held, exchange, key in (
                (queue, topic, change.route_key),
                (front_of(queue), topic, change.route_key),
                (queue, own_of(topic), own_key),
            ):
                try:
                    await self._call("queue_unbind", what, queue=held, exchange=exchange, routing_key=key)
                except NotDeclared:
                    continue
        elif isinstance(change, DeclareQueue):
            queue = encoded(change.name, "a queue")
            for held in (front_of(queue), queue):
                await self._call("queue_delete", what, queue=held)
            self._forget(("due", queue))
            self._fronts.pop(queue, None)
        else:
            topic = encoded(change.name, "a topic")
            for held in (topic, own_of(topic)):
                await self._call("exchange_delete", what, exchange=held)
            self._forget(("topic", topic), ("own", topic))

    # ------------------------------------------------------------------------------------------------- look and empty

    async def ready(self, name: str) -> int:
        """How many messages the queue has ready. Raises `NotDeclared`."""
        what = f"looking at queue {name!r}"
        async with self._turn:
            found = await self._call("queue_declare", what, queue=encoded(name, "a queue"), passive=True)
        return found.message_count

    async def purge(self, name: str) -> int:
        """Empty the queue, and where its default delay is waited for. Raises `NotDeclared`."""
        queue, what = encoded(name, "a queue"), f"purging queue {name!r}"
        async with self._turn:
            purged = (await self._call("queue_purge", what, queue=queue)).message_count
            if await self._has_front(queue):
                purged += (await self._call("queue_purge", what, queue=front_of(queue))).message_count
        return purged

    # ------------------------------------------------------------------------------------------------------ the way

    def known_way(self, item: Publication) -> Way | None:
        """The way, where nothing must be asked or made first. Raises `Refused`."""
        check_publication(item)
        delay = item.delay
        if item.to_topic:
            topic = encoded(item.name, "a topic")
            if delay is None:
                return Way(topic, key_bytes(item.route_key)) if ("topic", topic) in self._known else None
            if ("own", topic) not in self._known:
                return None
            if not delay:
                return Way(own_of(topic), key_bytes(_own_key(_ZEROS, topic, item.route_key)))
            key_of: Callable[[str], str] = lambda waits: _own_key(waits, topic, item.route_key)  # noqa: E731
        else:
            queue = encoded(item.name, "a queue")
            if delay is None:
                front = self._fronts.get(queue)
                return None if front is None else Way("", front_of(queue) if front else queue)
            if not delay:
                return Way("", queue)
            if ("due", queue) not in self._known:
                return None
            key_of = lambda waits: f"{waits}.q.{token(queue)}"  # noqa: E731
        number = milliseconds(delay)
        found = bits_of(number)
        if any(("level", str(bit)) not in self._known for bit in found):
            return None
        return Way(level_name(found[-1]), key_bytes(key_of(bits(number))))

    async def way(self, item: Publication) -> Way:
        """The way; what is missing of ours is made. Raises `NotDeclared`, `Unavailable`, `Refused`."""
        async with self._turn:
            await self._prepare(item)
            way = self.known_way(item)
        if way is None:
            raise NotDeclared(f"{item.name!r} went away while a message was sent to it")
        return way

    async def _prepare(self, item: Publication) -> None:
        if item.to_topic:
            topic = encoded(item.name, "a topic")
            await self._once("topic", topic, lambda: self._look_for(topic, item.name))
            if item.delay is not None:
                await self._once("own", topic, lambda: self._own(topic))
        elif item.delay is None:
            await self._has_front(encoded(item.name, "a queue"))
        elif item.delay:
            queue = encoded(item.name, "a queue")
            await self._once("due", queue, lambda: self._bind_due(queue))
        if item.delay:
            for bit in range(max(bits_of(milliseconds(item.delay))) + 1):
                await self._once("exchange", str(bit), lambda bit=bit: self._declare_exchange(bit))
            missing = [bit for bit in bits_of(milliseconds(item.delay)) if ("level", str(bit)) not in self._known]
            for bit in missing:
                await self._declare_level(bit)
            await self._settled()
            self._known.update(("level", str(bit)) for bit in missing)

    def forget(self, item: Publication) -> None:
        """The server knows no such way: look again before the next one."""
        held = encoded(item.name, "a name")
        self._fronts.pop(held, None)
        self._forget(("topic", held), ("own", held), ("due", held), ("base", ""))
        if item.delay:
            self._forget(*((kind, str(bit)) for kind in ("exchange", "level") for bit in range(LEVELS)))

    def _forget(self, *things: tuple[str, str]) -> None:
        self._known.difference_update(things)

    # --------------------------------------------------------------------------------------------------------- parts

    async def _look_for(self, topic: str, name: str) -> None:
        await self._call("exchange_declare", f"sending to topic {name!r}", exchange=topic, passive=True)

    async def _own(self, topic: str) -> None:
        """The topic's exchange for sends with a delay of their own, and the way to it out of the delays."""
        await self._once("base", "", self._declare_base)
        own = own_of(topic)
        await self._exchange(own)
        due = "*." * LEVELS + f"t.{token(topic)}.#"
        await self._call("exchange_bind", f"binding {own}", destination=own, source=DUE, routing_key=due)
        self._known.add(("own", topic))

    async def _bind_due(self, queue: str) -> None:
        await self._once("base", "", self._declare_base)
        due = "*." * LEVELS + f"q.{token(queue)}"
        await self._call("queue_bind", f"binding queue {queue!r}", queue=queue, exchange=DUE, routing_key=due)
        self._known.add(("due", queue))

    async def _declare_exchange(self, bit: int) -> None:
        """The exchange of a bit, and the way past its queue for what has a 0 there."""
        name, lower = level_name(bit), level_name(bit - 1) if bit else DUE
        await self._once("base", "", self._declare_base)
        await self._exchange(name)
        past = "*." * (LEVELS - 1 - bit) + "0.#"
        await self._call("exchange_bind", f"binding {name}", destination=lower, source=name, routing_key=past)

    async def _declare_level(self, bit: int) -> None:
        """The queue that holds what has a 1 in this bit."""
        name, lower = level_name(bit), level_name(bit - 1) if bit else DUE
        waits = {"x-message-ttl": 1 << bit, "x-dead-letter-exchange": lower}
        await self._queue(name, f"declaring {name}", _SAFE | waits)
        here = "*." * (LEVELS - 1 - bit) + "1.#"
        await self._call("queue_bind", f"binding {name}", queue=name, exchange=name, routing_key=here)

    async def _queue(self, name: str, what: str, arguments: dict[str, Any]) -> None:
        """Declare a queue, and note whether it is new."""
        try:
            await self._call("queue_declare", what, queue=name, passive=True)
        except NotDeclared:
            self._made = True
        await self._call("queue_declare", what, queue=name, durable=True, arguments=arguments)

    async def _settled(self) -> None:
        """RabbitMQ notes on disk up to a second later which log is a new quorum queue's: what was confirmed into
        the queue before that is lost when the server is killed (3.10, tried)."""
        if self._made:
            await asyncio.sleep(self._settle)
            self._made = False

    async def _has_front(self, queue: str) -> bool:
        found = self._fronts.get(queue)
        if found is None:
            try:
                await self._call("queue_declare", "looking for a delay", queue=front_of(queue), passive=True)
                found = True
            except NotDeclared:
                found = False
            self._fronts[queue] = found
        return found

    async def _once(self, kind: str, name: str, make: Callable[[], Awaitable[None]]) -> None:
        if (kind, name) not in self._known:
            await make()
            self._known.add((kind, name))

    async def _exchange(self, name: str, arguments: dict[str, Any] | None = None, kind: str = "topic") -> None:
        await self._call(
            "exchange_declare",
            f"declaring exchange {name!r}",
            exchange=name,
            exchange_type=kind,
            durable=True,
            arguments=arguments,
        )

    async def _call(self, method: str, what: str, **arguments: Any) -> Any:
        channel = self._channel
        if channel is None or channel.why is not None:
            channel = self._channel = await Channel.open(self._link)
        return await channel.call(method, what, **arguments)


_ZEROS_ANY = ".".join("*" * LEVELS)


def _own_key(waits: str, topic: str, route_key: str) -> str:
    """The key, or pattern, on the topic's own exchange: the topic's word, then the route key's words if any."""
    return f"{waits}.t.{token(topic)}.{route_key}" if route_key else f"{waits}.t.{token(topic)}"

"""Names as NATS takes them, and what a publish, a declaration and a settlement may hold.

    queue Q      stream <prefix>_<Q>, subjects <prefix>.q.<Q> and <prefix>.d.<Q>.*, consumer <prefix>
    topics       bucket <prefix> (stream KV_<prefix>), key topology

A name's letters, digits, '-' and '_' stand for themselves, every other byte of its UTF-8 is '=' and two digits; where
that is too long, the whole is '~' and base64 for URLs. Both can be read back, so none collide.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from functools import lru_cache
from urllib.parse import quote

from ...errors import BadDelay, BadName, NotSupported, TooLarge
from ..contract import Binding, Capabilities, Change, DeclareQueue, Move, Nack, Publication, Settlement

RESERVE = 1024
"""Bytes of the server's `max_payload` that are kept for headers."""
CAPABILITIES = Capabilities(
    engine="nats",
    durable=True,
    shared=True,
    max_body=(1 << 20) - RESERVE,
    max_name=150,
    delays_topics=False,
    atomic_move=False,
    fenced=False,
    ordered=True,
    counts=False,
    counts_routes=True,
    lists_queues=True,
    looks_ahead=True,
)
_LONGEST = 201
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_MAX_ID = 300


def capabilities(max_payload: int) -> Capabilities:
    """What a server with this `max_payload` gives."""
    return replace(CAPABILITIES, max_body=max(0, max_payload - RESERVE))


@lru_cache(maxsize=10_000)
def encoded(name: str, what: str = "a queue") -> str:
    """The name as NATS holds it. Raises `BadName`."""
    try:
        data = name.encode()
    except UnicodeEncodeError as error:
        raise BadName(f"{what} {name!r} holds lone surrogates, which no UTF-8 text can") from error
    if not 0 < len(data) <= CAPABILITIES.max_name:
        raise BadName(
            f"the name of {what} has 1 to {CAPABILITIES.max_name} bytes in UTF-8, this one has {len(data)}: "
            f"{name[:40]!r}"
        )
    held = _UNSAFE.sub(lambda found: b"=%02X" % found[0][0], data)
    if len(held) > _LONGEST:
        held = b"~" + base64.urlsafe_b64encode(data).rstrip(b"=")
    return held.decode()


class Names:
    """Of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.bucket = f"KV_{prefix}"
        self.key = f"$KV.{prefix}.topology"
        self.consumer = prefix

    def stream(self, queue: str) -> str:
        return f"{self.prefix}_{encoded(queue)}"

    def ready(self, queue: str) -> str:
        """The subject of what may be seen now."""
        return f"{self.prefix}.q.{encoded(queue)}"

    def delayed(self, queue: str, one: str = "*") -> str:
        """The subject of one schedule, or of all."""
        return f"{self.prefix}.d.{encoded(queue)}.{one}"


def message_id(dedupe_id: str, body: bytes) -> str:
    """An id as a header that the server's duplicate filter goes by: two differ where the ids do, or the bodies.

    A copy is dropped without a word. What has the id of another message is no copy: handling is to say so.
    """
    held = quote(dedupe_id, safe="", errors="surrogatepass")
    if len(held) > _MAX_ID:
        held = "sha256=" + hashlib.sha256(held.encode()).hexdigest()
    return f"{held}={hashlib.blake2b(body, digest_size=8).hexdigest()}"


def check_key(key: str) -> None:
    """Raises `BadName` for a route key or pattern that is no text."""
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise BadName(f"the route key {key!r} holds lone surrogates, which no UTF-8 text can") from error


def check_delay(delay: float) -> None:
    """Raises `BadDelay`."""
    if not 0 <= delay <= CAPABILITIES.max_delay or math.isnan(delay):
        raise BadDelay(f"a delay is 0 to {CAPABILITIES.max_delay:.0f} seconds, not {delay}")


def check_body(body: bytes, most: int) -> None:
    """Raises `TooLarge`."""
    if len(body) > most:
        raise TooLarge(
            f"the message has {len(body)} bytes, this server takes {most}: raise its max_payload, or send less"
        )


def check_change(change: Change) -> None:
    """Raises `BadName`, `BadDelay`."""
    if isinstance(change, Binding):
        encoded(change.topic, "a topic")
        encoded(change.queue, "a queue")
        check_key(change.route_key)
    elif isinstance(change, DeclareQueue):
        encoded(change.name, "a queue")
        check_delay(change.delay)
    else:
        encoded(change.name, "a topic")


def check_publication(item: Publication, most: int) -> None:
    """Raises `TooLarge`, `BadName`, `BadDelay`, `NotSupported`."""
    check_body(item.body, most)
    if item.delay is not None:
        check_delay(item.delay)
    encoded(item.name, "a topic" if item.to_topic else "a queue")
    check_key(item.route_key)
    if item.to_topic and item.delay:
        raise NotSupported("this engine routes a topic send when it is published; delay it before that")


def check_settlement(item: Settlement, most: int) -> None:
    """Raises `TooLarge`, `BadDelay`."""
    if isinstance(item, Move):
        check_body(item.body, most)
        check_delay(item.delay)
    elif isinstance(item, Nack):
        check_delay(item.delay)

"""Names: the user's own wherever RabbitMQ takes them; and what a publish, a declaration and a settlement may hold.

    queue Q      queue Q, and where it has a default delay its front queue easybus:front:Q
    topic T      exchange T, and easybus:own:T for sends with a delay of their own
    delays       exchange and queue easybus:delay:00 … 34, exchange easybus:due
    easybus:dead, easybus:nowhere    what was delivered 100,000 times; what was due and matched no queue

RabbitMQ drops line ends from names and keeps `amq.` for itself; `easybus:` is ours. A name that holds one of these is
written with % and two digits, and so is one that looks as if it were: none collide.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache

from ...errors import BadDelay, BadName, TooLarge
from ..contract import Binding, Capabilities, Change, DeclareQueue, Publication

__all__ = [
    "CAPABILITIES",
    "check_body",
    "check_change",
    "check_delay",
    "check_publication",
    "encoded",
    "front_of",
    "key_bytes",
    "own_of",
    "token",
]

CAPABILITIES = Capabilities(
    engine="rabbitmq",
    durable=True,
    shared=True,
    max_body=16 << 20,
    max_name=241,
    delays_topics=True,
    atomic_move=False,
    fenced=True,
    ordered=True,
    counts=False,
    counts_routes=True,
    lists_queues=False,
    looks_ahead=True,
)
_MUST_ENCODE = re.compile(r"[\r\n]|%(?:0A|0D|25|61|65)|^amq\.|^easybus:")
_MAX_KEY = 255


@lru_cache(maxsize=10_000)
def encoded(name: str, what: str) -> str:
    """The name as RabbitMQ holds it. Raises `BadName`."""
    held = name
    if _MUST_ENCODE.search(name):
        held = name.replace("%", "%25").replace("\n", "%0A").replace("\r", "%0D")
        if held.startswith(("amq.", "easybus:")):
            held = f"%{ord(held[0]):02X}{held[1:]}"
    try:
        size = len(held.encode())
    except UnicodeEncodeError as error:
        raise BadName(f"{what} {name!r} holds lone surrogates, which no UTF-8 text can") from error
    if not 0 < size <= CAPABILITIES.max_name:
        raise BadName(
            f"the name of {what} has 1 to {CAPABILITIES.max_name} bytes in UTF-8, this one has {size}: {name[:40]!r}"
        )
    return held


def front_of(queue: str) -> str:
    """The queue where messages for `queue` (as held) wait for its default delay."""
    return f"easybus:front:{queue}"


def own_of(topic: str) -> str:
    """The exchange of `topic` (as held) for sends with a delay of their own."""
    return f"easybus:own:{topic}"


@lru_cache(maxsize=10_000)
def token(name: str) -> str:
    """A word of 16 letters for a name of any length, which may stand in a route key or a pattern."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def key_bytes(key: str) -> str:
    """The route key or pattern itself, if RabbitMQ can hold it. Raises `BadName`."""
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise BadName(f"the route key {key!r} holds lone surrogates, which no UTF-8 text can") from error
    if size > _MAX_KEY:
        raise BadName(
            f"a route key, with the 89 bytes that a pattern or a delay adds, has up to {_MAX_KEY} bytes, this one has "
            f"{size}: …{key[-40:]!r}"
        )
    return key


def check_delay(delay: float) -> None:
    """Raises `BadDelay`."""
    if not 0 <= delay <= CAPABILITIES.max_delay or math.isnan(delay):
        raise BadDelay(f"a delay is 0 to {CAPABILITIES.max_delay:.0f} seconds, not {delay}")


def check_body(body: bytes) -> None:
    """Raises `TooLarge`."""
    if len(body) > CAPABILITIES.max_body:
        raise TooLarge(f"the message has {len(body)} bytes, this engine takes {CAPABILITIES.max_body}")


def check_change(change: Change) -> None:
    """Raises `BadName`, `BadDelay`."""
    if isinstance(change, Binding):
        encoded(change.topic, "a topic")
        encoded(change.queue, "a queue")
        key_bytes(change.route_key)
    elif isinstance(change, DeclareQueue):
        encoded(change.name, "a queue")
        check_delay(change.delay)
    else:
        encoded(change.name, "a topic")


def check_publication(item: Publication) -> None:
    """Raises `TooLarge`, `BadDelay`; names and keys are checked where they are encoded."""
    check_body(item.body)
    if item.delay is not None:
        check_delay(item.delay)

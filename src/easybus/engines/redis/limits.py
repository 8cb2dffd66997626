"""What a publish, a declaration and a settlement may hold: checked before they reach the server."""

from __future__ import annotations

import math

from ...errors import BadDelay, BadName, TooLarge
from ..contract import Binding, Capabilities, Change, DeclareQueue, Publication

CAPABILITIES = Capabilities(
    engine="redis",
    durable=False,
    shared=True,
    max_body=16 << 20,
    max_name=255,
    delays_topics=False,
    atomic_move=True,
    fenced=True,
    ordered=True,
    counts=True,
    counts_routes=True,
    lists_queues=True,
)


def check_name(name: str, what: str) -> None:
    """Raises `BadName` for what is empty, too long, or no text (lone surrogates)."""
    try:
        size = len(name) if name.isascii() else len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadName(f"{what} {name!r} holds lone surrogates, which no UTF-8 text can") from error
    if not 0 < size <= CAPABILITIES.max_name:
        raise BadName(
            f"the name of {what} has 1 to {CAPABILITIES.max_name} bytes in UTF-8, this one has {size}: {name[:40]!r}"
        )


def check_key(key: str) -> None:
    """Raises `BadName` for a route key or pattern that is no text."""
    if not key.isascii():
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadName(f"the route key {key!r} holds lone surrogates, which no UTF-8 text can") from error


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
        check_name(change.topic, "a topic")
        check_name(change.queue, "a queue")
        check_key(change.route_key)
    elif isinstance(change, DeclareQueue):
        check_name(change.name, "a queue")
        check_delay(change.delay)
    else:
        check_name(change.name, "a topic")


def check_publication(item: Publication) -> None:
    """Raises `TooLarge`, `BadName`, `BadDelay`."""
    check_body(item.body)
    if item.delay is not None:
        check_delay(item.delay)
    if not item.name.isascii() or not 0 < len(item.name) <= CAPABILITIES.max_name:
        check_name(item.name, "a topic" if item.to_topic else "a queue")
    check_key(item.route_key)

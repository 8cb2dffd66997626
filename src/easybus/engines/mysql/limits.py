"""What a publish, a declaration and a settlement may hold: checked before they reach the server."""

from __future__ import annotations

import math
from dataclasses import replace

from ...errors import BadDelay, BadName, NotSupported, TooLarge
from ..contract import Binding, Capabilities, Change, DeclareQueue, Move, Nack, Publication, Settlement

LARGEST_BODY = 16 << 20
"""Bytes, where the server's `max_allowed_packet` lets so much through: a value may double on its way."""
_SPARE = 64 << 10

CAPABILITIES = Capabilities(
    engine="mysql",
    durable=True,
    shared=True,
    max_body=LARGEST_BODY,
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


def capabilities(max_allowed_packet: int) -> Capabilities:
    """What the engine gives on a server that takes packets of so many bytes."""
    return replace(CAPABILITIES, max_body=max(1024, min(LARGEST_BODY, (max_allowed_packet - _SPARE) // 2)))


def check_body(body: bytes, largest: int) -> None:
    """Raises `TooLarge`."""
    if len(body) > largest:
        raise TooLarge(
            f"the message has {len(body)} bytes, this engine takes {largest}: at most half of the server's "
            "max_allowed_packet"
        )


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


def check_publication(item: Publication, largest: int) -> None:
    """Raises `TooLarge`, `BadName`, `BadDelay`, `NotSupported`."""
    check_body(item.body, largest)
    if item.delay is not None:
        check_delay(item.delay)
    if not item.name.isascii() or not 0 < len(item.name) <= CAPABILITIES.max_name:
        check_name(item.name, "a topic" if item.to_topic else "a queue")
    check_key(item.route_key)
    if item.to_topic and item.delay:
        raise NotSupported("this engine routes a topic send when it is published; delay it before that")


def check_settlement(item: Settlement, largest: int) -> None:
    """Raises `TooLarge`, `BadDelay`."""
    if isinstance(item, Move):
        check_body(item.body, largest)
        check_delay(item.delay)
    elif isinstance(item, Nack):
        check_delay(item.delay)

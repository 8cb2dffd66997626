"""What a publish, a declaration and a settlement may hold, by an engine's capabilities: checked before they go."""

from __future__ import annotations

import math

from ..errors import BadDelay, BadName, NotSupported, TooLarge
from .contract import Binding, Capabilities, Change, DeclareQueue, Move, Nack, Publication, Settlement

__all__ = ["Limits"]


class Limits:
    """The checks of one engine."""

    def __init__(self, caps: Capabilities, *, why: str = "") -> None:
        """`why`: said of a message that is too large, such as the setting that it hangs on."""
        self.caps = caps
        self._why = why

    def name(self, name: str, what: str) -> None:
        """Raises `BadName` for what is empty, too long, or no text (lone surrogates)."""
        try:
            size = len(name) if name.isascii() else len(name.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise BadName(f"{what} {name!r} holds lone surrogates, which no UTF-8 text can") from error
        longest = self.caps.max_name
        if not 0 < size <= longest:
            raise BadName(f"the name of {what} has 1 to {longest} bytes in UTF-8, this one has {size}: {name[:40]!r}")

    def key(self, key: str) -> None:
        """Raises `BadName` for a route key or pattern that is no text."""
        if not key.isascii():
            try:
                key.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadName(f"the route key {key!r} holds lone surrogates, which no UTF-8 text can") from error

    def delay(self, delay: float) -> None:
        """Raises `BadDelay`."""
        if not 0 <= delay <= self.caps.max_delay or math.isnan(delay):
            raise BadDelay(f"a delay is 0 to {self.caps.max_delay:.0f} seconds, not {delay}")

    def body(self, body: bytes) -> None:
        """Raises `TooLarge`."""
        if len(body) > self.caps.max_body:
            raise TooLarge(f"the message has {len(body)} bytes, this engine takes {self.caps.max_body}{self._why}")

    def change(self, change: Change) -> None:
        """Raises `BadName`, `BadDelay`."""
        if isinstance(change, Binding):
            self.name(change.topic, "a topic")
            self.name(change.queue, "a queue")
            self.key(change.route_key)
        elif isinstance(change, DeclareQueue):
            self.name(change.name, "a queue")
            self.delay(change.delay)
        else:
            self.name(change.name, "a topic")

    def publication(self, item: Publication) -> None:
        """Raises `TooLarge`, `BadName`, `BadDelay`, `NotSupported`."""
        if len(item.body) > self.caps.max_body:
            self.body(item.body)
        if item.delay is not None:
            self.delay(item.delay)
            if item.to_topic and item.delay and not self.caps.delays_topics:
                raise NotSupported("this engine routes a topic send when it is published; delay it before that")
        name = item.name
        if not name.isascii() or not 0 < len(name) <= self.caps.max_name:
            self.name(name, "a topic" if item.to_topic else "a queue")
        if not item.route_key.isascii():
            self.key(item.route_key)

    def settlement(self, item: Settlement) -> None:
        """Raises `TooLarge`, `BadDelay`."""
        if isinstance(item, Move):
            self.body(item.body)
            self.delay(item.delay)
        elif isinstance(item, Nack):
            self.delay(item.delay)

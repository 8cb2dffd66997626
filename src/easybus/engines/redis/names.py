"""Which keys there are. Everything of a queue shares a hash tag.

PREFIX:version  :queues  :topics  :bindings:TOPIC       what is declared
PREFIX:{QUEUE}  :s stream  :z delayed  :l leased  :n returned  :c numbers of delayed ones  :w channel that wakes
                :k:ID idempotency key  :d:KEY dead letter  :dh:KEY its history  :dt by time  :dm marked
PREFIX:fences  :letters                                  dead letters' fences, and which queues have any
PREFIX:half:ID  :halves  :halves:SCOPE                   messages stored before their local work

In a queue's part `%`, `{` and `}` are percent-encoded, so that the tag ends where the name does, and none collide.
"""

from __future__ import annotations

from ...message import new_id

STREAM_GROUP = "easybus"
_TAG = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_SCOPE = str.maketrans({"%": "%25", "/": "%2F"})
_TOKEN = 24


class Names:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.version = f"{prefix}:version"
        self.queues = f"{prefix}:queues"
        self.topics = f"{prefix}:topics"
        self.bindings = f"{prefix}:bindings:"
        self.topology = (self.version, self.queues, self.topics, self.bindings)
        self.fences = f"{prefix}:fences"
        self.letters = f"{prefix}:letters"
        self.half = f"{prefix}:half:"
        self.halves = f"{prefix}:halves"
        self.scopes = f"{prefix}:halves:"
        self._bases: dict[str, str] = {}

    def queue(self, name: str) -> str:
        """What the keys of a queue begin with."""
        base = self._bases.get(name)
        if base is None:
            base = self._bases[name] = f"{self.prefix}:{{{name.translate(_TAG)}}}"
        return base

    def token(self, queue: str, id: str, secret: str) -> str:
        """A claim's token: its secret, and where its key is."""
        return f"{secret}{self.queue(queue)[len(self.prefix) :]}:k:{id}"

    def key_of(self, token: str) -> tuple[str, str]:
        """The key that a token leads to, and its secret. What is no token leads nowhere."""
        return f"{self.prefix}{token[_TOKEN:] or ':none'}", token[:_TOKEN]

    def key(self, queue: str, id: str) -> str:
        """The idempotency key of a message."""
        return f"{self.queue(queue)}:k:{id}"


def scope_of(service: str, topic: str) -> str:
    """A scope of halves as part of a key."""
    return f"{service.translate(_SCOPE)}/{topic.translate(_SCOPE)}"


def fresh_version() -> str:
    """A version that no topology ever had, whatever a failover or FLUSHALL takes back."""
    return new_id()

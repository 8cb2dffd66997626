"""Every error of easybus, in one tree.

EasybusError
├── ConfigurationError        wrong use, found before anything is sent or handled
│   ├── MissingExtra          an optional package is not installed
│   ├── NotOpen               the bus is not open, or belongs to another event loop
│   └── NotSupported          this engine or storage cannot do what is asked
├── PayloadError              a value does not fit the topic's or queue's types
├── EnvelopeError             bytes that are no message
├── SendError                 not confirmed; `.failed` holds the messages, to be sent again
│   └── Unroutable            require=True, and no queue is bound for this route key
└── EngineError               what a broker or a database said
    ├── Unavailable           it cannot be reached now: trying again may help
    └── Refused               it will not take this: trying again does not help
        ├── TooLarge          over the engine's limit for a message
        ├── BadName           a name that the engine cannot hold
        ├── BadDelay          negative, or longer than the longest delay
        ├── NotDeclared       no such queue or topic
        └── DeclaredOtherwise it exists with other settings

Signal                        raised by users to steer, never by easybus
├── Retry                     in a handler: again, later
├── Reject                    in a handler: dead letter, now
└── Rollback                  in `async with topic.transaction(...)`: discard the message
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .message import Message

__all__ = [
    "BadDelay",
    "BadName",
    "ConfigurationError",
    "DeclaredOtherwise",
    "EasybusError",
    "EngineError",
    "EnvelopeError",
    "MissingExtra",
    "NotDeclared",
    "NotOpen",
    "NotSupported",
    "PayloadError",
    "Refused",
    "Reject",
    "Retry",
    "Rollback",
    "SendError",
    "Signal",
    "TooLarge",
    "Unavailable",
    "Unroutable",
]


class EasybusError(Exception):
    """The root of every error that easybus raises."""


class ConfigurationError(EasybusError):
    """The bus is used or configured wrongly; nothing was sent or handled."""


class MissingExtra(ConfigurationError):
    """An optional package is not installed; the message names the line that installs it."""


class NotOpen(ConfigurationError):
    """The bus is not open here: the message shows the line that opens it."""


class NotSupported(ConfigurationError):
    """The engine or storage cannot do this; the message says which line to write instead."""


class PayloadError(EasybusError):
    """A value does not fit the declared types; nothing was sent."""


class EnvelopeError(EasybusError):
    """Bytes that are no message; the text says why."""


class SendError(EasybusError):
    """Messages that were not confirmed.

    Sending those of `failed` again is safe: they keep their ids, so a copy is recognised.
    """

    def __init__(self, text: str, failed: Sequence[Message] = ()) -> None:
        super().__init__(text)
        self.failed: list[Message] = list(failed)


class Unroutable(SendError):
    """`require=True`, and no queue is bound to the topic for this route key."""


class EngineError(EasybusError):
    """A broker or database failed; the cause is chained."""


class Unavailable(EngineError):
    """The engine cannot be reached now. Trying again may help."""


class Refused(EngineError):
    """The engine refuses this item for good. Trying the same again does not help."""


class TooLarge(Refused):
    """A message over the engine's limit."""


class BadName(Refused):
    """A queue, topic or route key that the engine cannot hold."""


class BadDelay(Refused):
    """A delay that is negative, not a number, or longer than the longest."""


class NotDeclared(Refused):
    """There is no such queue or topic."""


class DeclaredOtherwise(Refused):
    """The queue or topic exists with other settings."""


class Signal(Exception):
    """What users raise to steer a handler or a transaction."""


class Retry(Signal):
    """Raised in a handler: handle this message again after `after` (seconds; None: by the policy).

    It counts as an attempt: past the policy's last one the message becomes a dead letter.
    """

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.after = after.total_seconds() if isinstance(after, timedelta) else after


class Reject(Signal):
    """Raised in a handler: this message becomes a dead letter now, with this reason."""


class Rollback(Signal):
    """Raised inside `topic.transaction(...)`: the work did not and will not happen, discard the message."""

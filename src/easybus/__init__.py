"""easybus: a message bus on the broker or database that a team already runs.

    send:    payload → Message → bytes → [batcher] → Driver.publish
    handle:  Driver.fetch → decode → claim → invoke → outcome → settle (ack | retry | dead letter)

Start with `Bus`; `Topic`, `Queue` and `Router` are what a service's modules are written with; `easybus.testing` is for
its tests, `easybus.parts` the layer below.
"""

from .bound import BusQueue, BusTopic
from .bus import Bus
from .errors import (
    BadDelay,
    BadName,
    ConfigurationError,
    DeclaredOtherwise,
    EasybusError,
    EngineError,
    EnvelopeError,
    MissingExtra,
    NotDeclared,
    NotOpen,
    NotSupported,
    PayloadError,
    Refused,
    Reject,
    Retry,
    Rollback,
    SendError,
    TooLarge,
    Unavailable,
    Unroutable,
)
from .message import Message
from .outgoing import Outgoing
from .receiving.retry import exponential, fixed, never, schedule
from .router import Router
from .topic import Queue, Topic

__version__ = "0.1.0"

__all__ = [
    "BadDelay",
    "BadName",
    "Bus",
    "BusQueue",
    "BusTopic",
    "ConfigurationError",
    "DeclaredOtherwise",
    "EasybusError",
    "EngineError",
    "EnvelopeError",
    "Message",
    "MissingExtra",
    "NotDeclared",
    "NotOpen",
    "NotSupported",
    "Outgoing",
    "PayloadError",
    "Queue",
    "Refused",
    "Reject",
    "Retry",
    "Rollback",
    "Router",
    "SendError",
    "TooLarge",
    "Topic",
    "Unavailable",
    "Unroutable",
    "exponential",
    "fixed",
    "never",
    "schedule",
]

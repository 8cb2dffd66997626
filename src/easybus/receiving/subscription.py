"""What one queue's handling is told: its functions and its options, validated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from ..errors import ConfigurationError, PayloadError
from ..message import Message
from ..payloads import Payloads
from .invoke import Invoker
from .retry import DEFAULT, Retrying, horizon

__all__ = ["HandlerOptions", "Subscription"]

MAX_STARTS = 3
"""Starts of a message alone in its process, without an outcome, before it is taken for one that kills processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """How a queue is handled. Times in seconds."""

    concurrency: int = 10
    """Messages of this queue at work at once in one process."""
    timeout: float | None = None
    """The longest that a handler may run; past it, it is cancelled, and that is a failure."""
    lease: float = 60.0
    """How long a dead process's messages wait for another; renewed while the handler runs."""
    retry: Retrying = DEFAULT
    dedupe: timedelta | None = timedelta(days=1)
    """How long DONE is remembered; None: no deduplication."""
    already_handled: Callable[..., Any] | None = None
    """Asked on every claim of a message that was begun before: did its effect take place?"""
    within: Any = None
    """A transaction's type: the handler works in it, and is handled exactly once to that database."""
    unmatched: Literal["dead", "ignore"] = "dead"
    """What becomes of a type that no function of the queue handles."""
    max_starts: int = MAX_STARTS

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigurationError(f"concurrency={self.concurrency}; it is 1 message or more")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigurationError(f"timeout={self.timeout}; it is a number of seconds above 0, or None for no limit")
        if not self.lease >= 0.1:
            raise ConfigurationError(f"lease={self.lease}; it is 0.1 seconds or more")
        if self.dedupe is not None and self.dedupe <= timedelta(0):
            raise ConfigurationError(f"dedupe={self.dedupe}; it is a time above 0, or None for no deduplication")
        if self.dedupe is None and self.already_handled is not None:
            raise ConfigurationError("already_handled= needs deduplication, and dedupe=None: remove one of the two")
        if self.dedupe is None and self.within is not None:
            raise ConfigurationError("within= writes DONE in the transaction, and dedupe=None: remove one of the two")
        if not isinstance(self.retry, Mapping) and not callable(self.retry):
            raise ConfigurationError(
                f"retry={self.retry!r}; it is a policy such as fixed(5, attempts=3), or a mapping from exception class "
                "to policy"
            )
        if self.unmatched not in ("dead", "ignore"):
            raise ConfigurationError(f"unmatched={self.unmatched!r}; it is 'dead' or 'ignore'")

    @property
    def keep(self) -> float:
        """Seconds that DONE is remembered."""
        return self.dedupe.total_seconds() if self.dedupe is not None else 0.0

    @property
    def lazy_claims(self) -> bool:
        """Whether a claim need not outlive a crash of the server that holds it: DONE is written under its token in the
        handler's own transaction, so a forgotten one has no effect; unless others must hear that it was there."""
        return self.within is not None and self.already_handled is None

    @property
    def horizon(self) -> float | None:
        """Seconds that DONE must be remembered for: the retries' horizon and one lease; None: unbounded."""
        retries = horizon(self.retry)
        return None if retries is None else retries + self.lease


@dataclass(slots=True)
class Subscription:
    """One queue's functions, by payload type, and its options."""

    queue: str
    options: HandlerOptions
    payloads: Payloads | None = None
    """None: functions take the `Message` as it is."""
    functions: dict[Any, Invoker] = field(default_factory=dict[Any, Invoker])
    """By payload type; `Any` takes every type that has no function of its own."""
    said_no_id: bool = False

    def find(self, message: Message) -> tuple[Invoker | None, Any]:
        """The function for a message, and its payload.

        Raises:
            PayloadError: the payload cannot be read.
        """
        if self.payloads is None:
            return self.functions.get(Any), message
        kind, value = self.payloads.decode(message)
        return self.functions.get(kind) or self.functions.get(Any), value

    def unmatched(self) -> PayloadError:
        """Why a message has no function here."""
        known = ", ".join(getattr(kind, "__name__", str(kind)) for kind in self.functions)
        return PayloadError(f"no handler of queue {self.queue!r} takes this type; there are handlers for {known}")

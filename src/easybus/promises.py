"""What a configuration promises, in words."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .receiving.retry import RetryPolicy
from .receiving.subscription import HandlerOptions

__all__ = ["Guarantee", "Kept", "after_failure", "handling", "long", "sending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What one way of sending, or one queue's handling, may be relied on for."""

    name: str
    """Of the topic or queue, such as `topic orders`."""
    how: str
    """`send`, `within=`, `transaction` or `handle`."""
    says: str
    failure: str = ""
    """Handling only: what becomes of a message that fails."""
    remembered: float | None = None
    """Handling only: seconds that a handled message is remembered; None: it is not."""
    rows: int | None = None
    """Handling only: how many rows that makes at the rate given."""


class Kept(enum.Enum):
    """What outlives what."""

    DISK = "a confirmed message outlives a killed process or server"
    SERVER = "it outlives the processes that use the server; what becomes of it when that dies, its settings say"
    PROCESS = "it ends with the process"


def sending(*, to_topic: bool, kept: Kept) -> str:
    """A plain send's promise."""
    if kept is Kept.PROCESS:
        return "lost with the process"
    says = "never lost" if kept is Kept.DISK else "kept as far as its settings say"
    return f"once confirmed, {says}{' in the queues bound by then' if to_topic else ''}"


def handling(options: HandlerOptions, *, kept: Kept, storage: str) -> str:
    """A queue's promise; `kept`: of its messages and keys, the worse; `storage`: the URL of the one with its keys."""
    if options.dedupe is None:
        says = "at least once; every copy is handled again"
    else:
        memory = f"copies are recognised for {long(options.keep)}"
        if options.within is not None:
            says = f"exactly once in {storage} (other effects: at least once); {memory}"
        else:
            says = f"at least once; {memory}"
            if options.already_handled is not None:
                says += ", and already_handled is asked when one was begun before"
    before = {Kept.SERVER: "as far as its settings keep it: ", Kept.PROCESS: "as long as the process lives: "}
    return before.get(kept, "") + says


def after_failure(options: HandlerOptions, dead: str) -> str:
    """What becomes of a message whose handling fails; `dead`: where dead letters are."""
    mapping = isinstance(options.retry, Mapping)
    policies: list[Any] = list(cast("Mapping[Any, Any]", options.retry).values()) if mapping else [options.retry]
    if mapping:
        tried = "retried by its exception"
    elif not isinstance(policies[0], RetryPolicy):
        tried = "retried by a policy of your own"
    elif policies[0].attempts is None:
        return "retried without end"
    elif policies[0].attempts == 1:
        return f"a dead letter at once, in {dead}"
    else:
        tried = f"{policies[0].attempts} attempts over up to {long(policies[0].horizon or 0.0)}"
    return f"{tried}, then a dead letter in {dead}"


def long(seconds: float) -> str:
    """A length of time for a person: `1 day`, `1.1 hours`, `90 seconds`."""
    units = (("day", 86_400), ("hour", 3600), ("minute", 60))
    # `90 minutes` rather than `1.5 hours`: a unit is used from two of it on, or where it fits exactly
    fitting = (one for one in units if seconds >= one[1] * (2 if seconds % one[1] else 1))
    unit, size = next(fitting, ("second", 1))
    number = f"{seconds / size:.1f}".removesuffix(".0")
    return f"{number} {unit}{'' if number == '1' else 's'}"

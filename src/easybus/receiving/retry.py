"""Retry policies: how long a failed message waits before its next attempt, and when it is a dead letter instead.

A policy is any callable `attempts -> seconds | timedelta | None`: `attempts` have been made and failed, 1 after the
first; None says that there is none left. Ours declare their horizon: the longest time between the first attempt and the
last, which DONE must be remembered for.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias, cast

from ..errors import ConfigurationError

__all__ = ["DEFAULT", "Policy", "RetryPolicy", "Retrying", "delay_after", "exponential", "fixed", "never", "schedule"]

Policy: TypeAlias = Callable[[int], "float | timedelta | None"]
Retrying: TypeAlias = Policy | Mapping[type[BaseException], Policy]


@dataclass(frozen=True, slots=True, repr=False)
class RetryPolicy:
    """A policy that declares its horizon; equal to one that is written alike. `attempts` counts the first one too."""

    written: str
    """The call that makes it, such as `fixed(5, attempts=3)`."""
    delays: Callable[[int], float] = field(compare=False)
    attempts: int | None
    jitter: float
    horizon: float | None
    """Seconds from the first attempt to the last at the latest, handlers' own time aside; None: unbounded."""

    def __call__(self, attempts: int) -> float | None:
        if self.attempts is not None and attempts >= self.attempts:
            return None
        return self.delays(attempts) * (1 + random.random() * self.jitter)

    def __repr__(self) -> str:
        return self.written


def exponential(
    first: float = 5.0, factor: float = 2.8, cap: float = 3600.0, attempts: int | None = 8, jitter: float = 0.1
) -> RetryPolicy:
    """Waits of `first`, `first × factor`, … seconds, at most `cap`; jitter (a fraction) only lengthens.

    The defaults make 8 attempts over about an hour. `attempts=None` never ends.
    """
    _positive("first", first)
    _positive("cap", cap)
    _attempts(attempts)
    if not factor >= 1:
        raise ConfigurationError(f"factor={factor}; it is 1 or more")
    if not 0 <= jitter <= 10:
        raise ConfigurationError(f"jitter={jitter}; it is a fraction from 0 to 10, such as 0.1")

    def delay(attempt: int) -> float:
        try:
            return min(cap, first * float(factor) ** (attempt - 1))
        except OverflowError:  # the cap has long been reached
            return cap

    written = _written(exponential, first=first, factor=factor, cap=cap, attempts=attempts, jitter=jitter)
    return RetryPolicy(written, delay, attempts, jitter, _horizon(delay, attempts, jitter))


def fixed(seconds: float, attempts: int | None = 8, jitter: float = 0.0) -> RetryPolicy:
    """The same wait of `seconds` each time."""
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"fixed({seconds}); the wait is 0 seconds or more")
    _attempts(attempts)
    written = _written(fixed, seconds, attempts=attempts, jitter=jitter)
    return RetryPolicy(written, lambda _: seconds, attempts, jitter, _horizon(lambda _: seconds, attempts, jitter))


def schedule(*seconds: float) -> RetryPolicy:
    """These waits in turn, then a dead letter: `schedule(1, 5, 30)` makes four attempts."""
    for wait in seconds:
        if not 0 <= wait < math.inf:
            raise ConfigurationError(f"schedule({', '.join(map(str, seconds))}); each wait is 0 seconds or more")
    written = _written(schedule, *seconds)
    return RetryPolicy(written, lambda attempt: seconds[attempt - 1], len(seconds) + 1, 0.0, float(sum(seconds)))


def never() -> RetryPolicy:
    """No retry: the first failure makes a dead letter."""
    return RetryPolicy(_written(never), lambda _: 0.0, 1, 0.0, 0.0)


def delay_after(retrying: Retrying, error: BaseException | None, attempts: int) -> float | None:
    """Seconds until the next attempt, or None: there is none left. A mapping's nearest class wins, else the default."""
    delay = _policy(retrying, error)(attempts)
    if delay is None:
        return None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    return max(0.0, seconds)


def horizon(retrying: Retrying) -> float | None:
    """The longest horizon of a policy or mapping; None where one declares none."""
    mapping = _mapping(retrying)
    policies = [cast("Policy", retrying)] if mapping is None else [*mapping.values(), DEFAULT]
    longest = 0.0
    for policy in policies:
        declared: float | None = getattr(policy, "horizon", None)
        if declared is None:
            return None
        longest = max(longest, declared)
    return longest


def _policy(retrying: Retrying, error: BaseException | None) -> Policy:
    mapping = _mapping(retrying)
    if mapping is None:
        return cast("Policy", retrying)
    for kind in type(error).__mro__:
        if kind in mapping:
            return mapping[kind]
    return DEFAULT


def _mapping(retrying: Retrying) -> Mapping[type[BaseException], Policy] | None:
    return cast("Mapping[type[BaseException], Policy]", retrying) if isinstance(retrying, Mapping) else None


def _written(policy: Callable[..., RetryPolicy], *values: float, **options: float | None) -> str:
    """The call of `policy`, without the options that are as they are anyway: what is equal is written alike."""
    usual = inspect.signature(policy).parameters
    words = [_number(value) for value in values]
    words += [f"{name}={_number(value)}" for name, value in options.items() if value != usual[name].default]
    return f"{policy.__name__}({', '.join(words)})"


def _number(value: float | None) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _horizon(delay: Callable[[int], float], attempts: int | None, jitter: float) -> float | None:
    if attempts is None:
        return None
    return sum(delay(attempt) for attempt in range(1, attempts)) * (1 + jitter)


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigurationError(f"{name}={value}; it is a number of seconds above 0")


def _attempts(attempts: int | None) -> None:
    if attempts is not None and attempts < 1:
        raise ConfigurationError(f"attempts={attempts}; it is 1 or more, or None for no end")


DEFAULT = exponential()

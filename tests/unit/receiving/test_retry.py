"""Retry policies: their waits, and that they are values."""

from __future__ import annotations

import pytest

from easybus.receiving.retry import RetryPolicy, exponential, fixed, never, schedule


@pytest.mark.parametrize(
    ("factor", "waits"),
    [
        (1, [2.0, 2.0, 2.0, 2.0]),
        (2.8, [2.0, 5.6, 15.68, 1e5]),
        (30, [2.0, 60.0, 1800.0, 1e5]),
        (1e6, [2.0, 1e5, 1e5, 1e5]),
    ],
)
def test_exponential_waits_grow_by_any_factor_up_to_the_cap(factor: float, waits: list[float]) -> None:
    policy = exponential(first=2, factor=factor, cap=1e5, attempts=None, jitter=0)
    assert [policy(attempts) for attempts in (1, 2, 3, 5000)] == pytest.approx(waits)


@pytest.mark.parametrize(
    ("policy", "written"),
    [
        (exponential(), "exponential()"),
        (exponential(1, 2.8, cap=60.5, attempts=None), "exponential(first=1, cap=60.5, attempts=None)"),
        (fixed(5.0, 3), "fixed(5, attempts=3)"),
        (fixed(0.25, jitter=0.5), "fixed(0.25, jitter=0.5)"),
        (schedule(1, 5, 30), "schedule(1, 5, 30)"),
        (never(), "never()"),
    ],
)
def test_a_policy_is_shown_as_it_was_written_and_equals_its_like(policy: RetryPolicy, written: str) -> None:
    assert repr(policy) == written
    assert policy == eval(written)
    assert hash(policy) == hash(eval(written))
    assert policy != fixed(6)

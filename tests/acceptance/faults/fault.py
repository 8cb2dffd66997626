"""One seeded fault: what it says, how it is put in, and the run that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ..scenarios import Scenario
from ..simulation import Plan

Patch = pytest.MonkeyPatch


@dataclass
class Fault:
    """One bug, and the run that catches it."""

    says: str
    seed: Callable[[Patch], None]
    make: Callable[[], Scenario]
    plan: Plan
    engine: str
    known: bool
    """A loss of the original Go library (design, section 8)."""


FAULTS: list[Fault] = []


def fault(
    says: str,
    make: Callable[[], Scenario],
    plan: Plan | None = None,
    engine: str = "apart",
    *,
    known: bool = False,
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(seed: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS.append(Fault(says, seed, make, plan or Plan(), engine, known))
        return seed

    return register


def wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method; `around` gets the original first."""
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    patch.setattr(owner, name, replaced)

"""Seeded faults: bugs that buses have had, each put into ours by replacing one function, and the run that catches it."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from easybus import message as messages
from easybus import points
from easybus.connection import Publisher
from easybus.engines.contract import Ack, Claimed, DeclareQueue, Done, Publication
from easybus.engines.memory.dead_letters import Letters
from easybus.engines.memory.driver import MemoryDriver
from easybus.engines.memory.keys import Keys
from easybus.engines.memory.queue import MemoryQueue
from easybus.engines.memory.space import Space
from easybus.engines.memory.transactions import Halves, MemoryTransactions
from easybus.errors import EngineError
from easybus.message import Message
from easybus.receiving import pipeline, replay
from easybus.receiving.claim import Intake
from easybus.receiving.invoke import Invoker
from easybus.receiving.pipeline import Pipeline
from easybus.receiving.receiver import Receiver
from easybus.receiving.settle import Settler
from easybus.receiving.within import ExactlyOnce
from easybus.sending.checkback import Checkback as Checker
from easybus.sending.relay import Relay
from easybus.sending.transaction import Transaction

from .. import simulation
from ..scenarios import (
    Checkback,
    Conflict,
    Dead,
    Deferred,
    Doubting,
    Fresh,
    Handle,
    Outbox,
    Poison,
    Replay,
    Retry,
    Scenario,
    Slow,
    Within,
)
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


from . import known, ours  # noqa: E402

__all__ = ["FAULTS", "Fault", "known", "ours"]

"""What the storages' tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest

from ..engines.contract import DeadLetterStorage, Engine, IdempotencyStorage, OutboxStorage, TransactionStorage
from .driver_base import DriverBase

__all__ = ["Caller", "PassTime", "StorageBase"]

SHORT = 0.3
"""Seconds of the leases that these tests wait for."""
PassTime = Callable[[float], Awaitable[None]]


class Caller(Protocol):
    """A user's own connection to the engine's database, apart from the engine's."""

    async def run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], *, commit: bool) -> list[int]:
        """Run these in one transaction, and commit or roll it back; returns the rows that each changed."""
        ...

    async def ask(self, statement: str) -> Any:
        """The first value of the first row that a statement gives."""
        ...


class StorageBase(DriverBase):
    """Fixtures. `engine` must be overridden; `caller` where the engine is a database; the rest may be."""

    forgets_by_itself = False
    """Whether the engine forgets keys that are DONE and expired by itself, so that `purge` finds none."""

    @pytest.fixture
    def caller(self) -> Caller | None:
        """The user's connection, where the engine is a database."""
        return None

    @pytest.fixture
    def keys(self, engine: Engine) -> IdempotencyStorage:
        return _given(engine, "idempotency")

    @pytest.fixture
    def letters(self, engine: Engine) -> DeadLetterStorage:
        return _given(engine, "dead_letters")

    @pytest.fixture
    def halves(self, engine: Engine) -> TransactionStorage:
        return _given(engine, "transactions")

    @pytest.fixture
    def outbox(self, engine: Engine) -> OutboxStorage:
        return _given(engine, "outbox")


def _given(engine: Engine, storage: str) -> Any:
    found = getattr(engine, storage)
    if found is None:
        pytest.skip(f"{engine.url} offers no storage for {storage}")
    return found

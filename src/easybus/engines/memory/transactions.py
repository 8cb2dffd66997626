"""Halves by id: whoever holds the last token may change one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ..contract import Half
from .keys import fresh_tokens

__all__ = ["Halves", "MemoryTransactions"]


class Halves:
    """The data. Its user holds the space's lock, and says what time it is."""

    def __init__(self) -> None:
        self.rows: dict[str, Half] = {}

    def store(self, half: Half, now: float, due_in: float) -> tuple[str, bool]:
        standing = self.rows.get(half.id)
        (token,) = fresh_tokens(1)
        self.rows[half.id] = replace(
            half,
            token=token,
            due=now + due_in,
            checks=0 if standing is None else standing.checks,
            created=now if standing is None else standing.created,
            parked=False,
        )
        return token, standing is not None

    def held(self, id: str, token: str) -> Half | None:
        """The half, if this is its last token."""
        half = self.rows.get(id)
        return half if half is not None and half.token == token else None

    def claim(self, half: Half, now: float, lease: float) -> Half:
        """Give it a fresh token, and let it be due again after the lease."""
        (half.token,) = fresh_tokens(1)
        half.due = now + lease
        return replace(half)

    def due(self, scopes: Sequence[tuple[str, str]], now: float) -> list[Half]:
        """Those of the scopes that are due, oldest first."""
        wanted = set(scopes)
        return sorted(
            (half for half in self.rows.values() if half.due <= now and (half.service, half.topic) in wanted),
            key=lambda half: half.due,
        )


class MemoryTransactions:
    """`TransactionStorage` over `Halves`."""

    def __init__(self, enter: Callable[[], Any], now: Callable[[], float], halves: Halves) -> None:
        self._enter = enter
        self._now = now
        self._halves = halves

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        with self._enter():
            return self._halves.store(half, self._now(), due_in)

    async def remove(self, id: str, token: str) -> bool:
        with self._enter():
            if self._halves.held(id, token) is None:
                return False
            del self._halves.rows[id]
            return True

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        with self._enter():
            half = self._halves.held(id, token)
            if half is None:
                return False
            half.due = self._now() + delay
            half.checks += checked
            half.parked = parked
            half.error = error
            return True

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        with self._enter():
            now = self._now()
            return [self._halves.claim(half, now, lease) for half in self._halves.due(scopes, now)[:limit]]

    async def claim(self, id: str, lease: float) -> Half | None:
        with self._enter():
            half = self._halves.rows.get(id)
            return None if half is None else self._halves.claim(half, self._now(), lease)

    async def fetch(self, id: str) -> Half | None:
        with self._enter():
            half = self._halves.rows.get(id)
            return None if half is None else replace(half)

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        with self._enter():
            found = [half for half in self._halves.rows.values() if service is None or half.service == service]
            return [replace(half) for half in sorted(found, key=lambda half: half.created)[:limit]]

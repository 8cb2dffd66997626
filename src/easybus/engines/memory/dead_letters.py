"""Dead letters, each under (queue, key), in the order in which they first came.

A row changes hands by its fence: storing, claiming and editing each write the next one of a sequence that never
restarts, so that a remover with an older fence finds nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgspec

from ...errors import EnvelopeError
from ...message import Message
from ..contract import DeadLetter

__all__ = ["Letters", "MemoryDeadLetters"]


class Letters:
    """The data. Its user holds the space's lock, and says what time it is."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], DeadLetter] = {}
        self._claimed: dict[tuple[str, str], float] = {}
        self._fences = count(1)

    def store(self, letter: DeadLetter, now: float) -> str:
        key = key_of(letter.message_id, letter.body)
        name = (letter.queue, key)
        standing = self._rows.get(name)
        last = letter.last_failed or now
        history = [dict(event) for event in letter.history]
        if standing is not None:
            history = [*standing.history, *(event for event in history if event not in standing.history)]
        history.append({"at": now, "what": "stored" if standing is None else "stored again", "reason": letter.reason})
        self._rows[name] = msgspec.structs.replace(
            letter,
            key=key,
            first_failed=(letter.first_failed or last) if standing is None else standing.first_failed,
            last_failed=last,
            history=history,
            fence=self._next_fence(),
            marked=False,
        )
        self._claimed.pop(name, None)
        return key

    def fetch(self, queue: str, limit: int, now: float, lease: float) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        for name, row in self._rows.items():
            if len(found) >= limit:
                break
            if row.queue == queue and row.marked and self._claimed.get(name, now) <= now:
                row.fence = self._next_fence()
                row.history.append({"at": now, "what": "replayed"})
                self._claimed[name] = now + lease
                found.append(_copy(row))
        return found

    def remove(self, queue: str, key: str, fence: str) -> bool:
        row = self._rows.get((queue, key))
        return row is not None and row.fence == fence and self.delete(queue, key)

    def delete(self, queue: str, key: str) -> bool:
        self._claimed.pop((queue, key), None)
        return self._rows.pop((queue, key), None) is not None

    def rows(self) -> list[DeadLetter]:
        return sorted(self._rows.values(), key=lambda row: row.first_failed)

    def get(self, queue: str, key: str) -> DeadLetter | None:
        row = self._rows.get((queue, key))
        if row is None:
            named = [row for row in self._rows.values() if row.queue == queue and row.message_id == key != ""]
            row = named[0] if len(named) == 1 else None
        return row

    def edit(self, queue: str, key: str, body: bytes, now: float) -> str | None:
        row = self._rows.get((queue, key))
        if row is None:
            return None
        self.delete(queue, key)
        row.body = body
        row.message_id = _id_of(body)
        row.key = key_of(row.message_id, body)
        row.fence = self._next_fence()
        row.history.append({"at": now, "what": "edited"})
        self._rows[queue, row.key] = row
        return row.key

    def mark(self, queue: str, key: str, now: float) -> bool:
        row = self._rows.get((queue, key))
        if row is None:
            return False
        if not row.marked:
            row.marked = True
            row.history.append({"at": now, "what": "marked"})
        return True

    def count(self) -> dict[str, int]:
        return dict(Counter(queue for queue, _ in self._rows))

    def _next_fence(self) -> str:
        return str(next(self._fences))


def key_of(message_id: str, body: bytes) -> str:
    """The id and the payload's digest, the same for every retry of a message; without an id, that of all the bytes."""
    if not message_id:
        return hashlib.sha256(body).hexdigest()
    try:
        payload = Message.from_bytes(body).payload
    except EnvelopeError:
        payload = body
    return f"{message_id}:{hashlib.sha256(payload).hexdigest()}"


def _id_of(body: bytes) -> str:
    try:
        return Message.from_bytes(body).id
    except EnvelopeError:
        return ""


def _copy(row: DeadLetter) -> DeadLetter:
    return msgspec.structs.replace(row, history=[dict(event) for event in row.history])


class MemoryDeadLetters:
    """`DeadLetterStorage` over `Letters`."""

    def __init__(self, enter: Callable[[], Any], now: Callable[[], float], letters: Letters) -> None:
        self._enter = enter
        self._now = now
        self._letters = letters

    async def store(self, letter: DeadLetter) -> str:
        with self._enter():
            return self._letters.store(letter, self._now())

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        with self._enter():
            return self._letters.fetch(queue, limit, self._now(), lease)

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        with self._enter():
            return self._letters.remove(queue, key, fence)

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        with self._enter():
            return [
                _copy(row)
                for row in self._letters.rows()
                if (queue is None or row.queue == queue)
                and (reason is None or reason in row.reason or reason in row.error_type)
                and (before is None or row.last_failed < before)
            ][:limit]

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        with self._enter():
            row = self._letters.get(queue, key)
            return None if row is None else _copy(row)

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        with self._enter():
            return self._letters.edit(queue, key, body, self._now())

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        with self._enter():
            return sum(self._letters.mark(queue, key, self._now()) for key in dict.fromkeys(keys))

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        with self._enter():
            return sum(self._letters.delete(queue, key) for key in keys)

    async def count(self) -> dict[str, int]:
        with self._enter():
            return self._letters.count()

"""Keys: the state machine of `IdempotencyStorage`, with every key in a dict.

    no row → CLAIMED → DONE → no row (expired)        CLAIMED → FREE: the row stays, and remembers

A token leads to its key as long as it is the holder's, also past the lease, until the next taker's replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

import msgspec

from ...errors import NotSupported
from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done

__all__ = ["Keys", "MemoryIdempotency"]

_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()
_A_DAY = 86_400.0


class Key(msgspec.Struct, gc=False):
    """One key; `until` is the end of its lease (claimed), of its being remembered (done, free)."""

    queue: str
    id: str
    digest: bytes
    state: Literal["claimed", "done", "free"] = "free"
    token: str = ""
    until: float = 0.0
    starts: int = 0
    replay: str = ""


class Keys:
    """The data. Its user holds the space's lock, and says what time it is."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[str, Key]] = {}
        """Queue → id → key: the cheapest to ask, and a tuple less to keep for each."""
        self._held: dict[str, Key] = {}
        # One entry a batch: keys that may be forgotten from then on, if they are still so.
        self._forgettable: list[tuple[float, int, list[Key]]] = []
        self._order = count()

    def claim(self, claim: Claim, token: str, now: float) -> ClaimResult:
        """Claim under this fresh token."""
        keys = self._queues.get(claim.queue)
        if keys is None:
            keys = self._queues[claim.queue] = {}
        key = keys.get(claim.id)
        if key is None or (key.state == "done" and key.until <= now):
            key = Key(claim.queue, claim.id, claim.digest, "claimed", token, now + claim.lease, 1, claim.replay)
            keys[claim.id] = self._held[token] = key
            return Claimed(token, False, 1)
        if key.digest != claim.digest:
            return _CONFLICT
        if key.state == "done":
            return _DONE
        if key.state == "claimed":
            if key.until > now:
                return _BUSY
            del self._held[key.token]
        if claim.replay and claim.replay != key.replay:
            key.replay = claim.replay
            key.starts = 0
        key.state = "claimed"
        key.token = token
        key.until = now + claim.lease
        key.starts += 1
        self._held[token] = key
        return Claimed(token, True, key.starts)

    def renew(self, token: str, until: float) -> bool:
        """The lease ends at `until`."""
        key = self._held.get(token)
        if key is None:
            return False
        key.until = until
        return True

    def leave(self, token: str, state: Literal["done", "free"], until: float) -> Key | None:
        """CLAIMED → `state`, remembered until then; None: the token is not the holder's."""
        key = self._held.pop(token, None)
        if key is not None:
            key.state = state
            key.token = ""
            key.until = until
            key.starts = 0
        return key

    def may_forget(self, until: float, keys: list[Key]) -> None:
        """Let `purge` find keys that were left in one state until one time."""
        heappush(self._forgettable, (until, next(self._order), keys))

    def lookup(self, queue: str, id: str, now: float) -> str:
        """The state as a claim would find it."""
        key = self._queues.get(queue, {}).get(id)
        return "free" if key is None or key.until <= now else key.state

    def purge(self, now: float, limit: int) -> int:
        """Forget up to `limit` keys."""
        forgotten = 0
        while self._forgettable and self._forgettable[0][0] <= now and forgotten < limit:
            until, _, keys = heappop(self._forgettable)
            if len(keys) > limit - forgotten:
                self.may_forget(until, keys[limit - forgotten :])
                keys = keys[: limit - forgotten]
            for key in keys:
                standing = self._queues[key.queue]
                if key.state != "claimed" and key.until <= now and standing.get(key.id) is key:
                    del standing[key.id]
                    forgotten += 1
        return forgotten


def fresh_tokens(number: int) -> list[str]:
    """Tokens that nobody has or can guess: 128 random bits, and which of the batch."""
    random = os.urandom(16).hex()
    return [f"{random}.{at}" for at in range(number)]


class MemoryIdempotency:
    """`IdempotencyStorage` over `Keys`."""

    def __init__(self, enter: Callable[[], Any], now: Callable[[], float], keys: Keys) -> None:
        self._enter = enter
        self._now = now
        self._keys = keys

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        with self._enter():
            now = self._now()
            return [self._keys.claim(*pair, now) for pair in zip(batch, fresh_tokens(len(batch)), strict=True)]

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        with self._enter():
            until = self._now() + lease
            return [self._keys.renew(token, until) for token in tokens]

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        with self._enter():
            now = self._now()
            results: list[bool] = []
            for token, keep in batch:
                key = self._keys.leave(token, "done", now + keep)
                if key is not None:
                    self._keys.may_forget(now + keep, [key])
                results.append(key is not None)
            return results

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        with self._enter():
            until = self._now() + _A_DAY
            left = [self._keys.leave(token, "free", until) for token in tokens]
            self._keys.may_forget(until, [key for key in left if key is not None])
            return [key is not None for key in left]

    async def lookup(self, queue: str, id: str) -> str:
        with self._enter():
            return self._keys.lookup(queue, id, self._now())

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        raise NotSupported("memory:// is no database that a transaction could join: use sqlite:///file for within=")

    async def purge(self, limit: int = 1000) -> int:
        with self._enter():
            return self._keys.purge(self._now(), limit)

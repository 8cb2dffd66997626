"""Idempotency keys: one string each, what it holds is said in `lua/claim.lua`.

FREE → CLAIMED(token, lease) → DONE          failure: CLAIMED → FREE; past its lease: CLAIMED under a new token
A token holds the secret that the key's value must hold, and where the key is. DONE, and a FREE key a day old, go by
the server's own expiry.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import EngineError, NotSupported
from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .link import Behind, Link
from .scripts import Script
from .topology import to_microseconds

_CLAIM, _FINISH = Script("claim", lasting=True), Script("finish", lasting=True)
_HOLD, _LOOKUP = Script("hold"), Script("lookup")
_AT_ONCE = 500
_LONGEST = 10 * 366 * 86_400_000  # milliseconds
_OTHERS: dict[int, ClaimResult] = {-1: Conflict(), -2: Busy(), -3: Done()}


class RedisKeys:
    """The idempotency storage."""

    def __init__(self, link: Callable[[], Link]) -> None:
        self._link = link

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        link = self._link()

        async def undo(results: Sequence[ClaimResult]) -> None:  # nobody will handle these
            await hold_keys(link, [result.token for result in results if isinstance(result, Claimed)], None)

        return await link.uncancelled(claim_keys(link, batch), undo)

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        return await hold_keys(self._link(), tokens, lease)

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        return await complete_keys(self._link(), batch)

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        return await hold_keys(self._link(), tokens, None)

    async def lookup(self, queue: str, id: str) -> str:
        link = self._link()
        state: bytes = await link.run(_LOOKUP, (link.names.key(queue, id),))
        return state.decode()

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        raise NotSupported(
            "Redis is no database that a handler's transaction could lie in; for within= give the bus one: "
            "Bus('redis://…', storage='postgresql://…')"
        )

    async def purge(self, limit: int = 1000) -> int:
        """The server forgets by itself: always 0."""
        return 0


async def claim_keys(link: Link, batch: Sequence[Claim], begin: int | None = None) -> list[ClaimResult]:
    """Claim; in one batch the second claim of a key finds it claimed. The leases begin now, or at `begin`, in the
    server's microseconds."""
    found: list[ClaimResult] = []
    for start in range(0, len(batch), _AT_ONCE):
        part = batch[start : start + _AT_ONCE]
        fresh = [secrets.token_hex(12) for _ in part]
        values: list[Any] = ["" if begin is None else begin]
        for claim, secret in zip(part, fresh, strict=True):
            tail = b"%b%02d%b%b" % (secret.encode(), len(claim.digest), claim.digest, claim.replay.encode())
            values += (to_microseconds(claim.lease), tail)
        try:
            codes = await link.run(_CLAIM, [link.names.key(claim.queue, claim.id) for claim in part], values)
        except Behind:  # nobody will handle these
            tokens = [link.names.token(one.queue, one.id, secret) for one, secret in zip(part, fresh, strict=True)]
            with contextlib.suppress(EngineError):
                await hold_keys(link, tokens, None)
            raise
        for claim, secret, code in zip(part, fresh, codes, strict=True):
            if code < 0:
                found.append(_OTHERS[code])
            else:
                found.append(Claimed(link.names.token(claim.queue, claim.id, secret), bool(code % 2), code // 2))
    return found


async def complete_keys(
    link: Link, batch: Sequence[tuple[str, float]], base: str = "", members: Sequence[str] = ()
) -> list[bool]:
    """CLAIMED → DONE, each under its token; with a queue's base the deliveries are acked in the same step."""
    done: list[bool] = []
    for start in range(0, len(batch), _AT_ONCE):
        keys: list[str] = []
        values: list[Any] = [base]
        for at, (token, keep) in enumerate(batch[start : start + _AT_ONCE], start):
            key, secret = link.names.key_of(token)
            keys.append(key)
            values += (secret, _milliseconds(keep), members[at] if members else "")
        done += [result == 1 for result in await link.run(_FINISH, keys, values)]
    return done


async def hold_keys(link: Link, tokens: Sequence[str], lease: float | None) -> list[bool]:
    """Renew for `lease` seconds, or release (None), each under its token."""
    held: list[bool] = []
    for start in range(0, len(tokens), _AT_ONCE):
        pairs = [link.names.key_of(token) for token in tokens[start : start + _AT_ONCE]]
        values = [-1 if lease is None else to_microseconds(lease), *(secret for _, secret in pairs)]
        held += [result == 1 for result in await link.run(_HOLD, [key for key, _ in pairs], values)]
    return held


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(min(seconds * 1000, _LONGEST)))

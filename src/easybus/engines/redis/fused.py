"""The driver with the keys beside its messages: a fetch and its claims, and completion with ack in one step."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import EngineError
from ..contract import Busy, Claim, Claimed, Delivery, Extend, Finish, Settled, Taken
from .driver import RedisDriver
from .keys import claim_keys, complete_keys, hold_keys
from .link import Link

_LATE = 0.02
"""The part of a lease that fetching and claiming may take; where it is more, leases and claims begin anew."""


class RedisFusedDriver(RedisDriver):
    """`RedisDriver` and the two fused steps."""

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        link = self._link()
        return await self.until_found(
            link,
            queue,
            wait,
            lambda: self._take(link, queue, limit, lease, parse),
            lambda taken: self._take_back(link, queue, taken),
        )

    async def _take(
        self,
        link: Link,
        queue: str,
        limit: int,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> tuple[list[Taken], float]:
        called = time.monotonic()
        deliveries, due, begin = await self.own(link, queue, limit, lease)
        if not deliveries:
            return [], due
        parsed = [parse(delivery) for delivery in deliveries]
        taken = [Taken(delivery, value, None) for delivery, (_, value) in zip(deliveries, parsed, strict=True)]
        claims = [claim for claim, _ in parsed]
        try:
            results = iter(await claim_keys(link, [claim for claim in claims if claim is not None], begin))
            taken = [
                Taken(item.delivery, item.parsed, None if claim is None else next(results))
                for item, claim in zip(taken, claims, strict=True)
            ]
            if time.monotonic() - called > lease * _LATE:
                taken = await self._begin_anew(link, queue, taken, claims, lease)
        except EngineError:
            with contextlib.suppress(EngineError):  # what cannot go back now goes back by its lease
                await self._take_back(link, queue, taken)
            raise
        return taken, 0.0

    async def _begin_anew(
        self, link: Link, queue: str, taken: Sequence[Taken], claims: Sequence[Claim | None], lease: float
    ) -> list[Taken]:
        """First the deliveries' leases, then the keys', which are shorter by the time that may have passed in between.
        What lapsed and was taken over is another's."""
        settled = await self.settle(queue, [Extend(item.delivery, lease) for item in taken])
        held: dict[float, list[str]] = defaultdict(list)
        for item, claim, one in zip(taken, claims, settled, strict=True):
            if claim is not None and isinstance(item.claim, Claimed) and one is Settled.DONE:
                held[claim.lease].append(item.claim.token)
        ours: set[str] = set()
        for term, tokens in held.items():
            renewed = await hold_keys(link, tokens, term * (1 - _LATE))
            ours |= {token for token, one in zip(tokens, renewed, strict=True) if one}
        return [
            Taken(item.delivery, item.parsed, Busy())
            if isinstance(item.claim, Claimed) and item.claim.token not in ours
            else item
            for item in taken
        ]

    async def _take_back(self, link: Link, queue: str, taken: Sequence[Taken]) -> None:
        tokens = [item.claim.token for item in taken if isinstance(item.claim, Claimed)]
        if tokens:
            await hold_keys(link, tokens, None)
        await self.give_back(queue, [item.delivery for item in taken])

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        link = self._link()
        return await complete_keys(
            link,
            [(item.token, item.keep) for item in batch],
            link.names.queue(queue),
            [item.delivery.receipt for item in batch],
        )

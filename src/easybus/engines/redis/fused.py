"""The driver with the keys beside its messages: a fetch and its claims, and completion with ack in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import EngineError
from ..contract import Claim, Claimed, Delivery, Finish, Taken
from .driver import RedisDriver
from .keys import claim_keys, complete_keys, hold_keys
from .link import Link


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

        async def undo(taken: Sequence[Taken]) -> None:
            tokens = [item.claim.token for item in taken if isinstance(item.claim, Claimed)]
            if tokens:
                await hold_keys(link, tokens, None)
            await self.give_back(queue, [item.delivery for item in taken])

        return await self.until_found(link, queue, wait, lambda: self._take(link, queue, limit, lease, parse), undo)

    async def _take(
        self,
        link: Link,
        queue: str,
        limit: int,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> tuple[list[Taken], float]:
        deliveries, due = await self.own(link, queue, limit, lease)
        if not deliveries:
            return [], due
        parsed = [parse(delivery) for delivery in deliveries]
        try:
            claims = [claim for claim, _ in parsed if claim is not None]
            held = [one.receipt for one, (claim, _) in zip(deliveries, parsed, strict=True) if claim is not None]
            results = iter(await claim_keys(link, claims, link.names.queue(queue), lease, held))
        except EngineError:
            with contextlib.suppress(EngineError):  # what cannot go back now goes back by its lease
                await self.give_back(queue, deliveries)
            raise
        return [
            Taken(delivery, value, None if claim is None else next(results))
            for delivery, (claim, value) in zip(deliveries, parsed, strict=True)
        ], 0.0

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        link = self._link()
        return await complete_keys(
            link,
            [(item.token, item.keep) for item in batch],
            link.names.queue(queue),
            [item.delivery.receipt for item in batch],
        )

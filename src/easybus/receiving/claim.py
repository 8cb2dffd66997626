"""From the engine to messages in hand: fetch → decode → claim.

Where one engine holds messages and keys, all three are one step of its; else the fetch comes first, and if the claims
then fail, the deliveries go back at once: nothing is handled that is not claimed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import cast

from .. import points
from ..engines.contract import Claim, ClaimResult, Delivery, Driver, FusedDriver, IdempotencyStorage, Nack, Taken
from ..errors import EasybusError, EngineError
from ..message import REPLAY, Message
from .hand import Parsed
from .subscription import Subscription

__all__ = ["Intake", "claim_of"]


class Intake:
    """Takes messages of one queue, each with its claim."""

    def __init__(
        self,
        subscription: Subscription,
        driver: Driver,
        keys: IdempotencyStorage | None,
        *,
        fused: bool,
        logger: logging.Logger,
    ) -> None:
        """`keys` None: no deduplication. `fused`: the driver's engine holds the keys too."""
        self._subscription = subscription
        self._driver = driver
        self._keys = keys
        self._fused = cast("FusedDriver", driver) if fused and keys is not None else None
        self._logger = logger
        options = subscription.options
        self._lease, self._lazy, self._keep = options.lease, options.lazy_claims, options.keep

    @property
    def looks_ahead(self) -> bool:
        """Whether the driver fetches ahead by itself."""
        return self._driver.caps.looks_ahead

    async def take(self, limit: int, wait: float) -> list[Taken]:
        """Up to `limit` messages as soon as there is one, or none after `wait` seconds."""
        queue = self._subscription.queue
        if self._fused is not None:
            taken = await self._fused.take(queue, limit, wait, self._lease, self.parse)
            if points.hook is not None and taken:
                await points.reach("key.claimed")
            return taken
        deliveries = await self._driver.fetch(queue, limit, wait, self._lease)
        if not deliveries:
            return []
        if points.hook is not None:
            await points.reach("delivery.fetched")
        parsed = [self.parse(delivery) for delivery in deliveries]
        try:
            claims = await self._claim([claim for claim, _ in parsed])
        except EngineError:
            with contextlib.suppress(EngineError):  # what cannot go back now goes back by its lease
                await self._driver.settle(queue, [Nack(delivery) for delivery in deliveries])
            raise
        if points.hook is not None:
            await points.reach("key.claimed")
        return [
            Taken(delivery, found, claim)
            for delivery, (_, found), claim in zip(deliveries, parsed, claims, strict=True)
        ]

    async def _claim(self, wanted: list[Claim | None]) -> list[ClaimResult | None]:
        if self._keys is None:
            return [None] * len(wanted)
        claims = [claim for claim in wanted if claim is not None]
        results = iter(await self._keys.claim(claims) if claims else [])
        return [None if claim is None else next(results) for claim in wanted]

    def parse(self, delivery: Delivery) -> tuple[Claim | None, Parsed]:
        """A delivery's message, payload and function, and the claim that it needs. Never raises."""
        subscription = self._subscription
        try:
            message = Message.from_bytes(delivery.body)
        except EasybusError as error:
            return None, Parsed(None, error=error)
        try:
            invoker, payload = subscription.find(message)
        except Exception as error:  # users' upgrade= and type_of= run here
            return None, Parsed(message, error=error)
        if invoker is None:
            return None, Parsed(message, error=subscription.unmatched(), unmatched=True)
        parsed = Parsed(message, payload, invoker)
        if self._keys is None:
            return None, parsed
        if not message.id:
            if not subscription.said_no_id:
                subscription.said_no_id = True
                self._logger.warning(
                    "queue %r gets messages without an id: they are handled at least once, without deduplication",
                    subscription.queue,
                )
            return None, parsed
        return claim_of(delivery.queue, message, self._lease, self._lazy, self._keep), parsed


def claim_of(queue: str, message: Message, lease: float, lazy: bool = False, keep: float = 0.0) -> Claim:
    """The claim that a message needs; one of no lease counts its start and is free for the next at once."""
    digest = hashlib.blake2b(message.payload, digest_size=16).digest()
    return Claim(queue, message.id, digest, lease, message.headers.get(REPLAY, ""), lazy, keep)

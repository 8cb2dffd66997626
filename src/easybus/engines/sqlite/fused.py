"""The driver with the keys beside its messages: fetch with claim, and completion with ack, in one transaction each."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..contract import Claim, Claimed, Delivery, Finish, Taken
from .connect import Connection
from .driver import SqliteDriver, remove
from .keys import claim_keys, complete_keys, release_keys
from .waking import until_found
from .writer import Writer


class SqliteFusedDriver(SqliteDriver):
    """`SqliteDriver` and the two fused steps."""

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        writer = self.writer()

        def attempt() -> Coroutine[Any, Any, tuple[list[Taken], float]]:
            return writer.take(
                lambda connection: (self._take(writer, connection, queue, limit, lease, parse), 0.0),
                durable=True,
                peek=lambda connection: self.look(writer, connection, queue),
                undo=lambda result: self._take_back(writer, queue, result[0]),
            )

        return await until_found(writer.watchers, self.clock, queue, wait, attempt)

    def _take(
        self,
        writer: Writer,
        connection: Connection,
        queue: str,
        limit: int,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        deliveries = self.own(writer, connection, queue, limit, lease)
        if not deliveries:
            return []
        parsed = [parse(delivery) for delivery in deliveries]
        claims = [claim for claim, _ in parsed if claim is not None]
        results = iter(claim_keys(connection, claims, self.now()) if claims else ())
        return [
            Taken(delivery, value, None if claim is None else next(results))
            for delivery, (claim, value) in zip(deliveries, parsed, strict=True)
        ]

    def _take_back(self, writer: Writer, queue: str, taken: Sequence[Taken]) -> None:
        """What a cancelled take had claimed is free again, and then its deliveries are ready."""
        tokens = [item.claim.token for item in taken if isinstance(item.claim, Claimed)]
        if tokens:
            writer.later(lambda connection: release_keys(connection, tokens, self.now()), durable=True)
        self.give_back(writer, queue, [item.delivery for item in taken])

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        def work(connection: Connection) -> list[bool]:
            done = complete_keys(connection, [(item.token, item.keep) for item in batch], self.now())
            remove(connection, [item.delivery for item, completed in zip(batch, done, strict=True) if completed])
            return done

        return await self.writer().call(work, durable=True)

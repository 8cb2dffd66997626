"""The driver with the keys beside its messages: fetch with claim in two statements, completion with ack in one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock
from ..contract import Claim, Claimed, Delivery, Finish, Taken
from .completion import FINISH_ONE
from .connections import Connection
from .driver import PostgresqlDriver
from .keys import COMPLETE, FOREVER, PostgresqlKeys, answers, claim_keys, row_of
from .session import Session
from .waking import until_found

_FINISH = (  # keys are done, and only then their deliveries gone; as durable as a publish
    f"WITH done AS ({COMPLETE}), gone AS (DELETE FROM {{message}} WHERE id = ANY (ARRAY("
    "SELECT delivery FROM unnest($2::bigint[], $4::bigint[]) AS given(secret, delivery) "
    "WHERE secret = ANY (ARRAY(SELECT secret FROM done)))) AND owner = ANY ($5::bigint[])) "
    "SELECT array_agg(id), array_agg(secret) FROM done"
)

_LATE = 0.02
"""The part of a lease that fetching and claiming may take; where it is more, the deliveries' leases begin anew."""


class PostgresqlFusedDriver(PostgresqlDriver):
    """`PostgresqlDriver` and the two fused steps."""

    def __init__(self, clock: Clock, session: Session, keys: PostgresqlKeys) -> None:
        super().__init__(clock, session)
        self._keys = keys

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        session = self._session

        async def attempt() -> tuple[list[Taken], float | None, int]:
            number = await self.number(queue)

            async def work(connection: Connection) -> tuple[list[Taken], float | None, int]:
                begun = time.monotonic()
                deliveries = await self.own(connection, queue, number, limit, lease)
                if not deliveries:
                    return [], *await self.next_due(connection, queue)
                held: list[str] = []
                parsed = [parse(delivery) for delivery in deliveries]
                claims = [claim for claim, _ in parsed if claim is not None]
                try:
                    # Keys that were held for longer than their deliveries would be busy to the next taker of those.
                    spent = min(time.monotonic() - begun, lease * _LATE)
                    results = iter(await claim_keys(connection, session.names, claims, held, spent))
                    if time.monotonic() - begun > lease * _LATE:
                        await self.extend(connection, deliveries, lease)
                except BaseException:
                    self._take_back(queue, deliveries, held)
                    raise
                taken = [
                    Taken(delivery, value, None if claim is None else next(results))
                    for delivery, (claim, value) in zip(deliveries, parsed, strict=True)
                ]
                return taken, None, number

            def undo(result: tuple[list[Taken], float | None, int]) -> None:
                tokens = [item.claim.token for item in result[0] if isinstance(item.claim, Claimed)]
                self._take_back(queue, [item.delivery for item in result[0]], tokens)

            return await session.connections.run(work, undo=undo)

        return await until_found(session.waker.watchers, self._clock, wait, await self.number(queue), attempt)

    def _take_back(self, queue: str, deliveries: Sequence[Delivery], tokens: Sequence[str]) -> None:
        """What a cancelled or failed take had claimed is free again, and then its deliveries are ready."""

        async def back() -> None:
            if tokens:
                await self._keys.release(tokens)
            self.give_back(queue, deliveries)

        if deliveries:
            self._session.later(back())

    def finishing(self, item: Finish) -> tuple[str, tuple[Any, ...]]:
        given = (min(item.keep, FOREVER), *row_of(item.token), *item.delivery.receipt)
        return self._session.names(FINISH_ONE), given

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        by_keep: dict[float, list[Finish]] = defaultdict(list)
        for item in batch:
            by_keep[item.keep].append(item)
        done: set[str] = set()
        for keep, items in by_keep.items():
            done |= await self._finish(items, min(keep, FOREVER))
        return answers([item.token for item in batch], done)

    async def _finish(self, batch: Sequence[Finish], keep: float) -> set[str]:
        statement = self._session.names(_FINISH)
        pairs = sorted((row_of(item.token), item.delivery.receipt) for item in batch)  # one order: no deadlocks
        given: list[Any] = [[key[0] for key, _ in pairs], [key[1] for key, _ in pairs], keep]
        given += [[receipt[0] for _, receipt in pairs], [receipt[1] for _, receipt in pairs]]
        done = await self._session.connections.run(lambda connection: connection.fetchrow(statement, *given))
        return {f"{row}-{secret}" for row, secret in zip(*done, strict=True)} if done[0] is not None else set()

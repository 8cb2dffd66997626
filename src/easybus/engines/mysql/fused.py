"""The driver with the keys beside its messages: fetch with claim, and completion with ack, in one transaction each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock
from ..contract import Claim, Claimed, Delivery, Finish, Taken
from .driver import MysqlDriver
from .keys import DONE, MysqlKeys, Wishes, answers, change_held, ended, held_under
from .link import CLOCK, COMMIT, Link, Step
from .session import Session
from .settling import ack_steps
from .waking import until_found


class MysqlFusedDriver(MysqlDriver):
    """`MysqlDriver` and the two fused steps."""

    def __init__(self, clock: Clock, session: Session, keys: MysqlKeys) -> None:
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

            async def work(link: Link) -> tuple[list[Taken], float | None, int]:
                lot = await self.lock(link, queue, number, limit, lease)
                deliveries = lot.deliveries
                if not deliveries:
                    return [], *lot.due
                parsed = [parse(delivery) for delivery in deliveries]
                wishes = Wishes([claim for claim, _ in parsed if claim is not None], session)
                claimed = (await link.run(CLOCK, *lot.leases, *wishes.steps, COMMIT))[1 + len(lot.leases) : -1]
                self.leased(number, lot)
                try:
                    results = iter(await wishes.granted(link, claimed))
                except BaseException:
                    self._take_back(queue, deliveries, wishes.tokens)
                    raise
                taken = [
                    Taken(delivery, value, None if claim is None else next(results))
                    for delivery, (claim, value) in zip(deliveries, parsed, strict=True)
                ]
                return taken, *lot.due

            def undo(result: tuple[list[Taken], float | None, int]) -> None:
                tokens = [item.claim.token for item in result[0] if isinstance(item.claim, Claimed)]
                self._take_back(queue, [item.delivery for item in result[0]], tokens)

            return await session.connections.run(work, undo=undo)

        return await until_found(session.watchers, self._clock, wait, await self.number(queue), attempt)

    def _take_back(self, queue: str, deliveries: Sequence[Delivery], tokens: Sequence[str]) -> None:
        """What a cancelled or failed take had claimed is free again, and then its deliveries are ready."""

        async def back() -> None:
            if tokens:
                await self._keys.release(tokens)
            self.give_back(queue, deliveries)

        if deliveries:
            self._session.later(back())

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        by_keep: dict[float, list[Finish]] = defaultdict(list)
        for item in batch:
            by_keep[item.keep].append(item)
        done: set[str] = set()
        for keep, items in by_keep.items():
            done |= await self._finish(items, keep)
            self._session.keep = keep
        return answers([item.token for item in batch], done)

    async def _finish(self, batch: Sequence[Finish], keep: float) -> set[str]:
        """Complete keys, and in the same transaction ack the deliveries of those that were held."""
        held = held_under([item.token for item in batch])

        def acks(done: set[str]) -> Sequence[Step]:
            acked = sorted((item.delivery for item in batch if item.token in done), key=lambda one: one.receipt[0])
            return ack_steps(acked)[0][1::2]

        async def work(link: Link) -> set[str]:
            return await change_held(link, held, ended(DONE, keep), acks)

        return await self._session.connections.run(work) if held else set()

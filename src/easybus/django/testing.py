"""The project's bus in Django's tests: on the test database.

    class Orders(TransactionTestCase):
        def test_a_receipt_is_written(self):
            with testing() as t:
                self.client.post("/orders/", {"amount": 950})
                t.drain()
                self.assertEqual(Receipt.objects.count(), 1)

Not with `TestCase`: its transaction never commits, so nothing that is sent in it ever leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from ..clock import SystemClock
from ..engines.contract import Change, DeclareQueue, DeclareTopic, Engine, ForgettingStorage
from ..engines.registry import create
from ..testing.blocking import BlockingHarness
from .databases import database_url
from .project import get_bus

__all__ = ["testing"]

_ALL = 10_000


@contextlib.contextmanager
def testing(  # no test, whatever its name
    using: str = "default",  # noqa: PT028
    *,
    provide: Mapping[Any, Callable[..., Any]] | None = None,  # noqa: PT028
) -> Generator[BlockingHarness]:
    """The project's bus under test, without await, in the test database; what an earlier test left in it is gone.

    Args:
        using: the database, by its name in `DATABASES`; on SQLite it must be a file, not memory.
        provide: instead of what the bus provides; see `Bus.testing`.

    Raises:
        ImproperlyConfigured: a transaction is open on that database, as in `TestCase`, or it lies in memory.
        AssertionError: at the end: there are dead letters that the test did not look at.
    """
    if connections[using].in_atomic_block:
        raise ImproperlyConfigured(
            "a transaction is open, in which nothing that is sent would ever be committed: use TransactionTestCase "
            "instead of TestCase"
        )
    url = database_url(using)
    asyncio.run(_empty(create(url, SystemClock())))
    with get_bus().testing(storage=url, provide=provide).blocking as harness:
        yield harness


testing.__dict__["__test__"] = False  # pytest would collect it, by its name, where it is imported


async def _empty(engine: Engine) -> None:
    await engine.open()
    try:
        if engine.driver is not None:
            changes: list[Change] = [DeclareQueue(queue.name) for queue in await engine.driver.queues()]
            changes += [DeclareTopic(topic) for topic, _ in await engine.driver.topics()]
            await engine.driver.drop(changes)
        if isinstance(engine.idempotency, ForgettingStorage):
            await engine.idempotency.forget()
        if engine.dead_letters is not None:
            for queue in await engine.dead_letters.count():
                letters = await engine.dead_letters.find(queue, limit=_ALL)
                await engine.dead_letters.delete(queue, [letter.key for letter in letters])
        if engine.outbox is not None:
            await engine.outbox.delete([(row.id, row.token) for row in await engine.outbox.find(limit=_ALL)])
        if engine.transactions is not None:
            for half in await engine.transactions.find(limit=_ALL):
                await engine.transactions.remove(half.id, half.token)
    finally:
        await engine.close()

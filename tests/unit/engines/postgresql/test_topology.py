"""A declaration is seen by others when it is committed, and never if it is not."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from easybus import NotDeclared
from easybus.engines.contract import Binding, DeclareQueue, Publication
from easybus.engines.postgresql.engine import PostgresqlEngine

_WAITS = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"


async def test_nothing_is_published_to_a_queue_whose_declaration_has_not_ended(
    engine: PostgresqlEngine, url: str
) -> None:
    schema = url.rpartition("=")[2]
    other: Any = await asyncpg.connect(url.partition("?")[0])
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f"INSERT INTO {schema}.queue (name, delay) VALUES ('second', 0)")
        changes = [DeclareQueue("first"), DeclareQueue("second"), Binding("missing", "first")]
        declaring = asyncio.create_task(engine.driver.declare(changes))
        while not await other.fetchval(_WAITS):  # then the first is in, uncommitted
            await asyncio.sleep(0.01)
        (result,) = await engine.driver.publish([Publication(False, "first", b"1")])
        assert isinstance(result, NotDeclared)
        await transaction.rollback()
        with pytest.raises(NotDeclared, match="missing"):
            await declaring
        assert await other.fetchval(f"SELECT count(*) FROM {schema}.message") == 0
    finally:
        await other.close()


async def test_what_is_published_while_a_declaration_fails_is_refused(engine: PostgresqlEngine) -> None:
    changes = [*(DeclareQueue(f"queue-{number}") for number in range(50)), Binding("missing", "queue-0")]
    declaring = asyncio.create_task(engine.driver.declare(changes))
    results: list[Any] = []
    while not declaring.done():
        results += await engine.driver.publish([Publication(False, "queue-0", b"1")])
    with pytest.raises(NotDeclared, match="missing"):
        await declaring
    assert results
    assert [result for result in results if not isinstance(result, NotDeclared)] == []

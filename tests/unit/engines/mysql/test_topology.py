"""A declaration is seen by others when it is committed, and never if it is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from easybus import NotDeclared
from easybus.engines.contract import Binding, DeclareQueue, Publication
from easybus.engines.mysql.engine import MysqlEngine

from .conftest import Client


async def test_nothing_is_published_to_a_queue_whose_declaration_has_not_ended(
    engine: MysqlEngine, url: str, client: Client
) -> None:
    prefix = url.rpartition("=")[2]
    await client.run("BEGIN")
    await client.run(f"INSERT INTO {prefix}queue (name, delay) VALUES ('second', 0)")
    changes = [DeclareQueue("first"), DeclareQueue("second"), Binding("missing", "first")]
    declaring = asyncio.create_task(engine.driver.declare(changes))
    while not await client.run("SELECT 1 FROM information_schema.innodb_lock_waits"):  # then the first is in
        await asyncio.sleep(0.15)  # the server makes this view anew when nobody has looked for 100 ms
    (result,) = await engine.driver.publish([Publication(False, "first", b"1")])
    assert isinstance(result, NotDeclared)
    await client.run("ROLLBACK")
    with pytest.raises(NotDeclared, match="missing"):
        await declaring
    assert await client.run(f"SELECT count(*) FROM {prefix}message") == [(0,)]


async def test_what_is_published_while_a_declaration_fails_is_refused(engine: MysqlEngine) -> None:
    changes = [*(DeclareQueue(f"queue-{number}") for number in range(50)), Binding("missing", "queue-0")]
    declaring = asyncio.create_task(engine.driver.declare(changes))
    results: list[Any] = []
    while not declaring.done():
        results += await engine.driver.publish([Publication(False, "queue-0", b"1")])
    with pytest.raises(NotDeclared, match="missing"):
        await declaring
    assert results
    assert [result for result in results if not isinstance(result, NotDeclared)] == []

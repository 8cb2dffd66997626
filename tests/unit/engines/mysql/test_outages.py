"""The server goes away and comes back, or stops answering: errors are ours, in time, and nothing has to be reopened."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.servers.mariadb import MariadbServer
from tests.servers.outages import ServerOutages

from easybus import Unavailable
from easybus.engines.contract import Ack, DeclareQueue, Publication
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.link import BEGIN
from easybus.engines.mysql.names import TABLES

from .conftest import Opener

CUT = "KILL USER bus"


async def publish(engine: MysqlEngine, body: bytes, within: float = 10.0) -> None:
    """As the core does: tried again while the server is away."""
    deadline = time.monotonic() + within
    while True:
        try:
            assert await engine.driver.publish([Publication(False, "jobs", body)]) == [1]
            return
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def receive(engine: MysqlEngine, within: float = 10.0) -> bytes:
    deadline = time.monotonic() + within
    while True:
        try:
            for one in await engine.driver.fetch("jobs", 1, 1.0, 30.0):
                await engine.driver.settle("jobs", [Ack(one)])
                return one.body
        except Unavailable:
            await asyncio.sleep(0.02)
        assert time.monotonic() < deadline


@pytest.mark.outages
async def test_cut_connections_are_replaced(opened: Opener, mariadb_server: MariadbServer) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareQueue("jobs")])
    await publish(one, b"0")
    assert await receive(other) == b"0"
    for number in (b"1", b"2", b"3"):
        await asyncio.to_thread(mariadb_server.sql, CUT)
        await publish(one, number)
        assert await receive(other) == number


async def test_tables_that_were_wiped_are_made_again(
    engine: MysqlEngine, url: str, mariadb_server: MariadbServer
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    prefix = url.rpartition("=")[2]
    tables = ", ".join(f"test.`{prefix}{name}`" for name in TABLES)
    await asyncio.to_thread(mariadb_server.sql, f"DROP TABLE {tables}")
    with pytest.raises(Unavailable):
        await engine.driver.publish([Publication(False, "jobs", b"lost")])
    await engine.driver.declare([DeclareQueue("jobs")])
    await publish(engine, b"again")
    assert await receive(engine) == b"again"


class TestOutages(ServerOutages):
    @pytest.fixture
    def server(self, mariadb_server: MariadbServer) -> MariadbServer:
        return mariadb_server

    @pytest.fixture
    def url(self, server: MariadbServer) -> str:
        return f"{server.prefix()}&timeout=1"


async def test_what_a_process_that_stands_still_has_locked_is_free_after_the_timeout(opened: Opener, url: str) -> None:
    still, other = await opened(f"{url}&timeout=1"), await opened()
    await still.driver.declare([DeclareQueue("jobs")])
    await publish(still, b"locked")
    link = await still._session.connections.borrow(1.0)
    await link.run(BEGIN, ("SELECT id FROM {message} FOR UPDATE",))  # and then it does no more
    assert await receive(other) == b"locked"
    still._session.connections.give_back(link)

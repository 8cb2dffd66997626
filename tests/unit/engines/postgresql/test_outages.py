"""The server goes away and comes back, or stops answering: errors are ours, in time, and nothing has to be reopened."""

from __future__ import annotations

import asyncio
import socket
import time

import asyncpg
import pytest
from tests.servers.outages import ServerOutages
from tests.servers.postgresql import PostgresqlServer

from easybus import Unavailable
from easybus.clock import SystemClock
from easybus.engines.contract import Ack, DeclareQueue, Publication
from easybus.engines.postgresql.engine import PostgresqlEngine
from easybus.engines.registry import create

from .conftest import Opener

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"


async def publish(engine: PostgresqlEngine, body: bytes, within: float = 10.0) -> None:
    """As the core does: tried again while the server is away."""
    deadline = time.monotonic() + within
    while True:
        try:
            assert await engine.driver.publish([Publication(False, "jobs", body)]) == [1]
            return
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def receive(engine: PostgresqlEngine, within: float = 10.0) -> bytes:
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
async def test_cut_connections_are_replaced_and_other_processes_are_heard_again(
    opened: Opener, postgresql_server: PostgresqlServer
) -> None:
    one, other = await opened(), await opened()
    await one.driver.declare([DeclareQueue("jobs")])
    await publish(one, b"0")
    assert await receive(other) == b"0"
    for number in (b"1", b"2", b"3"):
        await asyncio.to_thread(postgresql_server.psql, CUT)
        await publish(one, number)
        assert await receive(other) == number
    await asyncio.sleep(0.5)  # the listeners, which nobody waits for, are back after a moment
    took: list[float] = []
    for _ in range(3):
        waiting = asyncio.create_task(receive(other))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await publish(one, b"4")
        assert await waiting == b"4"
        took.append(time.monotonic() - began)
    assert min(took) < 0.5, "found by polling only"


async def test_tables_that_were_wiped_are_made_again(
    engine: PostgresqlEngine, url: str, postgresql_server: PostgresqlServer
) -> None:
    await engine.driver.declare([DeclareQueue("jobs")])
    schema = url.rpartition("=")[2]
    await asyncio.to_thread(postgresql_server.psql, f'DROP SCHEMA "{schema}" CASCADE')
    with pytest.raises(Unavailable):
        await engine.driver.publish([Publication(False, "jobs", b"lost")])
    await engine.driver.declare([DeclareQueue("jobs")])
    await publish(engine, b"again")
    assert await receive(engine) == b"again"


async def test_a_handlers_transaction_whose_connection_is_cut_is_unavailable(engine: PostgresqlEngine) -> None:
    transaction = engine.transaction(asyncpg.Connection)
    assert transaction is not None
    with pytest.raises(Unavailable):
        async with transaction as connection:
            connection.terminate()


@pytest.mark.parametrize("scheme", ["silent", "away"])
async def test_a_host_that_is_silent_or_away_is_passed_over_in_time(
    postgresql_server: PostgresqlServer, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing, as a frozen one
        port = silent.getsockname()[1] if scheme == "silent" else 1
        here = f"127.0.0.1:{postgresql_server.port}"
        engine = create(postgresql_server.schema().replace(here, f"127.0.0.1:{port},{here}"), SystemClock())
        began = time.monotonic()
        await engine.open()
        try:
            assert time.monotonic() - began < 4.0
        finally:
            await engine.close()


async def test_of_a_server_that_stops_answering_one_connection_is_waited_for(
    opened: Opener, postgresql_server: PostgresqlServer
) -> None:
    engine = await opened(f"{postgresql_server.schema()}&timeout=1")
    await engine.driver.declare([DeclareQueue("jobs")])
    await asyncio.gather(*(engine.driver.fetch("jobs", 1, 0.0, 1.0) for _ in range(5)))  # so many connections are free
    postgresql_server.freeze()
    try:
        with pytest.raises(Unavailable):
            await engine.driver.publish([Publication(False, "jobs", b"lost")])
        assert not engine._session.connections._free
    finally:
        postgresql_server.thaw()
    await publish(engine, b"after")


class TestOutages(ServerOutages):
    @pytest.fixture
    def server(self, postgresql_server: PostgresqlServer) -> PostgresqlServer:
        return postgresql_server

    @pytest.fixture
    def url(self, server: PostgresqlServer) -> str:
        return f"{server.schema()}&timeout=1"


async def test_what_a_process_that_stands_still_has_locked_is_free_after_the_timeout(opened: Opener, url: str) -> None:
    still, other = await opened(f"{url}&timeout=1"), await opened()
    await still.driver.declare([DeclareQueue("jobs")])
    await publish(still, b"locked")
    connection = await still._session.connections.borrow(1.0)
    await connection.execute("BEGIN")
    await connection.execute(still._session.names("SELECT id FROM {message} FOR UPDATE"))  # and then it does no more
    assert await receive(other) == b"locked"
    still._session.connections.give_back(connection)

"""What is wrong with a server for a while: a bus that is open survives it, however it would be refused at the start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.outages import eventually
from tests.servers.postgresql import PostgresqlServer
from tests.servers.urls import as_user

from easybus import Bus
from easybus.clock import SystemClock
from easybus.engines.contract import DeclareQueue, SchemaEngine
from easybus.engines.mysql.names import TABLES
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, SendError, Unavailable
from easybus.testing.driver_base import fresh


class Mended(NamedTuple):
    """A bus's place that is harmed, and mended by an operator."""

    url: str
    harm: Callable[[], object]
    mend: Callable[[], object]
    says: str
    """What sends say meanwhile."""


def _sql(make: Callable[[str], str], run: Callable[[str], object], url: str, drop: str) -> Mended:
    """Tables that the bus's user may use, and not make; they are gone for a while."""
    poor = as_user(url, "poor:secret")
    engine = create(poor, SystemClock())
    assert isinstance(engine, SchemaEngine)
    script = engine.schema()
    grants = [line.removeprefix("--   ") for line in script.splitlines() if line.startswith("--   GRANT")]

    def mend() -> None:
        run(script)
        for grant in grants:
            run(grant.replace("the_bus", make("poor")))

    mend()
    return Mended(poor, lambda: run(drop), mend, "may not make the bus's tables")


@contextlib.contextmanager
def postgresql_tables(request: pytest.FixtureRequest) -> Iterator[Mended]:
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    server.psql("CREATE ROLE poor LOGIN PASSWORD 'secret'")
    url = f"{server.schema()}&timeout=2"
    try:
        schema = url.partition("schema=")[2].partition("&")[0]
        yield _sql(str, server.psql, url, f"DROP SCHEMA {schema} CASCADE")
    finally:
        server.psql("DROP OWNED BY poor; DROP ROLE poor")


@contextlib.contextmanager
def mariadb_tables(request: pytest.FixtureRequest) -> Iterator[Mended]:
    server: MariadbServer = request.getfixturevalue("mariadb_server")
    server.sql("CREATE USER poor@'%' IDENTIFIED BY 'secret'")
    url = server.database()
    database = url.rpartition("/")[2]
    tables = ", ".join(f"{database}.`easybus_{name}`" for name in TABLES)
    try:
        yield _sql("{}@'%'".format, lambda text: _each(server, text), f"{url}?timeout=2", f"DROP TABLE {tables}")
    finally:
        server.sql("DROP USER poor@'%'")


def _each(server: MariadbServer, script: str) -> None:
    for statement in script.split(";\n"):
        server.sql(statement)


@contextlib.contextmanager
def nats_without_jetstream(request: pytest.FixtureRequest) -> Iterator[Mended]:
    server = NatsServer(sync=True)

    def serve(*, jetstream: bool) -> None:
        server.configure(jetstream=jetstream)
        server.restart()

    try:
        server.start()
        url = server.prefix().replace("timeout=5", "timeout=2")
        says = "JetStream is off: start the server with -js"
        yield Mended(url, lambda: serve(jetstream=False), lambda: serve(jetstream=True), says)
    finally:
        server.remove()


@pytest.fixture(params=[postgresql_tables, mariadb_tables, nats_without_jetstream], ids=lambda make: make.__name__)
def mended(request: pytest.FixtureRequest) -> Iterator[Mended]:
    with request.param(request) as mended:
        yield mended


async def test_a_bus_that_could_not_even_be_opened_now_goes_on_when_that_is_mended(
    mended: Mended, caplog: pytest.LogCaptureFixture
) -> None:
    """What would be a configuration error at the start is an outage to a bus that is open."""
    handled: set[str] = set()
    bus = Bus(mended.url, service=fresh("service"), storage=f"memory://{fresh('keys')}")
    jobs = bus.queue(fresh("jobs"), str)

    @jobs.handler
    async def handle(text: str) -> None:
        handled.add(text)

    async with asyncio.timeout(30.0), bus.handling():
        await jobs.send("before")
        while "before" not in handled:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(mended.harm)
        while ": down" not in caplog.text:
            await asyncio.sleep(0.02)
        with pytest.raises(ConfigurationError):
            await _opens(mended.url)
        said = ""
        while mended.says not in said:
            with pytest.raises(SendError) as refused:
                await jobs.send("meanwhile")
            said = str(refused.value)
        with pytest.raises(Unavailable, match=mended.says):  # as the handlers' fetches do
            await bus.driver.fetch(jobs.name, 1, 0.0, 1.0)
        await asyncio.to_thread(mended.mend)
        await eventually(lambda: bus.driver.declare([DeclareQueue(jobs.name)]))
        while "after" not in handled:
            with contextlib.suppress(SendError):
                await jobs.send("after")
            await asyncio.sleep(0.05)
    assert "is handled no more" not in caplog.text
    assert "ended, which it never should" not in caplog.text


async def _opens(url: str) -> None:
    engine = create(url, SystemClock())
    try:
        await engine.open()
    finally:
        await engine.close()

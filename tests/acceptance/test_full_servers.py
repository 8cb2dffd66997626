"""Servers without room: sends fail in time with why, what was confirmed is kept, and all goes on once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest
from tests.servers import Server
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.outages import eventually
from tests.servers.postgresql import PostgresqlServer
from tests.servers.rabbitmq import RabbitmqServer
from tests.servers.redis import RedisServer
from tests.servers.small_disk import SmallDisk, small_disk

from easybus import Bus, SendError, fixed
from easybus.clock import SystemClock
from easybus.engines.registry import create
from easybus.testing.driver_base import fresh

TIMEOUT = 2.0
"""Seconds that a call may take, in these URLs."""


class Room(NamedTuple):
    """A server whose room a test takes and gives back."""

    url: str
    take: Callable[[], object]
    give: Callable[[], object]
    says: str
    """A pattern of what each send's error says of it."""


# ------------------------------------------------------------------------------- alarms and limits, on shared servers


@contextlib.contextmanager
def rabbitmq_disk_alarm(request: pytest.FixtureRequest) -> Iterator[Room]:
    server: RabbitmqServer = request.getfixturevalue("rabbitmq_server")
    limit = lambda amount: server.control("-q", "set_disk_free_limit", amount)  # noqa: E731
    try:
        yield Room(server.url(timeout=TIMEOUT, settle=0), lambda: limit("900GB"), lambda: limit("50MB"), "low on disk")
    finally:
        limit("50MB")


@contextlib.contextmanager
def redis_maxmemory(request: pytest.FixtureRequest) -> Iterator[Room]:
    server: RedisServer = request.getfixturevalue("redis_server")
    limit = lambda amount: server.ask("CONFIG", "SET", "maxmemory", amount)  # noqa: E731
    try:
        yield Room(server.url(timeout=str(TIMEOUT)), lambda: limit("1"), lambda: limit("0"), "raise maxmemory")
    finally:
        limit("0")


@contextlib.contextmanager
def postgresql_disk(request: pytest.FixtureRequest) -> Iterator[Room]:
    """A tablespace for itself, as where the log lies on another disk."""
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    name = fresh("small").replace("-", "_")
    with small_disk(server.folder / name, 16, server.user) as disk:
        server.psql(f"CREATE TABLESPACE {name} LOCATION '{disk.path}'")
        server.psql(f"ALTER ROLE postgres SET default_tablespace = {name}")
        url = server.schema()
        try:
            yield Room(f"{url}&timeout={TIMEOUT}", disk.fill, disk.free, "disk is full: free some")
        finally:
            server.psql("ALTER ROLE postgres RESET default_tablespace")
            server.psql(f"DROP SCHEMA IF EXISTS {url.partition('schema=')[2]} CASCADE")
            server.psql(f"DROP TABLESPACE {name}")


# -------------------------------------------------------------------------------------------- servers of their own


@contextlib.contextmanager
def started(server: Server) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.remove()


@contextlib.contextmanager
def removed(server: Server, folder: str, megabytes: int) -> Iterator[SmallDisk]:
    """A server, not started yet, with this folder of its on a small disk; it is gone before the disk."""
    with contextlib.ExitStack() as stack:
        stack.callback(server.remove)
        disk = stack.enter_context(small_disk(server.folder / folder, megabytes, server.user))
        stack.callback(server.kill)
        yield disk


def freed_and_restarted(server: Server, disk: SmallDisk) -> Callable[[], None]:
    def give() -> None:
        disk.free()
        server.restart()

    return give


@contextlib.contextmanager
def redis_disk(request: pytest.FixtureRequest) -> Iterator[Room]:
    server = RedisServer("--appendfsync", "everysec")
    with removed(server, "data", 8) as disk:
        server.keep_in(disk.path)
        server.start()
        yield Room(server.url(timeout=str(TIMEOUT)), disk.fill, disk.free, "cannot write to its disk")


@contextlib.contextmanager
def redis_disk_synced(request: pytest.FixtureRequest) -> Iterator[Room]:
    """With `appendfsync always` it ends itself rather than confirm what is on no disk."""
    server = RedisServer()
    with removed(server, "data", 8) as disk:
        server.keep_in(disk.path)
        server.start()
        give = freed_and_restarted(server, disk)
        yield Room(server.url(timeout=str(TIMEOUT)), disk.fill, give, "cannot be reached")


@contextlib.contextmanager
def nats_limit(request: pytest.FixtureRequest) -> Iterator[Room]:
    server = NatsServer(max_file_store=200_000)
    with started(server):
        yield Room(server.prefix().replace("timeout=5", f"timeout={TIMEOUT}"), int, int, "raise max_file_store")


@contextlib.contextmanager
def nats_disk(request: pytest.FixtureRequest) -> Iterator[Room]:
    """Its streams that met the full disk are dead until it is started again."""
    server = NatsServer(sync=True)
    with removed(server, "data", 8) as disk:
        server.start()
        url = server.prefix().replace("timeout=5", f"timeout={TIMEOUT}")
        yield Room(url, disk.fill, freed_and_restarted(server, disk), "whose disk is full does so")


@contextlib.contextmanager
def postgresql_log_disk(request: pytest.FixtureRequest) -> Iterator[Room]:
    """That of its write-ahead log: the server ends all sessions, and starts again by itself, until there is room."""
    server = PostgresqlServer()
    with removed(server, "log", 40) as disk:
        server.keep_log_in(disk.path)
        server.start()
        yield Room(
            f"{server.schema()}&timeout={TIMEOUT}",
            disk.fill,
            disk.free,
            "No space left on device|in recovery mode|starting up|connection was closed",
        )


@contextlib.contextmanager
def mariadb_disk(request: pytest.FixtureRequest) -> Iterator[Room]:
    """It stands still for seconds, and then ends itself."""
    server = MariadbServer()
    with removed(server, "data", 256) as disk:
        server.start()
        give = freed_and_restarted(server, disk)
        yield Room(
            f"{server.prefix()}&timeout={TIMEOUT}",
            disk.fill,
            give,
            "no answer within 2 s|Lost connection|nothing listens there",
        )


@contextlib.contextmanager
def mariadb_space(request: pytest.FixtureRequest) -> Iterator[Room]:
    """The space that an operator has given it, and then more."""
    space = "--innodb-data-file-path=ibdata1:12M:autoextend:max:{}M"
    server = MariadbServer("--innodb-file-per-table=0", space.format(16))

    def give() -> None:
        server.configure("--innodb-file-per-table=0", space.format(64))
        server.restart()

    with started(server):
        yield Room(f"{server.prefix()}&timeout={TIMEOUT}", int, give, "full: free some")


MAKERS: list[Callable[[pytest.FixtureRequest], AbstractContextManager[Room]]] = [
    rabbitmq_disk_alarm,
    redis_maxmemory,
    redis_disk,
    redis_disk_synced,
    nats_limit,
    nats_disk,
    postgresql_disk,
    postgresql_log_disk,
    mariadb_disk,
    mariadb_space,
]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    with request.param(request) as room:
        yield room


async def test_a_server_without_room_says_so_in_time_loses_nothing_and_goes_on_once_there_is_room(room: Room) -> None:
    name, handled, confirmed = fresh("jobs"), set[str](), set[str]()

    def bus() -> Bus:
        return Bus(room.url, storage=f"memory://{fresh('keys')}")

    sender = bus()
    jobs = sender.queue(name, str)

    async def send(text: str) -> SendError | None:
        try:
            await jobs.send(text)
        except SendError as error:
            return error
        confirmed.add(text)
        return None

    async with sender:
        for number in range(3):
            assert await send(f"before {number}") is None
        await asyncio.to_thread(room.take)
        refused: list[SendError] = []
        async with asyncio.timeout(40.0):
            for number in range(1000):
                began = time.monotonic()
                error = await send(f"full {number} " + "x" * 50_000)
                assert time.monotonic() - began < TIMEOUT + 2.0, "a send takes longer than its timeout"
                refused += [error] if error is not None else []
                if len(refused) == 3:
                    break
        assert len(refused) == 3
        assert [str(error) for error in refused if re.search(room.says, str(error)) is None] == []
        receiver = bus()

        @receiver.queue(name, str).handler
        async def handle(text: str) -> None:
            handled.add(text)

        await asyncio.to_thread(room.give)
        await eventually(lambda: _opens(room.url))
        async with asyncio.timeout(30.0):
            async with receiver.handling():
                while await send("after") is not None:
                    await asyncio.sleep(0.05)
                while not handled >= confirmed:
                    await asyncio.sleep(0.02)


async def test_while_rabbitmq_takes_no_messages_handlers_work_on_and_a_retry_waits_for_its_lease(
    rabbitmq_server: RabbitmqServer,
) -> None:
    bus = Bus(rabbitmq_server.url(timeout=1.0, settle=0), storage=f"memory://{fresh('keys')}")
    jobs = bus.queue(fresh("jobs"), str)
    seen: list[str] = []
    done: set[str] = set()

    @jobs.handler(lease=1.5, retry=fixed(0.1, attempts=100))
    async def handle(text: str) -> None:
        seen.append(text)
        if text == "fails" and alarmed:
            raise RuntimeError(text)
        done.add(text)

    alarmed = True
    async with bus:
        for text in ("works", "fails"):
            await jobs.send(text)
        await asyncio.to_thread(rabbitmq_server.control, "-q", "set_disk_free_limit", "900GB")
        try:
            with pytest.raises(SendError, match="low on disk"):
                await jobs.send("blocked")
            async with asyncio.timeout(40.0), bus.handling():
                while seen.count("fails") < 2 or "works" not in done:
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(rabbitmq_server.control, "-q", "set_disk_free_limit", "50MB")
                alarmed = False
                while "fails" not in done:
                    await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(rabbitmq_server.control, "-q", "set_disk_free_limit", "50MB")


async def _opens(url: str) -> None:
    engine = create(url, SystemClock())
    await engine.open()
    await engine.close()

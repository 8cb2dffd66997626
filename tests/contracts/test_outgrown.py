"""On every engine: a message as large as it takes, whose retry it does not, is a dead letter, and handled once."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.rabbitmq import RabbitmqServer
from tests.servers.redis import RedisServer

from easybus import Bus, Message, fixed
from easybus.engines.memory import driver as memory
from easybus.engines.mysql import limits as mysql
from easybus.engines.postgresql import limits as postgresql
from easybus.engines.rabbitmq import names as rabbitmq
from easybus.engines.redis import limits as redis
from easybus.engines.sqlite import limits as sqlite
from easybus.message import new_id
from easybus.testing.driver_base import fresh

Patch = pytest.MonkeyPatch


def largest(most: int) -> Message:
    """A message of so many bytes."""
    message = Message.new(b"", id=new_id())
    room = most - len(message.to_bytes()) - len(',"p":""')
    message.payload = b"\xff" * (room // 4 * 3)
    message.id += "-" * (most - len(message.to_bytes()))
    assert len(message.to_bytes()) == most
    return message


class Outgrown:
    """With dead letters in a storage. Engines that take many MiB are told to take less: to fill them takes minutes."""

    most: int | None = 200_000
    storage = True

    @pytest.fixture
    def bus(self, url: str) -> Bus:
        return Bus(url)

    async def test_a_message_that_outgrows_the_engine_at_its_retry_is_a_dead_letter(self, bus: Bus) -> None:
        jobs = bus.queue(fresh("jobs"), bytes)  # not every engine's URL keeps it apart from other tests'
        attempts: list[int] = []

        @jobs.handler(retry=fixed(0.1, attempts=2))
        async def handle(payload: bytes, message: Message) -> None:
            attempts.append(message.retried)
            if payload != b"small" or not message.retried:
                raise ValueError("every time")

        async with bus.handling():
            message = largest(self.most or bus.driver.caps.max_body)
            await bus.send(jobs, message)
            await jobs.send(b"small")
            async with asyncio.timeout(30.0):
                while not await self.kept(bus, jobs.name, message):
                    await asyncio.sleep(0.05)
                while 1 not in attempts:
                    await asyncio.sleep(0.05)
                while any(await self.left(bus, jobs.name)):
                    await asyncio.sleep(0.05)
        assert attempts == [0, 0, 1]

    async def kept(self, bus: Bus, queue: str, message: Message) -> bool:
        if not self.storage:
            return [one.body for one in await bus.driver.fetch(f"{queue}.dead", 1, 0.0, 30.0)] == [message.to_bytes()]
        assert bus.dead_letters is not None
        letters = await bus.dead_letters.find(queue)
        assert all("every time; it cannot be retried: " in letter.reason for letter in letters)
        return [letter.body for letter in letters] == [message.to_bytes()]

    async def left(self, bus: Bus, queue: str) -> list[int | None]:
        stats = await bus.driver.stats(queue)
        return [stats.ready, stats.in_flight, stats.delayed]


class TestMemory(Outgrown):
    @pytest.fixture
    def url(self, monkeypatch: Patch) -> str:
        monkeypatch.setattr(memory, "CAPS", dataclasses.replace(memory.CAPS, max_body=self.most))
        return f"memory://{new_id()}"


class TestSqlite(Outgrown):
    @pytest.fixture
    def url(self, tmp_path: Path, monkeypatch: Patch) -> str:
        monkeypatch.setattr(sqlite.LIMITS, "caps", dataclasses.replace(sqlite.CAPABILITIES, max_body=self.most))
        return f"sqlite:///{tmp_path}/bus.db"


class TestPostgresql(Outgrown):
    @pytest.fixture
    def url(self, postgresql_server: PostgresqlServer, monkeypatch: Patch) -> str:
        less = dataclasses.replace(postgresql.CAPABILITIES, max_body=self.most)
        monkeypatch.setattr(postgresql.LIMITS, "caps", less)
        return postgresql_server.schema()


class TestMysql(Outgrown):
    @pytest.fixture
    def url(self, mariadb_server: MariadbServer, monkeypatch: Patch) -> str:
        monkeypatch.setattr(mysql, "LARGEST_BODY", self.most)
        return mariadb_server.prefix()


class TestRedis(Outgrown):
    @pytest.fixture
    def url(self, redis_server: RedisServer, monkeypatch: Patch) -> str:
        monkeypatch.setattr(redis.LIMITS, "caps", dataclasses.replace(redis.CAPABILITIES, max_body=self.most))
        return redis_server.url()


class TestRabbitmqWithAStorage(Outgrown):
    @pytest.fixture
    def bus(self, rabbitmq_server: RabbitmqServer, tmp_path: Path, monkeypatch: Patch) -> Bus:
        less = dataclasses.replace(rabbitmq.CAPABILITIES, max_body=self.most)
        monkeypatch.setattr(rabbitmq, "CAPABILITIES", less)
        return Bus(rabbitmq_server.url(settle=0), storage=f"sqlite:///{tmp_path}/bus.db")


class TestNats(Outgrown):
    """At the server's own limit, with dead letters in a queue: too large for a letter, it goes there as it is."""

    most = None
    storage = False

    @pytest.fixture
    def bus(self, nats_server: NatsServer) -> Bus:
        return Bus(nats_server.prefix(), dedupe=None, dead_letters="queue")

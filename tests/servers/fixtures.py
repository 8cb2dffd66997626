"""One private server of each kind for the whole test session, started when a test first asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .mariadb import MariadbServer
from .nats import NatsServer
from .postgresql import PostgresqlServer
from .rabbitmq import RabbitmqServer
from .redis import RedisServer

__all__ = [
    "mariadb_server",
    "mariadb_started",
    "nats_server",
    "nats_started",
    "postgresql_server",
    "postgresql_started",
    "rabbitmq_server",
    "rabbitmq_started",
    "redis_server",
    "redis_started",
]


@pytest.fixture(scope="session")
def mariadb_started() -> Iterator[MariadbServer]:
    server = MariadbServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def mariadb_server(mariadb_started: MariadbServer) -> MariadbServer:
    """A running server; up again, whatever the test before has done to it."""
    mariadb_started.thaw()
    mariadb_started.start()
    return mariadb_started


@pytest.fixture(scope="session")
def nats_started() -> Iterator[NatsServer]:
    server = NatsServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def nats_server(nats_started: NatsServer) -> NatsServer:
    """A running server; up again, whatever the test before has done to it."""
    nats_started.thaw()
    nats_started.start()
    return nats_started


@pytest.fixture(scope="session")
def postgresql_started() -> Iterator[PostgresqlServer]:
    server = PostgresqlServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql_server(postgresql_started: PostgresqlServer) -> PostgresqlServer:
    """A running server; up again, whatever the test before has done to it."""
    postgresql_started.thaw()
    postgresql_started.start()
    return postgresql_started


@pytest.fixture(scope="session")
def redis_started() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_server(redis_started: RedisServer) -> RedisServer:
    """A running server; up again, whatever the test before has done to it."""
    redis_started.thaw()
    redis_started.start()
    return redis_started


@pytest.fixture(scope="session")
def rabbitmq_started() -> Iterator[RabbitmqServer]:
    server = RabbitmqServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def rabbitmq_server(rabbitmq_started: RabbitmqServer) -> RabbitmqServer:
    """A running server; up again, whatever the test before has done to it."""
    rabbitmq_started.thaw()
    rabbitmq_started.start()
    return rabbitmq_started

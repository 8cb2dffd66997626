"""One cluster of each kind for the whole test session, started when a test first asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers.cluster_nats import NatsCluster
from tests.servers.cluster_postgresql import PostgresqlPair
from tests.servers.cluster_rabbitmq import RabbitmqCluster
from tests.servers.cluster_redis import RedisSentinels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "clusters" in item.path.parts:
            item.add_marker("server")


@pytest.fixture(scope="session")
def nats_cluster_started() -> Iterator[NatsCluster]:
    cluster = NatsCluster()
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def nats_cluster(nats_cluster_started: NatsCluster) -> NatsCluster:
    """A whole cluster, whatever the test before has done to it."""
    nats_cluster_started.start()
    return nats_cluster_started


@pytest.fixture(scope="session")
def postgresql_pair_started() -> Iterator[PostgresqlPair]:
    cluster = PostgresqlPair()
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def postgresql_pair(postgresql_pair_started: PostgresqlPair) -> PostgresqlPair:
    """A whole pair, whatever the test before has done to it."""
    postgresql_pair_started.start()
    return postgresql_pair_started


@pytest.fixture(scope="session")
def rabbitmq_cluster_started() -> Iterator[RabbitmqCluster]:
    cluster = RabbitmqCluster()
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def rabbitmq_cluster(rabbitmq_cluster_started: RabbitmqCluster) -> RabbitmqCluster:
    """A whole cluster, whatever the test before has done to it."""
    rabbitmq_cluster_started.start()
    return rabbitmq_cluster_started


@pytest.fixture(scope="session")
def redis_sentinels_started() -> Iterator[RedisSentinels]:
    cluster = RedisSentinels()
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def redis_sentinels(redis_sentinels_started: RedisSentinels) -> RedisSentinels:
    """A whole cluster, whatever the test before has done to it."""
    redis_sentinels_started.start()
    return redis_sentinels_started

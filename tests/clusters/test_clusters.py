"""A cluster whose leader is killed and frozen under load loses nothing that was confirmed, and work goes on.

Senders and handlers are processes of their own; the judge is their ledgers. The long forms kill twenty times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.clusters.storm import RECOVERY, Found, Storm
from tests.servers.cluster import Cluster
from tests.servers.cluster_nats import NatsCluster
from tests.servers.cluster_postgresql import PostgresqlPair
from tests.servers.cluster_rabbitmq import RabbitmqCluster
from tests.servers.cluster_redis import RedisSentinels
from tests.servers.postgresql import PostgresqlServer

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]  # a cluster's start takes up to half a minute

SHORT = ("kill", "freeze")
LONG = ("kill", "freeze", "kill") * 10
HOW_LONG = [
    pytest.param(SHORT, id="short"),
    pytest.param(LONG, id="long", marks=[pytest.mark.long, pytest.mark.timeout(0)]),
]
ONLY_LONG = HOW_LONG[1:]
"""Of clusters that need more than some seconds for each blow."""
Begin = Callable[..., Storm]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    storms: list[Storm] = []

    def begun(cluster: Cluster, url: str, storage: str = "", handler: str = "handle") -> Storm:
        storms.append(storm := Storm(cluster, tmp_path, url, storage, handler))
        return storm

    yield begun
    for storm in storms:
        storm.abandon()


def weathered(
    storm: Storm,
    blows: tuple[str, ...],
    *,
    frozen: float = RECOVERY,
    done: Callable[[], Sequence[str]] | None = None,
) -> Found:
    """The storm, from its start to its end. `frozen`: seconds in which a job is handled again after a freeze."""
    storm.start()
    for blow in blows:
        storm.blow(blow)
    found = storm.end(done)
    print(f"\n{found}")
    assert not found.lost, f"{found}\n{storm.errors()}"
    assert found.confirmed > 10 * len(blows), found
    busy = max(1.0, os.getloadavg()[1] / (os.cpu_count() or 1))  # what others do on this machine slows all of it
    within = {"kill": RECOVERY * busy, "freeze": frozen * busy}
    late = [seconds for blow, seconds in zip(blows, found.recoveries, strict=True) if seconds > within[blow]]
    assert not late, f"{found}\n{storm.errors()}"
    return found


@pytest.mark.parametrize("blows", HOW_LONG)
def test_rabbitmq_with_three_nodes_loses_nothing_and_doubles_nothing(
    rabbitmq_cluster: RabbitmqCluster, postgresql_server: PostgresqlServer, begin: Begin, blows: tuple[str, ...]
) -> None:
    url = rabbitmq_cluster.url(heartbeat=3)
    found = weathered(begin(rabbitmq_cluster, url, postgresql_server.schema()), blows)
    assert not found.doubled, found


@pytest.mark.parametrize("blows", HOW_LONG)
def test_nats_with_three_servers_loses_nothing_and_doubles_nothing(
    nats_cluster: NatsCluster, postgresql_server: PostgresqlServer, begin: Begin, blows: tuple[str, ...]
) -> None:
    found = weathered(begin(nats_cluster, nats_cluster.url(), postgresql_server.schema()), blows)
    assert not found.doubled, found


@pytest.mark.parametrize("blows", ONLY_LONG)
def test_postgresql_with_a_synchronous_standby_loses_nothing_and_doubles_nothing_within(
    postgresql_pair: PostgresqlPair, begin: Begin, blows: tuple[str, ...]
) -> None:
    postgresql_pair.sql("DROP TABLE IF EXISTS effect; CREATE TABLE effect (id text)")

    def effects() -> list[str]:
        return postgresql_pair.sql("SELECT id FROM effect").splitlines()

    found = weathered(begin(postgresql_pair, postgresql_pair.url(timeout=5), handler="within"), blows, done=effects)
    assert not found.doubled, found


@pytest.mark.parametrize("blows", HOW_LONG)
def test_redis_with_replicas_waited_for_loses_nothing(
    redis_sentinels: RedisSentinels, begin: Begin, blows: tuple[str, ...]
) -> None:
    found = weathered(begin(redis_sentinels, redis_sentinels.url(replicas=1)), blows)
    assert not found.lost, found


def twenty_at_once(storm: Storm, folder: Path) -> None:
    """Twenty buses of four processes open, declare and send, all at the same time."""
    processes = [storm.worker("declare", f"process{at}") for at in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4, storm.errors()
    assert len(set((folder / "confirmed").read_text().split())) == 20


def test_twenty_buses_that_open_and_declare_at_once_meet_no_error_on_rabbitmq(
    rabbitmq_cluster: RabbitmqCluster, postgresql_server: PostgresqlServer, begin: Begin, tmp_path: Path
) -> None:
    url = rabbitmq_cluster.url()
    twenty_at_once(begin(rabbitmq_cluster, url, postgresql_server.schema()), tmp_path)


def test_twenty_buses_that_open_and_declare_at_once_meet_no_error_on_nats(
    nats_cluster: NatsCluster, postgresql_server: PostgresqlServer, begin: Begin, tmp_path: Path
) -> None:
    twenty_at_once(begin(nats_cluster, nats_cluster.url(), postgresql_server.schema()), tmp_path)


def test_twenty_buses_that_open_and_declare_at_once_meet_no_error_on_postgresql(
    postgresql_pair: PostgresqlPair, begin: Begin, tmp_path: Path
) -> None:
    twenty_at_once(begin(postgresql_pair, postgresql_pair.url()), tmp_path)


def test_twenty_buses_that_open_and_declare_at_once_meet_no_error_on_redis(
    redis_sentinels: RedisSentinels, begin: Begin, tmp_path: Path
) -> None:
    twenty_at_once(begin(redis_sentinels, redis_sentinels.url(replicas=1)), tmp_path)

"""A Redis or Valkey master, its two replicas, and three Sentinels that agree by two."""

from __future__ import annotations

import itertools

from . import HOST
from .cluster import Cluster, until
from .redis import PASSWORD, RedisServer, SentinelServer

__all__ = ["RedisSentinels"]


class _Node(RedisServer):
    name = "redis-node"

    def follow(self, master: RedisServer | None) -> None:
        """What it begins as, as Sentinel would have written it into its file."""
        self._options = () if master is None else ("--replicaof", f"{HOST} {master.port}")


class _Sentinel(SentinelServer):
    quorum = 2
    down_after = 1500
    failover_timeout = 1000


class RedisSentinels(Cluster):
    """`master` leads at first; `url()` asks the Sentinels who does."""

    def __init__(self) -> None:
        self.nodes = [_Node() for _ in range(3)]
        for node in self.nodes[1:]:
            node.follow(self.nodes[0])
        self.sentinels = [_Sentinel(self.nodes[0]) for _ in range(3)]
        self._numbers = itertools.count(1)

    def begin(self) -> None:
        for server in (*self.nodes, *self.sentinels):
            server.start()
        until(self._agreed, "the Sentinels do not know each other")

    def _agreed(self) -> bool:
        return all(sentinel.ask("SENTINEL", "SENTINELS", "mymaster") == "*2" for sentinel in self.sentinels)

    def leader(self) -> _Node:
        """Who the Sentinels say it is."""
        ports = {sentinel.talk("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster") for sentinel in self.sentinels}
        if len(ports) > 1:
            raise LookupError("the Sentinels do not agree")
        (said,) = ports
        return next(node for node in self.nodes if str(node.port) in said.split())

    def whole(self) -> bool:
        leader = self.leader()
        others = [node for node in self.nodes if node is not leader]
        told = leader.talk("INFO", "replication")
        return (
            "role:master" in told
            and all(f"port={other.port},state=online" in told for other in others)
            and all("master_link_status:up" in other.talk("INFO", "replication") for other in others)
            and all(self._could_fail_over(sentinel) for sentinel in self.sentinels)
        )

    @staticmethod
    def _could_fail_over(sentinel: _Sentinel) -> bool:
        """Whether it knows of two replicas in good health."""
        said = sentinel.talk("SENTINEL", "REPLICAS", "mymaster").split("\n")
        return said.count("slave") == 4  # flags, and the role that each tells

    def heal(self) -> None:
        for node in self.nodes:
            node.thaw()
        if not all(node.up for node in self.nodes):
            leader = self.leader()
            for node in self.nodes:
                node.follow(None if node is leader else leader)
                node.start()
        until(self.whole, "the replicas do not follow")

    def remove(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.remove()

    def url(self, **options: object) -> str:
        """The URL of the three Sentinels, with a fresh prefix."""
        given = {"sentinel_password": PASSWORD, "prefix": f"c{next(self._numbers)}"} | options
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"redis+sentinel://:{PASSWORD}@{hosts}/mymaster?{query}"

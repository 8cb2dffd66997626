"""Three RabbitMQ nodes, one cluster: a queue's messages lie on all three."""

from __future__ import annotations

import itertools
import os
from urllib.parse import quote

from . import HOST
from .cluster import Cluster, all_at_once
from .rabbitmq import PASSWORD, RabbitmqServer

__all__ = ["RabbitmqCluster"]


class _Node(RabbitmqServer):
    """One of them."""

    name = "rabbitmq-node"
    patience = 90.0

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[_Node] = []

    def prepare(self) -> None:
        super().prepare()
        with open(self.folder / "rabbitmq.conf", "a") as settings:
            settings.write("cluster_partition_handling = pause_minority\n")
            settings.write("net_ticktime = 5\n")  # seconds; 60 by default: a frozen node is waited for that long
            settings.write("cluster_formation.peer_discovery_backend = classic_config\n")
            for at, peer in enumerate(self.peers, 1):
                settings.write(f"cluster_formation.classic_config.nodes.{at} = {peer.node}\n")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("EASYBUSTESTS")
        cookie.chmod(0o400)
        if self._owner is not None:
            os.chown(cookie, self._owner.pw_uid, self._owner.pw_gid)

    @property
    def node(self) -> str:
        """Its name among Erlang's nodes."""
        return f"easybus-{self.port}@localhost"


class RabbitmqCluster(Cluster):
    """Each `url()` has a virtual host of its own."""

    def __init__(self) -> None:
        self.nodes = [_Node() for _ in range(3)]
        for node in self.nodes:
            node.peers = self.nodes
        self._numbers = itertools.count(1)

    def begin(self) -> None:
        self.nodes[0].start()  # the others join it
        all_at_once([node.start for node in self.nodes[1:]])

    def leader(self) -> _Node:
        """Who leads the queue `jobs` of the virtual host last made."""
        leaders = dict(self._queues("name", "leader"))
        return next(node for node in self.nodes if node.node == leaders["jobs"])

    def whole(self) -> bool:
        up = [node for node in self.nodes if node.up]
        return len(up) == len(self.nodes) and all(
            len(online.split(",")) == len(self.nodes) for name, online in self._queues("name", "online") if online
        )

    def _queues(self, *columns: str) -> list[list[str]]:
        node = next(node for node in self.nodes if node.up)
        said = node.control("-q", "--no-table-headers", "-p", self._vhost, "list_queues", *columns)
        return [line.split("\t") for line in said.splitlines() if "\t" in line]

    _vhost = "/"

    def url(self, **options: object) -> str:
        """The URL of all nodes, with a fresh virtual host."""
        self._vhost = f"v{next(self._numbers)}"
        node = self.nodes[0]
        node.control("-q", "add_vhost", self._vhost)
        node.control("-q", "set_permissions", "-p", self._vhost, "bus", ".*", ".*", ".*")
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        query = "&".join(f"{name}={quote(str(value))}" for name, value in options.items())
        return f"amqp://bus:{PASSWORD}@{hosts}/{self._vhost}" + (f"?{query}" if query else "")

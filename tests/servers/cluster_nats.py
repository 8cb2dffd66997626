"""Three NATS servers with JetStream, joined by routes."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

from . import HOST, free_port
from .cluster import Cluster, until
from .nats import PASSWORD, USER, NatsServer

__all__ = ["NatsCluster"]


class _Node(NatsServer):
    """One of them."""

    name = "nats-node"

    def __init__(self) -> None:
        super().__init__()
        self.monitor, self.route = free_port(), free_port()
        self.peers: list[_Node] = []

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / "server.conf"
        settings = json.loads(path.read_text())
        settings["server_name"] = self.server_name
        settings["http"] = f"{HOST}:{self.monitor}"
        settings["cluster"] = {
            "name": "easybus",
            "listen": f"{HOST}:{self.route}",
            "routes": [f"nats://{HOST}:{peer.route}" for peer in self.peers],
        }
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False))

    @property
    def server_name(self) -> str:
        return f"n{self.port}"

    def ask(self, path: str) -> Any:
        """What its monitoring page says."""
        connection = http.client.HTTPConnection(HOST, self.monitor, timeout=2.0)
        with contextlib.closing(connection):
            connection.request("GET", f"/{path}")
            return json.loads(connection.getresponse().read())


class NatsCluster(Cluster):
    """Streams have three copies where the URL says `replicas=3`."""

    def __init__(self) -> None:
        self.nodes = [_Node() for _ in range(3)]
        for node in self.nodes:
            node.peers = self.nodes
        self._number = 0

    def begin(self) -> None:
        for node in self.nodes:
            node.spawn()  # none is ready before two are there
        for node in self.nodes:
            until(node.answers, "a node does not answer")

    def leader(self) -> _Node:
        """Who leads the stream of the queue `jobs`, of the prefix last made."""
        for node in self.nodes:
            for stream in self._streams(node):
                if stream["name"] == f"c{self._number}_jobs" and self._leads(node, stream):
                    return node
        raise LookupError("the stream of `jobs` has no leader")

    def whole(self) -> bool:
        if not all(node.ask("healthz").get("status") == "ok" for node in self.nodes):
            return False
        streams = [(node, stream) for node in self.nodes for stream in self._streams(node)]
        led = {stream["name"]: stream["cluster"]["replicas"] for node, stream in streams if self._leads(node, stream)}
        return len(led) == len({stream["name"] for _, stream in streams}) and all(
            replica["current"] for replicas in led.values() for replica in replicas
        )

    @staticmethod
    def _leads(node: _Node, stream: Any) -> bool:
        """Only the leader knows who has caught up."""
        return stream["cluster"].get("leader") == node.server_name

    def _streams(self, node: _Node) -> list[Any]:
        accounts = node.ask("jsz?accounts=1&streams=1").get("account_details") or []
        return [stream for account in accounts for stream in account.get("stream_detail") or []]

    def url(self, **options: object) -> str:
        """The URL of all nodes, with a fresh prefix."""
        self._number += 1
        given = {"prefix": f"c{self._number}", "replicas": 3} | options
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"nats://{USER}:{PASSWORD}@{hosts}?{query}"

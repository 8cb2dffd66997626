"""RabbitMQ goes through what every engine's server goes through."""

from __future__ import annotations

import pytest
from tests.servers.outages import ServerOutages
from tests.servers.rabbitmq import RabbitmqServer


class TestOutages(ServerOutages):
    @pytest.fixture
    def server(self, rabbitmq_server: RabbitmqServer) -> RabbitmqServer:
        return rabbitmq_server

    @pytest.fixture
    def url(self, server: RabbitmqServer) -> str:
        """With the wait after a declaration: what is confirmed in a queue that was just made is to outlive a kill."""
        return server.url(heartbeat=2, timeout=3)

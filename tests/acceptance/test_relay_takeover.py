"""What a sender has committed is on its way within two seconds of its death, wherever it was killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import Bus

CHILD = Path(__file__).with_name("relay_child.py")


@pytest.mark.alone
@pytest.mark.parametrize("where", ["committed", "outbox.claimed", "outbox.published"])
async def test_a_committed_message_is_on_its_way_within_two_seconds_of_its_senders_death(
    postgresql_server: PostgresqlServer, where: str
) -> None:
    url = postgresql_server.schema()
    bus = Bus(url, service="shop")
    orders = bus.queue("orders", int)
    arrived: set[int] = set()

    @orders.handler()
    async def note(order: int) -> None:
        arrived.add(order)

    async with bus.handling():
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), url, where, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await child.communicate()
        died = time.monotonic()
        assert child.returncode == -signal.SIGKILL
        committed = {int(line) for line in said.split()}
        while not committed <= arrived or await bus.outboxes[0].find():
            assert time.monotonic() < died + 20, f"{sorted(committed - arrived)} never arrived"
            await asyncio.sleep(0.01)
        took = time.monotonic() - died
    assert committed
    assert took < 2.0

"""One connection, several hosts: one of them accepts, and says nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitmqServer

from easybus.clock import SystemClock
from easybus.engines.contract import Driver, Publication
from easybus.engines.registry import create
from easybus.errors import Unavailable
from easybus.testing.driver_base import fresh, to_queue, topology


def through(proxy: Proxy, server: RabbitmqServer, **options: object) -> str:
    """The URL of a server that has two addresses, the proxy's first."""
    return server.url(**options).replace(f":{server.port}", f":{proxy.port},127.0.0.1:{server.port}")


async def published(driver: Driver, item: Publication) -> int | Exception | None:
    try:
        return (await driver.publish([item]))[0]
    except Unavailable as error:
        return error


async def test_a_host_that_says_nothing_is_passed_over_in_its_part_of_the_time(rabbitmq_server: RabbitmqServer) -> None:
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with Proxy(rabbitmq_server.port) as proxy:
        proxy.speaks.clear()
        engine = create(through(proxy, rabbitmq_server, timeout=4), SystemClock())
        began = time.monotonic()
        await engine.open()
        assert 1.9 < time.monotonic() - began < 3.9  # half of the time, and for the first of two connections only
        await engine.close()
        assert raised == []


async def test_after_a_host_fell_silent_the_next_one_is_asked_first(rabbitmq_server: RabbitmqServer) -> None:
    async with Proxy(rabbitmq_server.port) as proxy:
        engine = create(through(proxy, rabbitmq_server, heartbeat=2, timeout=40, settle=0), SystemClock())
        await engine.open()
        assert engine.driver is not None
        queue = fresh("queue")
        await topology(engine.driver, [queue])
        proxy.speaks.clear()
        async with asyncio.timeout(9):  # the server itself gives a silent handshake up after 10 s
            while isinstance(await published(engine.driver, to_queue(queue, b"x")), Unavailable):
                await asyncio.sleep(0.05)
        await engine.close()

"""Servers that are away, killed, frozen, cut off, or not what is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator

import pytest
from tests.servers import HOST, free_port
from tests.servers.nats import PASSWORD, USER, NatsServer
from tests.servers.outages import ServerOutages
from tests.servers.proxy import Proxy
from tests.servers.urls import at
from tests.unit.engines.nats.conftest import Opener

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, DeclareQueue, Driver, Move, Nack, Publication, Settled
from easybus.engines.nats import create
from easybus.engines.nats.api import SCHEDULES
from easybus.engines.nats.driver import NatsDriver
from easybus.engines.nats.engine import NatsEngine
from easybus.errors import BadDelay, ConfigurationError, EasybusError, NotOpen, TooLarge, Unavailable
from easybus.testing.driver_base import drain, publish, receive, to_queue, topology


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as proxy:
        yield proxy


async def until_it_works(driver: Driver, queue: str, body: bytes, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while True:
            try:
                await publish(driver, [to_queue(queue, body)])
                return
            except (Unavailable, AssertionError):
                await asyncio.sleep(0.05)


async def test_restarts_in_the_middle_lose_nothing(own_server: NatsServer, opened: Opener) -> None:
    url = own_server.prefix()
    sending, receiving = await opened(url), await opened(url)
    await topology(sending, ["emails"])
    sent = [b"%d" % number for number in range(300)]
    got: set[bytes] = set()

    async def consume() -> None:
        while len(got) < len(sent):
            try:
                batch = await receiving.fetch("emails", 20, 1.0, 2.0)
                got.update(one.body for one in batch)
                await receiving.settle("emails", [Ack(one) for one in batch])  # UNKNOWN where the server went meanwhile
            except EasybusError:
                await asyncio.sleep(0.05)

    async with asyncio.timeout(40.0), asyncio.TaskGroup() as group:
        group.create_task(consume())
        for at in range(0, len(sent), 20):
            if at in (100, 200):
                await asyncio.to_thread(own_server.restart)
            for body in sent[at : at + 20]:
                await until_it_works(sending, "emails", body)
    assert got == set(sent)


async def test_a_connection_cut_anywhere_in_a_publish_loses_nothing_and_doubles_nothing(
    proxy: Proxy, nats_server: NatsServer, opened: Opener, url: str
) -> None:
    driver = await opened(url.replace(f":{nats_server.port}", f":{proxy.port}"))
    direct = await opened(url)
    await topology(direct, ["emails"])
    sent: list[bytes] = []
    for number in range(25):
        send = Publication(to_topic=False, name="emails", body=b"x" * 200 + b"%d" % number, dedupe_id=f"id {number}")
        sent.append(send.body)
        proxy.budget = 1 + number * 20
        async with asyncio.timeout(10.0):
            while True:
                try:
                    (result,) = await driver.publish([send])
                except Unavailable as error:
                    result = error
                if not isinstance(result, Exception):
                    break
                assert isinstance(result, Unavailable)
                await asyncio.sleep(0.02)
    proxy.budget = None
    assert await drain(direct, "emails") == sorted(sent)


async def test_of_several_hosts_one_that_answers_is_used(nats_server: NatsServer, opened: Opener) -> None:
    url = nats_server.prefix().replace(f"@{HOST}", f"@{HOST}:{free_port()},{HOST}")
    driver = await opened(url)
    await driver.declare([DeclareQueue("emails")])


async def test_a_server_without_jetstream_says_how_to_start_it(opened: Opener) -> None:
    server = NatsServer(jetstream=False)
    try:
        await asyncio.to_thread(server.start)
        with pytest.raises(ConfigurationError, match="start the server with -js"):
            await opened(server.url())
    finally:
        server.remove()


async def test_a_message_over_max_payload_is_too_large_and_fails_alone(own_server: NatsServer, opened: Opener) -> None:
    driver = await opened(own_server.prefix())
    assert driver.caps.max_body == (1 << 20) - 1024
    await topology(driver, ["emails"])
    long = "é" * 500
    kept, refused, small = await driver.publish(
        [
            Publication(to_topic=False, name="emails", body=b"x" * driver.caps.max_body, delay=5.0, dedupe_id=long),
            to_queue("emails", b"x" * (driver.caps.max_body + 1)),
            to_queue("emails", b"small"),
        ]
    )
    assert (kept, small) == (1, 1)
    assert isinstance(refused, TooLarge)
    assert await drain(driver, "emails") == [b"small"]


@pytest.fixture(params=["of the system", "by its word"])
async def old_url(request: pytest.FixtureRequest, nats_server: NatsServer) -> AsyncIterator[str]:
    """An old server: the one that Debian has, and today's that says it is one, which is all that the engine looks at.
    Where the system's is missing or new, the second stands for both: package indexes have old ones, but tests are not
    to need a network."""
    if request.param == "of the system":
        old = _system_server()
        if old is None:
            pytest.skip("the system's nats-server is missing, or new: it is tried by its word")
        server = NatsServer(program=old)
        try:
            await asyncio.to_thread(server.start)
            yield f"nats://{USER}:{PASSWORD}@{HOST}:{server.port}"
        finally:
            server.remove()
    else:
        # As many characters as there are, which the proxy's frames need: 2.15.1 becomes 2.09.0.
        async with Proxy(nats_server.port, says=(rb'(?<="version":"2\.)\d\d(?=\.)', b"09")) as proxy:
            yield at(nats_server.prefix(), f"{HOST}:{proxy.port}")


def _system_server() -> str | None:
    for path in ("/usr/sbin/nats-server", shutil.which("nats-server")):
        if path is not None and os.access(path, os.X_OK):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            found = re.search(r"v(\d+)\.(\d+)", said)
            if found is not None and (int(found[1]), int(found[2])) < SCHEDULES:
                return path
    return None


async def test_an_old_server_refuses_long_delays_and_keeps_all_else(old_url: str, opened: Opener) -> None:
    driver = await opened(old_url)
    assert isinstance(driver, NatsDriver)
    assert not driver._api.schedules
    await topology(driver, ["emails"])
    refused, short, now = await driver.publish(
        [to_queue("emails", b"long", 5.0), to_queue("emails", b"short", 0.3), to_queue("emails", b"now")]
    )
    assert isinstance(refused, BadDelay)
    assert "2.12" in str(refused)
    assert (short, now) == (1, 1)
    with pytest.raises(BadDelay, match=r"2\.12"):
        await driver.declare([DeclareQueue("slow", 5.0)])
    (one,) = await receive(driver, "emails", 1, ack=False)
    began = time.monotonic()
    assert await driver.settle("emails", [Move(one, b"retry", 1.2, "id")]) == [Settled.DONE]
    (other,) = await receive(driver, "emails", 1, ack=False)
    assert (one.body, other.body) == (b"now", b"short")
    assert await driver.settle("emails", [Nack(other, 0.4)]) == [Settled.DONE]
    await receive(driver, "emails", 2)
    assert time.monotonic() - began >= 1.195


async def test_a_fetch_that_begins_while_the_connection_is_made_anew_is_served_by_the_new_one(
    proxy: Proxy, nats_server: NatsServer, opened: Opener, url: str
) -> None:
    driver = await opened(url.replace(f":{nats_server.port}", f":{proxy.port}"))
    direct = await opened(url)
    await topology(direct, ["emails"])
    for number in range(15):
        fetching = asyncio.create_task(driver.fetch("emails", 1, 5.0, 30.0))
        for _ in range(number):
            await asyncio.sleep(0)
        if number % 3:
            await asyncio.sleep(0.0005 * number)
        proxy.cut()
        await publish(direct, [to_queue("emails", b"%d" % number)])
        found = []
        async with asyncio.timeout(8.0):
            while not found:
                try:
                    found = await fetching
                except Unavailable:
                    await asyncio.sleep(0.02)
                if not found:
                    fetching = asyncio.create_task(driver.fetch("emails", 1, 5.0, 30.0))
            settled = [Settled.UNKNOWN]
            while settled == [Settled.UNKNOWN]:
                try:
                    settled = await driver.settle("emails", [Ack(found[0])])
                except Unavailable:
                    await asyncio.sleep(0.02)
        assert found[0].body == b"%d" % number


async def test_tls_is_spoken_and_an_unknown_authority_is_refused(opened: Opener) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    server = NatsServer(tls=True)
    try:
        await asyncio.to_thread(server.start)
        driver = await opened(f"{server.url()}?tls_ca={server.certificate}")
        await topology(driver, ["emails"])
        await publish(driver, [to_queue("emails", b"x")])
        assert await drain(driver, "emails") == [b"x"]
        with pytest.raises(ConfigurationError, match="tls_ca"):
            await opened(server.url())
    finally:
        server.remove()


class TestOutages(ServerOutages):
    @pytest.fixture
    def server(self, own_server: NatsServer) -> NatsServer:
        return own_server

    @pytest.fixture
    def url(self, server: NatsServer) -> str:
        return server.prefix()


async def test_a_close_ends_a_reconnecting_whose_client_swallowed_the_cancellation(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create(url, SystemClock())
    assert isinstance(engine, NatsEngine)
    await engine.open()
    link, connect = engine._link, engine._link._connect
    reconnecting = asyncio.Event()

    async def swallowing(*, first: bool = False) -> None:
        reconnecting.set()
        with contextlib.suppress(asyncio.CancelledError):  # as where the answer comes at that moment
            await asyncio.Event().wait()
        await connect(first=first)

    monkeypatch.setattr(link, "_connect", swallowing)
    link._lose(link.wire)
    await reconnecting.wait()
    done, _ = await asyncio.wait([asyncio.create_task(engine.close())], timeout=8.0)
    assert done
    with pytest.raises(NotOpen):
        _ = link.wire

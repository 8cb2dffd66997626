"""Servers that are away, killed, frozen, cut off, or not what is needed."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator

import pytest
from tests.servers import HOST, free_port
from tests.servers.nats import PASSWORD, USER, NatsServer
from tests.servers.outages import ServerOutages
from tests.servers.proxy import Proxy
from tests.unit.engines.nats.conftest import Opener

from easybus.clock import SystemClock
from easybus.engines.contract import Ack, DeclareQueue, Driver, Move, Nack, Publication, Settled
from easybus.engines.registry import create
from easybus.errors import BadDelay, ConfigurationError, EasybusError, TooLarge, Unavailable
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


async def test_an_unreachable_server_is_unavailable_at_once(opened: Opener) -> None:
    async with asyncio.timeout(5.0):
        with pytest.raises(Unavailable, match="nats://127"):
            await opened(f"nats://{HOST}:{free_port()}?timeout=2")


async def test_of_several_hosts_one_that_answers_is_used(nats_server: NatsServer, opened: Opener) -> None:
    url = nats_server.prefix().replace(f"@{HOST}", f"@{HOST}:{free_port()},{HOST}")
    driver = await opened(url)
    await driver.declare([DeclareQueue("emails")])


async def test_a_wrong_password_is_a_configuration_error_that_shows_no_password(
    nats_server: NatsServer, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match="refuses this user") as raised:
        await opened(nats_server.url("canary-wrong"))
    shown, error = caplog.text, raised.value
    while error is not None:
        shown += str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert "canary" not in shown
    assert PASSWORD not in create(nats_server.url(), SystemClock()).url


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


async def test_an_old_server_refuses_long_delays_and_keeps_all_else(opened: Opener) -> None:
    old = next((path for path in ("/usr/sbin/nats-server", shutil.which("nats-server")) if path), None)
    if old is None or not os.access(old, os.X_OK):
        pytest.skip("there is no older NATS server here")
    server = NatsServer(program=old)
    try:
        await asyncio.to_thread(server.start)
        driver = await opened(f"nats://{USER}:{PASSWORD}@{HOST}:{server.port}")
        if driver._api.schedules:  # type: ignore[attr-defined]
            pytest.skip("this NATS server is not older than 2.12")
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
    finally:
        server.remove()


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

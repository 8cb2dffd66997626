"""What is found out when an engine is opened: servers that cannot keep the promises are refused, with what to do."""

import asyncio
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers import free_port
from tests.servers.redis import PASSWORD, RedisServer

from easybus import Bus
from easybus.clock import SystemClock
from easybus.engines.contract import (
    Ack,
    Claim,
    Claimed,
    DeadLetter,
    DeclareQueue,
    DeclareTopic,
    Half,
    Nack,
    Settled,
)
from easybus.engines.redis.engine import RedisEngine
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, EngineError, NotOpen, Refused, Unavailable
from easybus.testing.driver_base import drain, publish, to_queue, topology

Serve = Callable[..., RedisServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server with these settings."""
    servers: list[RedisServer] = []

    def serve(*options: str, program: str | None = None) -> RedisServer:
        server = RedisServer(*options, program=program)
        servers.append(server)
        server.start()
        return server

    yield serve
    for server in servers:
        server.remove()


async def opened(url: str) -> RedisEngine:
    engine = create(url, SystemClock())
    await engine.open()
    assert isinstance(engine, RedisEngine)
    return engine


async def refusal(url: str, kind: type[Exception]) -> str:
    engine = create(url, SystemClock())
    with pytest.raises(kind) as raised:
        await engine.open()
    await engine.close()
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


async def test_a_server_that_may_evict_is_refused_unless_that_is_accepted(serve: Serve) -> None:
    server = serve("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    says = await refusal(server.url(), ConfigurationError)
    assert "maxmemory-policy noeviction" in says
    assert "eviction=accept" in says
    engine = await opened(server.url(eviction="accept"))
    await engine.close()


@pytest.mark.parametrize(("sync", "durable"), [("always", True), ("everysec", False), ("no", False)])
async def test_durable_is_what_appendfsync_makes_it(redis_server: RedisServer, sync: str, durable: bool) -> None:
    redis_server.ask("CONFIG", "SET", "appendfsync", sync)
    try:
        engine = await opened(redis_server.url())
        assert engine.driver.caps.durable is durable
        told = await engine.durability()
        assert ["set appendfsync always" in sentence for sentence in told] == ([] if durable else [True])
        await engine.close()
    finally:
        redis_server.ask("CONFIG", "SET", "appendfsync", "always")


async def test_everysec_can_be_accepted_and_less_cannot(redis_server: RedisServer) -> None:
    found: dict[tuple[str, bool], tuple[bool, list[str]]] = {}
    try:
        for sync in ("everysec", "no"):
            redis_server.ask("CONFIG", "SET", "appendfsync", sync)
            for options in ({}, {"durability": "everysec"}):
                report = await Bus(redis_server.url(**options)).check()
                found[sync, bool(options)] = report.ok, [note.text for note in report.notes]
    finally:
        redis_server.ask("CONFIG", "SET", "appendfsync", "always")
    assert {case: ok for case, (ok, _) in found.items()} == {
        ("everysec", False): False, ("everysec", True): True, ("no", False): False, ("no", True): False,
    }  # fmt: skip
    assert ["accepts that" in note for note in found["everysec", True][1]] == [True]
    with pytest.raises(ConfigurationError, match="durability=everysec"):
        create(redis_server.url(durability="sometimes"), SystemClock())


async def test_a_server_without_an_append_only_file_is_warned_of(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("--appendonly", "no")
    with caplog.at_level(logging.WARNING, "easybus"):
        engine = await opened(server.url())
    (told,) = await engine.durability()
    await engine.close()
    assert "set appendonly yes" in told
    assert not engine.driver.caps.durable
    assert "appendonly yes" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_cluster_is_refused(serve: Serve) -> None:
    server = serve("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    assert "redis+sentinel://" in await refusal(server.url(), ConfigurationError)


async def test_a_replica_is_refused_with_the_masters_address_in_mind(serve: Serve, redis_server: RedisServer) -> None:
    server = serve("--replicaof", f"127.0.0.1 {redis_server.port}")
    assert "give the master's address" in await refusal(server.url(), Unavailable)


async def test_a_missing_password_is_said(redis_server: RedisServer) -> None:
    without = redis_server.url().replace(f":{PASSWORD}@", "")
    assert "missing: mend the URL" in await refusal(without, ConfigurationError)


async def test_a_user_without_channels_and_info_is_told_what_is_missing_and_can_work(
    redis_server: RedisServer,
) -> None:
    redis_server.ask("ACL", "SETUSER", "shop", "on", ">secret", "~shop:*", "resetchannels", "+@all", "-info", "-config")
    url = f"redis://shop:secret@127.0.0.1:{redis_server.port}?prefix=shop"
    says = await refusal(url, ConfigurationError)
    assert "+info" in says
    engine = await opened(f"{url}&eviction=accept")
    try:
        assert not engine.driver.caps.durable  # it cannot be seen
        await topology(engine.driver, ["jobs"])
        waiting = asyncio.create_task(engine.driver.fetch("jobs", 1, 5.0, 30.0))
        await asyncio.sleep(0.1)
        await publish(engine.driver, [to_queue("jobs", b"polled")])
        async with asyncio.timeout(2):
            assert [one.body for one in await waiting] == [b"polled"]
    finally:
        await engine.close()
    foreign = create(f"{url.replace('prefix=shop', 'prefix=other')}&eviction=accept", SystemClock())
    await foreign.open()
    with pytest.raises(Refused, match="lacks rights"):
        await topology(foreign.driver, ["jobs"])
    await foreign.close()


async def test_the_rights_that_the_docs_name_are_enough_for_everything(redis_server: RedisServer) -> None:
    page = (Path(__file__).parents[4] / "docs" / "engines.md").read_text()
    needed, visible = re.findall(r"`([^`]*\+info|\+config[^`]*)`", page.partition("**Rights.**")[2])[:2]
    redis_server.ask("ACL", "SETUSER", "app", "reset", "on", ">secret", *needed.split(), visible)
    engine = await opened(f"redis://app:secret@127.0.0.1:{redis_server.port}")
    try:
        assert engine.driver.caps.durable
        driver = engine.driver
        await topology(driver, ["jobs"], topic="orders")
        await publish(driver, [to_queue("jobs", b"1"), to_queue("jobs", b"2", 0.01)])
        assert await driver.fetch("jobs", 1, 0.0, 30.0) != []
        assert (await driver.stats("jobs")).in_flight == 1
        assert await driver.purge("jobs") == 1
        (claimed,) = await engine.idempotency.claim([Claim("jobs", "1", b"d", 60.0)])
        assert isinstance(claimed, Claimed)
        assert await engine.idempotency.renew([claimed.token], 60.0) == [True]
        assert await engine.idempotency.complete([(claimed.token, 60.0), ("no token", 1.0)]) == [True, False]
        assert await engine.idempotency.lookup("jobs", "1") == "done"
        key = await engine.dead_letters.store(DeadLetter(queue="jobs", body=b"dead", reason="why"))
        assert await engine.dead_letters.edit("jobs", key, b"mended") is not None
        (letter,) = await engine.dead_letters.find()
        assert await engine.dead_letters.mark_for_retry("jobs", [letter.key]) == 1
        (letter,) = await engine.dead_letters.fetch("jobs", 1, 30.0)
        assert await engine.dead_letters.remove("jobs", letter.key, letter.fence)
        token, _ = await engine.transactions.store(Half(id="h", service="s", topic="t", body=b"half"), 0.0)
        assert await engine.transactions.postpone("h", token, 0.0, checked=True, parked=False)
        (half,) = await engine.transactions.claim_due([("s", "t")], 1, 30.0)
        assert await engine.transactions.remove("h", half.token)
        assert await driver.fetch("jobs", 1, 0.1, 30.0) == []
        assert engine.link().wakes.heard(engine.link().names.queue("jobs") + ":w")
        await driver.drop([DeclareTopic("orders"), DeclareQueue("jobs")])
    finally:
        await engine.close()


async def test_over_tls_the_servers_certificate_is_checked(serve: Serve, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, to make a certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    secure, options = free_port(), ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no", "--tls-port", str(secure)]
    try:
        serve(*options, program=shutil.which("redis-server"))  # the wheel's Valkey is built without TLS
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: {error}")
    url = f"rediss://:{PASSWORD}@localhost:{secure}?prefix=tls"
    engine = await opened(f"{url}&ca={certificate}")
    await topology(engine.driver, ["jobs"])
    await publish(engine.driver, [to_queue("jobs", b"1")])
    assert await drain(engine.driver, "jobs") == [b"1"]
    await engine.close()
    assert "certificate" in (await refusal(url, ConfigurationError)).lower()  # nobody vouches for it
    await refusal(f"{url.replace('localhost', '127.0.0.1')}&ca={certificate}", ConfigurationError)
    engine = await opened(f"{url.replace('localhost', '127.0.0.1')}&ca={certificate}&verify=ca")
    await engine.close()


async def test_a_closed_engine_says_so_and_opens_again(engine: RedisEngine) -> None:
    await topology(engine.driver, ["jobs"])
    await engine.close()
    with pytest.raises(NotOpen):
        await engine.driver.stats("jobs")
    await engine.open()
    await engine.open()
    assert await drain(engine.driver, "jobs") == []


async def test_a_full_server_refuses_new_messages_and_lets_old_ones_be_acked(serve: Serve) -> None:
    server = serve("--maxmemory", "6mb", "--maxmemory-policy", "noeviction", "--appendfsync", "no")
    engine = await opened(server.url())
    try:
        await topology(engine.driver, ["jobs"])
        kept, full = 0, None
        while full is None and kept < 100:
            try:
                await publish(engine.driver, [to_queue("jobs", bytes(200_000))])
                kept += 1
            except EngineError as error:
                full = error
        assert isinstance(full, Unavailable)
        assert "raise maxmemory" in str(full)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        held = await engine.driver.fetch("jobs", 5, 1.0, 30.0)
        server.ask("CONFIG", "SET", "maxmemory", "1mb")
        settlements = [Nack(held[0]), *(Ack(one) for one in held[1:])]
        assert await engine.driver.settle("jobs", settlements) == [Settled.DONE] * len(held)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert len(await drain(engine.driver, "jobs")) == kept - len(held) + 1
    finally:
        await engine.close()


async def test_a_call_whose_client_swallows_the_cancellation_is_cancelled_all_the_same(
    engine: RedisEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def swallowing(*_: object) -> bytes:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return b"the answer came at the same time"
        raise AssertionError("it was not cancelled")

    monkeypatch.setattr(engine.link(), "_execute", swallowing)
    task = asyncio.create_task(engine.link().command("PING"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_doctor_and_check_say_that_a_server_may_evict(redis_server: RedisServer) -> None:
    assert redis_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru") == "+OK"
    try:
        command = [sys.executable, "-m", "easybus.cli", "doctor"]
        doctor = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "EASYBUS_URL": redis_server.url()}, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await doctor.communicate()
        assert doctor.returncode == 1
        assert b"set maxmemory-policy noeviction, or write ?eviction=accept" in said
        refused = await Bus(redis_server.url()).check()
        accepted = await Bus(redis_server.url(eviction="accept")).check()
        for report, says in ((refused, "set maxmemory-policy noeviction"), (accepted, "throws messages away")):
            assert not report.ok
            assert [says in found.text for found in report.contradictions].count(True) == 1
    finally:
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

"""Files of credentials and nkeys: what is none is refused before anybody is asked; one that changes is read anew."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import nkeys
import pytest
from tests.servers import HOST, free_port
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy
from tests.unit.engines.nats.conftest import Opener

from easybus.clock import SystemClock
from easybus.engines.contract import DeclareQueue
from easybus.engines.nats.driver import NatsDriver
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, Unavailable

SEED = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()
TOKEN = "a.jwt.of-somebody"
TOKEN_LINES = f"-----BEGIN NATS USER JWT-----\n{TOKEN}\n------END NATS USER JWT------\n"
SEED_LINES = f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"


@pytest.mark.parametrize(
    ("option", "content", "says"),
    [
        ("creds", None, "cannot be read: No such file"),
        ("creds", "", "BEGIN NATS USER JWT"),
        ("creds", SEED_LINES, "BEGIN NATS USER JWT"),
        ("creds", TOKEN_LINES, "BEGIN USER NKEY SEED"),
        ("creds", TOKEN_LINES + SEED_LINES.partition("\n")[0], "BEGIN USER NKEY SEED"),
        ("creds", TOKEN_LINES + SEED_LINES.replace(SEED, SEED[:-9]), "BEGIN USER NKEY SEED"),
        ("nkey", None, "cannot be read: No such file"),
        ("nkey", "", "seed, which begins with SU"),
        ("nkey", SEED[:-9], "seed, which begins with SU"),
        ("nkey", "ü\ud800", "seed, which begins with SU"),
    ],
    ids=lambda given: given if given in ("creds", "nkey") else "",
)
async def test_a_file_that_lets_nobody_in_is_refused_by_its_option_and_shown_nowhere(
    tmp_path: Path, option: str, content: str | None, says: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content, "utf-8", "surrogatepass")
    engine = create(f"nats://{HOST}:{free_port()}?{option}={path}", SystemClock())
    with pytest.raises(ConfigurationError, match=f"{option}={path}.*{says}") as refused:
        await engine.open()
    assert SEED[:-9] not in str(refused.value)
    assert TOKEN not in str(refused.value)


async def test_a_file_of_credentials_lets_us_in(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    path.write_text(TOKEN_LINES + "\n" + SEED_LINES)
    heard: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = {"version": "2.12.0", "headers": True, "nonce": "once", "auth_required": True, "max_payload": 1 << 20}
        writer.write(b"INFO %b\r\n" % json.dumps(told).encode())
        heard.set_result(json.loads((await reader.readline()).partition(b" ")[2]))
        writer.close()

    async with await asyncio.start_server(listen, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        engine = create(f"nats://{HOST}:{port}?creds={path}&timeout=1", SystemClock())
        with pytest.raises(Unavailable):
            await engine.open()
    said = await heard
    assert said["jwt"] == TOKEN
    assert said["sig"]


async def test_a_key_that_cannot_be_read_for_a_moment_ends_no_bus(tmp_path: Path, opened: Opener) -> None:
    path = tmp_path / "user.nk"
    path.write_text(f"{SEED}\n")
    server = NatsServer(nkey=nkeys.from_seed(bytearray(SEED.encode())).public_key.decode())
    try:
        await asyncio.to_thread(server.start)
        async with Proxy(server.port) as proxy:
            driver = await opened(f"nats://{HOST}:{proxy.port}?nkey={path}")
            assert isinstance(driver, NatsDriver)
            path.write_text("")
            proxy.cut()
            async with asyncio.timeout(10.0):
                while f"nkey={path}" not in driver._link._said:
                    await asyncio.sleep(0.01)
                with pytest.raises(Unavailable, match="nkey="):
                    await driver.queues()
                path.write_text(f"{SEED}\n")
                while driver._link._wire is None:
                    await asyncio.sleep(0.01)
                await driver.declare([DeclareQueue("emails")])
    finally:
        server.remove()


async def test_whatever_the_client_library_raises_is_a_try_that_failed(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    driver = await opened(url)
    assert isinstance(driver, NatsDriver)
    link, failures = driver._link, [TypeError("its own"), LookupError("its own")]
    dial = link._dial

    async def fails(*words: Any) -> None:
        if failures:
            raise failures.pop()
        await dial(*words)

    monkeypatch.setattr(link, "_dial", fails)
    link._lose(link._wire)
    async with asyncio.timeout(10.0):
        while link._wire is None:
            await asyncio.sleep(0.01)
    assert not failures
    await driver.declare([DeclareQueue("emails")])


async def test_a_host_that_nobody_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no host can have such a name"):
        await create("nats://a..b:4222", SystemClock()).open()

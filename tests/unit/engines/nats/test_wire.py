"""Lines as they are read and written: no server."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import nats.errors
import pytest
from nats.protocol.command import hpub_cmd, pub_cmd

from easybus.engines.nats.wire import Reader, Received, Wire, ack, description, header, publication, status

MESSAGES = [
    Received(b"_INBOX.a.1.0", b"", b"", b'{"stream":"bus_emails", "seq":1}'),
    Received(b"bus.q.emails", b"$JS.ACK.bus_emails.bus.1.1.1.1.0", b"", b"MSG no.line 1 5\r\nHMSG"),
    Received(b"bus.q.emails", b"$JS.ACK.bus_emails.bus.1.2.2.1.0", b"NATS/1.0\r\nNats-Msg-Id: id\r\n\r\n", b"\r\n\0"),
    Received(b"_INBOX.b.7", b"", b"NATS/1.0 404 No Messages\r\n\r\n", b""),
    Received(b"bus.q.emails", b"", b"NATS/1.0\r\na: b\r\n\r\n", b"x" * 5000),
    Received(b"bus.q.emails", b"reply", b"", b""),
]


class Library:
    """What the library's own parser calls."""

    def __init__(self) -> None:
        self.called: list[str] = []

    async def _process_ping(self) -> None:
        self.called.append("ping")

    async def _process_pong(self) -> None:
        self.called.append("pong")

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.called.append(f"info {info['version']}")

    async def _process_err(self, error: str) -> None:
        self.called.append(error)


def line(message: Received) -> bytes:
    size = len(message.headers) + len(message.data)
    words = [b"HMSG" if message.headers else b"MSG", message.subject, b"1"]
    words += [message.reply] if message.reply else []
    words += [b"%d" % len(message.headers)] if message.headers else []
    return b" ".join([*words, b"%d" % size]) + b"\r\n" + message.headers + message.data + b"\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 100, 4096, 1 << 20])
async def test_what_comes_in_pieces_of_any_size_is_read_as_what_came_at_once(size: int) -> None:
    others = [b"PING\r\n", b'INFO {"version":"2.15"}\r\n', b"+OK\r\n", b"PONG\r\n", b"-ERR 'Slow'\r\n"]
    lines = [line(message) for message in MESSAGES]
    sent = b"".join(part for pair in zip(lines, [*others, b""], strict=True) for part in pair)
    library, got = Library(), list[Received]()
    reader = Reader(library)
    reader.listeners[b"1"] = got.append
    for at in range(0, len(sent), size):
        await reader.parse(sent[at : at + size])
    assert got == MESSAGES
    assert library.called == ["ping", "info 2.15", "pong", "'slow'"]


async def test_each_subscriptions_listener_is_told_and_of_an_ended_one_nobody() -> None:
    reader, got = Reader(Library()), list[bytes]()
    reader.listeners[b"1"] = lambda message: got.append(b"one " + message.data)
    reader.listeners[b"12"] = lambda message: got.append(b"twelve " + message.data)
    await reader.parse(b"MSG a 12 1\r\nx\r\nMSG a 2 1\r\ny\r\nMSG a 1 1\r\nz\r\n")
    assert got == [b"twelve x", b"one z"]


async def test_chance_pieces_lose_nothing() -> None:
    chance = random.Random(5)
    for _ in range(200):
        sent = [chance.choice(MESSAGES) for _ in range(20)]
        data = b"".join(line(message) for message in sent)
        got: list[Received] = []
        reader = Reader(Library())
        reader.listeners[b"1"] = got.append
        at = 0
        while at < len(data):
            many = chance.choice([1, 3, 50, 700])
            await reader.parse(data[at : at + many])
            at += many
        assert got == sent


@pytest.mark.parametrize(
    "sent", [b"NONSENSE\r\n", b"MSG a 1 x\r\n", b"HMSG a 1 1\r\n", b"HMSG a 1 2 1\r\n", b"MSG\r\n"]
)
async def test_what_cannot_be_read_ends_the_connection(sent: bytes) -> None:
    with pytest.raises(nats.errors.ProtocolError):
        await Reader(Library()).parse(sent)


def test_lines_are_those_that_the_library_writes() -> None:
    assert publication("a.b", b"\r\nx", "reply") == pub_cmd("a.b", "reply", b"\r\nx")
    block = b"NATS/1.0\r\nNats-Msg-Id: one\r\nTwo: 2\r\n\r\n"
    assert publication("a.b", b"x", "reply", {"Nats-Msg-Id": "one", "Two": "2"}) == hpub_cmd(
        "a.b", "reply", block, b"x"
    )
    assert ack(b"$JS.ACK.a", b"+ACK") == b"PUB $JS.ACK.a 4\r\n+ACK\r\n"


def test_a_status_and_a_header_are_read_and_nothing_else_is_taken_for_one() -> None:
    ended = Received(b"a", b"", b"NATS/1.0 409 Consumer Deleted\r\nNats-Pending: 1\r\n\r\n", b"")
    assert (status(ended), description(ended)) == ("409", "Consumer Deleted")
    delayed = Received(b"a", b"r", b"NATS/1.0\r\nNats-Msg-Id: Easybus-Delay\r\nEasybus-Delay: 0.200000\r\n\r\n", b"")
    assert status(delayed) == ""
    assert header(delayed, b"Easybus-Delay") == b"0.200000"
    assert header(delayed, b"Delay") is None
    assert header(Received(b"a", b"", b"", b""), b"Delay") is None


async def test_a_socket_that_was_closed_under_us_takes_nothing_and_raises_nothing() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15","max_payload":1048576}\r\nPONG\r\n')
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = Wire()
    await wire.client.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False)
    assert wire.info["version"] == "2.15"
    wire.abort()
    for _ in range(3):
        wire.write(b"PUB a 1\r\nx\r\n")
        await asyncio.sleep(0)
    await wire.client.close()
    await gone.wait()
    server.close()

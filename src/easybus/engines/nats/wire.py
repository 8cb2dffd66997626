"""The protocol's lines that cross in numbers, read and written here.

The client library connects (TLS, users, keys), reads the socket, and answers pings. Of the lines themselves only those
that are no messages are left to it: a message that comes costs its parser, its queue and its task about five times what
it costs here, one that goes three times. Its private parts are touched in this file alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

__all__ = ["Received", "Wire", "ack", "description", "header", "publication", "status"]

_MSG, _HMSG = b"MH"
_STATUS_LINE = b"NATS/1.0 "
_logger = logging.getLogger("easybus")


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message as it came."""

    subject: bytes
    reply: bytes
    headers: bytes
    """The whole block, or nothing."""
    data: bytes


def status(message: Received) -> str:
    """The status of a message without a body, such as 503 where nobody listens; else empty."""
    headers = message.headers
    return headers[9:12].decode() if headers.startswith(_STATUS_LINE) else ""


def description(message: Received) -> str:
    """What the server says of a status."""
    return message.headers[13 : message.headers.find(b"\r\n")].decode("utf-8", "replace")


def header(message: Received, name: bytes) -> bytes | None:
    """One header's value; None where there is no such header."""
    _, found, rest = message.headers.partition(b"\r\n%b:" % name)
    return rest[: rest.find(b"\r\n")].strip() if found else None


def ack(reply: bytes, body: bytes) -> bytes:
    """The lines that answer a delivery, and are not answered."""
    return b"PUB %b %d\r\n%b\r\n" % (reply, len(body), body)


def publication(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """The lines that publish this. Neither names nor values may hold ends of lines."""
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    block = f"NATS/1.0\r\n{fields}\r\n".encode()
    line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n".encode()
    return b"%b%b%b\r\n" % (line, block, payload)


Listener: TypeAlias = Callable[[Received], None]
"""Told of a message, in the order of their coming; it neither waits nor fails."""


class Wire:
    """One connection, from its first attempt to its end."""

    def __init__(self) -> None:
        self.client: Any = Client()
        self._reader = self.client._ps = Reader(self.client)
        self._number = 0

    @property
    def info(self) -> dict[str, Any]:
        """What the server has said of itself."""
        return self.client._server_info

    def write(self, data: bytes) -> None:
        """Send whole lines. What is written while the connection ends is lost, as what is on its way is."""
        try:
            self.client._transport.write(data)
        except RuntimeError as error:  # uvloop's, for a socket that is closed, and whose end is told next
            _logger.debug("nothing can be sent: %s", error)

    def listen(self, subject: str, told: Listener) -> int:
        """Subscribe; the number by which this is ended."""
        self._number += 1
        self._reader.listeners[b"%d" % self._number] = told
        self.write(b"SUB %b %d\r\n" % (subject.encode(), self._number))
        return self._number

    def unlisten(self, number: int) -> None:
        """End a subscription."""
        self._reader.listeners.pop(b"%d" % number, None)
        self.write(b"UNSUB %d\r\n" % number)

    def abort(self) -> None:
        """Close the socket without a word to the peer."""
        with contextlib.suppress(Exception):  # there may be none yet
            self.client._transport._io_writer.transport.abort()


class Reader:
    """Stands in for the library's parser: it is given what the socket gave, as it comes."""

    def __init__(self, client: Any) -> None:
        self.listeners: dict[bytes, Listener] = {}
        """By the number of the subscription."""
        self._library = Parser(client)
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0
        """Bytes without which there is nothing to read."""

    def reset(self) -> None:
        """Begin anew, as on another connection."""
        self._library.reset()
        self._chunks, self._held, self._needed = [], 0, 0

    async def parse(self, data: bytes = b"") -> None:
        """Read all that is whole. What cannot be read ends the connection: the library closes it for this error."""
        self._chunks.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return
        if len(self._chunks) > 1:
            data = b"".join(self._chunks)
        try:
            at = await self._read(data)
        except nats.errors.ProtocolError:
            raise
        except Exception as error:
            _logger.exception("what the server sent cannot be read: the connection is made anew")
            raise nats.errors.ProtocolError from error
        self._chunks = [data[at:]] if at < len(data) else []
        self._held = len(data) - at

    async def _read(self, data: bytes) -> int:
        """Where what is not whole yet begins."""
        at, end, find, listeners = 0, len(data), data.find, self.listeners
        self._needed = 0
        while (line_end := find(b"\r\n", at)) >= 0:
            kind, begin = data[at], line_end + 2
            if kind == _HMSG:
                _, subject, number, *reply, headers, size = data[at:line_end].split()
                body = begin + int(headers)
            elif kind == _MSG:
                _, subject, number, *reply, size = data[at:line_end].split()
                body = begin
            else:
                await self._library.parse(data[at:begin])
                at = begin
                continue
            stop = begin + int(size)
            if stop < body:
                raise ValueError(data[at:line_end])
            if stop + 2 > end:
                self._needed = stop + 2 - at
                break
            if (listener := listeners.get(number)) is not None:
                listener(Received(subject, reply[0] if reply else b"", data[begin:body], data[body:stop]))
            at = stop + 2
        return at

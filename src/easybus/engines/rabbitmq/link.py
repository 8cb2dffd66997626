"""One connection that comes back by itself.

    closed → open → up → lost → connecting, host after host, with backoff → up …
    any → close → closed

While it is not up every call raises `Unavailable` at once. Who holds something of a connection (channels, what was
delivered on them) is told when it is lost, and starts anew on the next. One loop reconnects; nobody else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from pika import exceptions
from pika.adapters.asyncio_connection import AsyncioConnection

from ...cancelling import ended
from ...errors import EngineError, NotOpen, Refused, Unavailable
from .address import Address
from .faults import fault

__all__ = ["Link"]

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.5
"""Seconds between attempts to reconnect: short, since the bus promises to go on within 5 s."""
_CLOSING = 5.0
_OLDEST = (3, 10)

_pika = logging.getLogger("pika")
if _pika.level == logging.NOTSET:
    _pika.setLevel(logging.CRITICAL)  # it logs as errors what is raised to the caller, or mended here


class Link:
    """A connection for one purpose; `purpose` is for errors and logs."""

    def __init__(self, address: Address, purpose: str) -> None:
        self._address = address
        self._purpose = purpose
        self._connection: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[BaseException] | None = None
        self._why: Exception | None = None
        self.host = 0
        """Of the hosts, counted on and on: which one it is connected to, or tries next."""
        self.blocked = ""
        """Why the server takes no publishes now: an alarm for memory or disk."""
        self.on_lost: list[Callable[[Exception], None]] = []
        self.on_blocked: list[Callable[[EngineError], None]] = []

    @property
    def timeout(self) -> float:
        """Seconds that a call may take."""
        return self._address.timeout

    @property
    def connection(self) -> Any:
        """The connection, up. Raises `NotOpen`, `Unavailable`."""
        if self._connection is None:
            if self._keeper is None:
                raise NotOpen(f"{self._address.url} is not open; write: async with bus: …")
            raise Unavailable(f"{self._address.url} is away, and tried again: {self._why}") from self._why
        return self._connection

    @property
    def up(self) -> bool:
        """Whether it is connected now."""
        return self._connection is not None

    @property
    def received(self) -> int:
        """Bytes that have come on this connection."""
        return 0 if self._connection is None else self._connection.bytes_received

    async def open(self, host: int | None = None) -> None:
        """Connect to the first one that answers, from `host` on. Raises `Unavailable`, `Refused`. Open already:
        nothing."""
        if self._keeper is not None:
            return
        self.host = self.host if host is None else host
        await self._connect()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"easybus {self._purpose} link")

    async def close(self) -> None:
        """Disconnect; twice is a no-op."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        await ended(keeper)
        connection = self._connection
        self._gone(NotOpen(f"{self._address.url} was closed"))
        if connection is not None:
            await self._end(connection)

    # ------------------------------------------------------------------------------------------------- connecting

    async def _connect(self) -> None:
        """Each host once, beginning with the one after the last tried; all of them within `timeout`, though one may
        accept and say nothing. Raises what the last one said."""
        hosts = self._address.hosts
        seconds = self._address.timeout / len(hosts)
        for left in range(len(hosts) - 1, -1, -1):
            host, port = hosts[self.host % len(hosts)]
            try:
                self._connection = await self._attempt(host, port, seconds)
                self.blocked = ""
                return
            except EngineError:
                self.host += 1
                if not left:
                    raise

    async def _attempt(self, host: str, port: int, seconds: float) -> Any:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[BaseException] = loop.create_future()

        def on_open(_: Any) -> None:
            if not opened.done():
                opened.set_result(None)

        def on_end(_: Any, error: BaseException) -> None:
            if not ended.done():
                ended.set_result(error)

        parameters = self._address.parameters(host, port)
        connection: Any = AsyncioConnection(parameters, on_open, on_end, on_end, custom_ioloop=loop)
        _send_together(connection)
        what = f"connecting to {host}:{port}"
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wait([opened, ended], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            await self._abort(connection, ended)
            raise fault(error, what) from error
        except BaseException:
            await self._abort(connection, ended)
            raise
        if ended.done():
            error = fault(ended.result(), what)
            raise error from error.__cause__
        if (version := _too_old(connection)) is not None:
            await self._abort(connection, ended)
            raise Refused(f"{what}: this is RabbitMQ {version}; 3.10 or later is needed: upgrade it")
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._lost = ended
        return connection

    async def _keep(self) -> None:
        """Watch the connection, and make another when it is lost."""
        while True:
            assert self._lost is not None  # noqa: S101 - an open connection has one
            error = await self._watch(self._lost, self._connection)
            self._gone(fault(error, self._purpose))
            self.host += 1  # the lost one may still accept, and not answer
            pause = _FIRST_PAUSE
            while True:
                try:
                    await self._connect()
                    break
                except EngineError as again:
                    self._why = again
                await asyncio.sleep(pause * random.uniform(0.7, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _watch(self, lost: asyncio.Future[BaseException], connection: Any) -> BaseException:
        """Return why it was lost: pika says so, or nothing came for two heartbeats (pika's own look takes longer)."""
        loop = asyncio.get_running_loop()
        heartbeat = connection.params.heartbeat
        seen, since = -1, loop.time()
        while True:
            await asyncio.wait([lost], timeout=heartbeat / 4)
            if lost.done():
                return lost.result()
            if connection.bytes_received != seen:
                seen, since = connection.bytes_received, loop.time()
            elif loop.time() - since >= heartbeat * 1.5:
                error = exceptions.AMQPHeartbeatTimeout(f"silent for {loop.time() - since:.0f} s")
                await self._abort(connection, lost)
                return error

    def _gone(self, error: Exception) -> None:
        self._connection = None
        self._why = error
        for told in list(self.on_lost):
            told(error)

    # ------------------------------------------------------------------------------------------------------ ending

    async def _end(self, connection: Any) -> None:
        """Close in order: what was written is still sent."""
        lost = self._lost
        if lost is None or lost.done():
            return
        with contextlib.suppress(exceptions.ConnectionWrongStateError):
            connection.close()
        await asyncio.wait([lost], timeout=_CLOSING)
        if not lost.done():
            await self._abort(connection, lost)

    @staticmethod
    async def _abort(connection: Any, ended: asyncio.Future[BaseException]) -> None:
        """Drop the socket without a word: the peer does not answer. pika's public `close` would wait for it, and in a
        handshake raise into the loop."""
        with contextlib.suppress(Exception):
            connection._terminate_stream(exceptions.AMQPConnectionError("no answer"))
        await asyncio.wait([ended], timeout=_CLOSING)  # its socket is closed a few turns of the loop later

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "an alarm"
        for told in list(self.on_blocked):
            told(self.refusal())

    def refusal(self) -> Unavailable:
        """The error for a publish while the server takes none."""
        return Unavailable(
            f"{self._address.url}: RabbitMQ takes no messages now, by an alarm: {self.blocked}: let the consumers "
            "catch up, free some, or change vm_memory_high_watermark or disk_free_limit; then it goes on by itself"
        )

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self.blocked = ""


def _too_old(connection: Any) -> str | None:
    """The server's version, if it is too old: before 3.10 a dead letter on its way out of a delay could be lost."""
    told: dict[str, Any] = connection.server_properties or {}
    version = str(told.get("version", ""))
    numbers = version.split(".")[:2]
    known = len(numbers) == 2 and all(number.isdecimal() for number in numbers)
    return version if known and tuple(map(int, numbers)) < _OLDEST else None


def _send_together(connection: Any) -> None:
    """pika writes each frame by a system call of its own, three to a message: let what one turn of the loop has to say
    go in one. It halves what a publish costs."""
    loop, send = asyncio.get_running_loop(), connection._adapter_emit_data
    unsent: list[bytes] = []

    def flush() -> None:
        data = b"".join(unsent)
        unsent.clear()
        if connection._transport is not None:
            send(data)

    def collect(data: bytes) -> None:
        if not unsent:
            loop.call_soon(flush)
        unsent.append(data)

    connection._adapter_emit_data = collect

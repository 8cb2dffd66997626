"""One connection, kept: made anew when it is lost, for as long as the engine is open.

    closed → open → connected → lost (by the peer, or two heartbeats without an answer) → connecting … → connected
    in any state → close → closed

The client library's own reconnect is off: it would send what it had buffered meanwhile, long after the call that
wanted it has failed. While the connection is away, calls raise `Unavailable` at once; what was under way when it was
lost fails at once too. Every call ends within `timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ...errors import EasybusError, NotOpen, Unavailable
from .address import Address
from .failures import FOREIGN, unconnected

__all__ = ["Call", "Link"]

Call: TypeAlias = "tuple[str, bytes, dict[str, str] | None]"
"""Subject, payload, headers."""
_PENDING = 16 << 20
"""Bytes that wait for the socket before a publish waits for it too."""
_LIMIT = 1 << 30
_logger = logging.getLogger("easybus")


class _Round:
    """Calls that were sent together, and their answers."""

    def __init__(self, number: int) -> None:
        self.answers: list[Msg | None] = [None] * number
        self.left = number
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, at: int, message: Msg) -> None:
        if self.answers[at] is None:
            self.answers[at] = message
            self.left -= 1
            if not self.left and not self.done.done():
                self.done.set_result(None)

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Link:
    """The connection, and calls with answers over it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.on_lost: list[Callable[[], None]] = []
        """Called each time the connection is lost."""
        self._client: Client | None = None
        self._said = ""
        self._rounds: dict[str, tuple[_Round, int]] = {}
        self._inbox = ""
        self._number = 0
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._endings: set[asyncio.Task[None]] = set()

    # --------------------------------------------------------------------------------------------- its life

    async def open(self) -> None:
        """Connect, and stay so. Raises `Unavailable`, `ConfigurationError`."""
        if self._keeper is not None:
            return
        self._lost = asyncio.Event()  # of this loop
        await self._connect(first=True)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Disconnect; what is under way fails."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        self._lose(self._client)
        if self._endings:
            await asyncio.wait(self._endings, timeout=2.0)

    @property
    def client(self) -> Client:
        """The connection. Raises `Unavailable` while it is away."""
        if self._client is None:
            if self._keeper is None:
                raise NotOpen(f"{self.address.url} is not open")
            raise Unavailable(f"{self.address.url}: the connection is lost{self._said and ': '}{self._said}")
        return self._client

    @property
    def info(self) -> dict[str, Any]:
        """What the server has said of itself."""
        return self.client._server_info  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    async def _connect(self, *, first: bool = False) -> None:
        problem: BaseException | None = None
        hosts = list(self.address.hosts)
        if not first:
            random.shuffle(hosts)
        for host in hosts:
            client = Client()
            try:
                async with asyncio.timeout(self.address.timeout):
                    await self._dial(client, host)
                return
            except BaseException as error:
                self._end(client)
                if not isinstance(error, (*FOREIGN, EasybusError)):
                    raise
                problem = error
        assert problem is not None  # noqa: S101 - there is a host, and it failed
        raise unconnected(problem, self.address.url) from problem

    async def _dial(self, client: Client, host: str) -> None:
        async def lost() -> None:
            self._lose(client)

        problems: list[Exception] = []

        async def failed(error: Exception) -> None:
            problems.append(error)
            del problems[:-1]
            self._said = str(error)  # such as a missing permission; never holds a password
            _logger.debug("%s: %s", self.address.url, error)

        any_client: Any = client
        connecting = any_client.connect(
            [host],
            name="easybus",
            error_cb=failed,
            disconnected_cb=lost,
            closed_cb=lost,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # none would mean: for ever
            reconnect_time_wait=0,
            connect_timeout=self.address.timeout,
            ping_interval=3600,  # `_watch` looks itself: the library would wait for a dead peer to take its goodbye
            pending_size=_PENDING,
            flush_timeout=self.address.timeout,
            skip_subject_validation=True,
            **self.address.login,
        )
        try:
            await connecting
        except nats.errors.NoServersError as error:
            raise (problems[-1] if problems else error) from None
        inbox: str = client.new_inbox()
        await self.listen(client, f"{inbox}.*", self._answered)
        await client.flush(timeout=int(self.address.timeout) + 1)
        if client.is_closed:
            raise nats.errors.ConnectionClosedError
        self._inbox = inbox
        self._said = ""
        self._lost.clear()
        self._client = client

    async def listen(self, client: Any, subject: str, told: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Call `told` with what comes on the subject, one after another; however much waits, none is dropped."""
        return await client.subscribe(subject, cb=told, pending_msgs_limit=_LIMIT, pending_bytes_limit=_LIMIT)

    def _lose(self, client: Client | None) -> None:
        if client is None or client is not self._client:
            return
        self._client = None
        self._lost.set()
        rounds, self._rounds = self._rounds, {}
        for asked, _ in rounds.values():
            asked.end()
        for told in self.on_lost:
            told()
        self._end(client)

    def _end(self, client: Client) -> None:
        """Let go of it in the background, without waiting for the peer."""

        async def ending() -> None:
            transport: Any = getattr(client, "_transport", None)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await asyncio.sleep(0)
                    if self._keeper is None and client.is_connected:
                        await client.flush(timeout=1)  # the last acks
            with contextlib.suppress(Exception):
                transport._io_writer.transport.abort()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await client.close()

        task = asyncio.get_running_loop().create_task(ending())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _keep(self) -> None:
        pause = 0.05
        while True:
            try:
                if self._client is None:
                    await self._connect()
                    _logger.debug("%s: connected again", self.address.url)
                pause = 0.05
                await self._watch(self.client)
                _logger.debug("%s: the connection is lost", self.address.url)
            except EasybusError as error:
                self._said = str(error.__cause__ or error)
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, 2.0)

    async def _watch(self, client: Client) -> None:
        """Return when the connection is lost: noticed within two heartbeats."""
        beat = self.address.heartbeat
        while not self._lost.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(beat):
                    await self._lost.wait()
                return
            looking = asyncio.ensure_future(client.flush(timeout=int(beat) + 2))
            try:
                await asyncio.wait([looking], timeout=beat)
                if not looking.done():
                    await asyncio.sleep(0.05)  # if it was this loop that stood still, the answer is read now
                if not looking.done() or looking.cancelled() or looking.exception() is not None:
                    self._lose(client)
            finally:
                looking.cancel()

    # ----------------------------------------------------------------------------------------------- calls

    async def send(self, subject: str, payload: bytes = b"", *, reply: str = "") -> None:
        """Send without an answer."""
        try:
            await self.client.publish(subject, payload, reply=reply)
        except FOREIGN as error:
            raise Unavailable(f"{self.address.url}: {error}") from error

    async def ask(self, calls: Sequence[Call], seconds: float | None = None) -> list[Msg | None]:
        """Send these in their order; their answers, None where none came within `seconds` (None: `timeout`). Raises
        `Unavailable` before anything is sent."""
        client = self.client
        if not calls:
            return []
        asked, tokens = _Round(len(calls)), list[str]()
        base = f"{self._inbox}."
        # No scope with a timeout: where its buffer is full, the client library swallows a cancellation.
        timer = asyncio.get_running_loop().call_later(self.address.timeout if seconds is None else seconds, asked.end)
        try:
            for at, (subject, payload, headers) in enumerate(calls):
                if client is not self._client or asked.done.done():
                    break
                self._number += 1
                token = f"{base}{self._number}"
                tokens.append(token)
                self._rounds[token] = (asked, at)
                await client.publish(subject, payload, reply=token, headers=headers)
            if client is self._client:
                await asked.done
        except FOREIGN as error:
            _logger.debug("%s: %s", self.address.url, error)
        finally:
            timer.cancel()
            for token in tokens:
                self._rounds.pop(token, None)
        return asked.answers

    async def _answered(self, message: Msg) -> None:
        found = self._rounds.get(message.subject)
        if found is not None:
            found[0].answer(found[1], message)

    def silent(self, what: str) -> Unavailable:
        """The error for a call that had no answer."""
        return Unavailable(
            f"{self.address.url}: no answer to {what} within {self.address.timeout:g} s"
            f"{self._said and ', the last error was: '}{self._said}"
        )

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
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec
import nats.errors

from ...cancelling import ended
from ...errors import NotOpen, Refused, Unavailable
from .address import Address
from .credentials import credentials
from .failures import FORBIDDEN, JetStreamError, refused, unconnected
from .wire import Received, Wire, publication

__all__ = ["Call", "Link"]

Call: TypeAlias = "tuple[str, bytes, dict[str, str] | None]"
"""Subject, payload, headers."""
_FORBIDDEN = re.compile(r'permissions violation for publish to "(.*)"')
_logger = logging.getLogger("easybus")


class _Round:
    """Calls that were sent together, and their answers."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.answers: list[Received | None] = [None] * len(calls)
        self.left = len(calls)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, at: int, message: Received) -> None:
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
        self.on_forbidden: list[Callable[[str, Refused], None]] = []
        """Called with a subject that the user may not publish to, in small letters."""
        self._wire: Wire | None = None
        self._said = ""
        self._rounds: dict[bytes, _Round] = {}
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
            await ended(keeper)  # the library's connect may swallow a cancellation
        self._lose(self._wire)
        if self._endings:
            await asyncio.wait(self._endings, timeout=2.0)

    @property
    def wire(self) -> Wire:
        """The connection. Raises `Unavailable` while it is away."""
        if self._wire is None:
            if self._keeper is None:
                raise NotOpen(f"{self.address.url} is not open")
            raise Unavailable(f"{self.address.url}: the connection is lost{self._said and ': '}{self._said}")
        return self._wire

    async def _connect(self, *, first: bool = False) -> None:
        problem: Exception | None = None
        files = credentials(self.address)
        hosts = list(self.address.hosts)
        if not first:
            random.shuffle(hosts)
        for host in hosts:
            wire = Wire()
            try:
                async with asyncio.timeout(self.address.timeout):
                    await self._dial(wire, host, files)
                return
            except BaseException as error:
                self._end(wire)
                if not isinstance(error, Exception):
                    raise
                problem = error
        assert problem is not None  # noqa: S101 - there is a host, and it failed
        raise unconnected(problem, self.address.url) from problem

    async def _dial(self, wire: Wire, host: str, files: dict[str, Any]) -> None:
        async def lost() -> None:
            self._lose(wire)

        problems: list[Exception] = []

        async def failed(error: Exception) -> None:
            problems.append(error)
            del problems[:-1]
            self._said = str(error)  # such as a missing permission; never holds a password
            self._forbid(self._said)
            _logger.debug("%s: %s", self.address.url, error)

        connecting = wire.client.connect(
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
            flush_timeout=self.address.timeout,
            skip_subject_validation=True,
            **self.address.login,
            **files,
        )
        try:
            await connecting
        except nats.errors.NoServersError as error:
            raise (problems[-1] if problems else error) from None
        inbox: str = wire.client.new_inbox()
        wire.listen(f"{inbox}.*.*", self._answered)
        await wire.client.flush(timeout=int(self.address.timeout) + 1)
        if wire.client.is_closed:
            raise nats.errors.ConnectionClosedError
        if problems and "permissions violation" in str(problems[-1]):  # it may not listen for answers
            raise problems[-1]
        self._inbox = inbox
        self._said = ""
        self._lost.clear()
        self._wire = wire

    def _lose(self, wire: Wire | None) -> None:
        if wire is None or wire is not self._wire:
            return
        self._wire = None
        self._lost.set()
        rounds, self._rounds = self._rounds, {}
        for asked in rounds.values():
            asked.end()
        for told in self.on_lost:
            told()
        self._end(wire)

    def _end(self, wire: Wire) -> None:
        """Let go of it in the background, without waiting for the peer."""
        client = wire.client

        async def ending() -> None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await asyncio.sleep(0)
                    if self._keeper is None and client.is_connected:
                        await client.flush(timeout=1)  # the last acks
            wire.abort()
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
                if self._wire is None:
                    await self._connect()
                    _logger.debug("%s: connected again", self.address.url)
                pause = 0.05
                await self._watch(self.wire)
                _logger.debug("%s: the connection is lost", self.address.url)
            except Exception as error:  # whatever it is: nobody else would connect again
                self._said = str(error.__cause__ or error)
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, 2.0)

    async def _watch(self, wire: Wire) -> None:
        """Return when the connection is lost: noticed within two heartbeats."""
        beat = self.address.heartbeat
        while not self._lost.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(beat):
                    await self._lost.wait()
                return
            looking = asyncio.ensure_future(wire.client.flush(timeout=int(beat) + 2))
            try:
                await asyncio.wait([looking], timeout=beat)
                if not looking.done():
                    await asyncio.sleep(0.05)  # if it was this loop that stood still, the answer is read now
                if not looking.done() or looking.cancelled() or looking.exception() is not None:
                    self._lose(wire)
            finally:
                looking.cancel()

    # ----------------------------------------------------------------------------------------------- calls

    async def ask(
        self, calls: Sequence[Call], seconds: float | None = None, *, before: bytes = b""
    ) -> list[Received | None]:
        """Send these in their order; their answers, None where none came within `seconds` (None: `timeout`). Raises
        `Unavailable` before anything is sent. `before`: lines that go ahead, and are not answered."""
        wire = self.wire
        if not calls:
            return []
        self._number += 1
        number = b"%d" % self._number
        asked = self._rounds[number] = _Round(calls)
        reply = f"{self._inbox}.{self._number}."
        lines = [
            publication(subject, body, f"{reply}{at}", headers) for at, (subject, body, headers) in enumerate(calls)
        ]
        timer = asyncio.get_running_loop().call_later(self.address.timeout if seconds is None else seconds, asked.end)
        try:
            wire.write(before + b"".join(lines))
            await asked.done
        finally:
            timer.cancel()
            self._rounds.pop(number, None)
        return asked.answers

    def _answered(self, message: Received) -> None:
        _, number, at = message.subject.rsplit(b".", 2)
        if (asked := self._rounds.get(number)) is not None:
            asked.answer(int(at), message)

    def silent(self, what: str, means: str = "") -> Unavailable:
        """The error for a call that had no answer, and what that means."""
        return Unavailable(
            f"{self.address.url}: no answer to {what} within {self.address.timeout:g} s{means and ': '}{means}"
            f"{self._said and ', the last error was: '}{self._said}"
        )

    def _forbid(self, said: str) -> None:
        """What the user may not publish to is refused beside the answers: those who wait for one are told."""
        found = _FORBIDDEN.search(said)
        if found is None:
            return
        lowered = found[1]  # by the client library
        asking = [
            (asked, at, subject)
            for asked in self._rounds.values()
            for at, (subject, _, _) in enumerate(asked.calls)
            if subject.lower() == lowered
        ]
        if len({subject for _, _, subject in asking}) > 1:
            return  # which of them, nobody knows
        problem = {"err_code": FORBIDDEN, "description": f"the user may not publish to {lowered}"}
        answer = Received(b"", b"", b"NATS/1.0 %d\r\n\r\n" % FORBIDDEN, msgspec.json.encode({"error": problem}))
        for asked, at, _ in asking:
            asked.answer(at, answer)
        for told in self.on_forbidden:
            told(lowered, Refused(str(refused(JetStreamError(problem), self.address.url))))

"""Pulling one queue's messages.

Each `take` asks the server for up to so many: what is there comes at once, then a status that ends the request; where
nothing is, the request waits for the first message, or until it expires. All answers of a queue come in on one inbox,
where a message does not tell which request it answers: it goes to whoever has waited longest. A request cannot be
taken back: what comes when nobody waits any more is put back at once.

    take → waiting → got some ─ status, or full, or 20 ms without either → returned
    a request whose end does not come in time (its leader is gone) is asked anew
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ...errors import EasybusError
from .api import status
from .failures import FOREIGN
from .link import Link

__all__ = ["NAK", "Gone", "Puller", "nak"]

NAK = b"-NAK"
_SLICE = 5.0
"""Seconds that one request waits at the server: what is lost with a leader is asked anew after it."""
_SLACK = 1.0
_GRACE = 0.02
_DELETED = ("consumer deleted", "stream deleted", "no responders")


class Gone(Exception):
    """Nobody serves the queue's consumer."""


class _Waiter:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.got: list[Msg] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: Exception | None = None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


def nak(delay: float) -> bytes:
    """Put back, to be delivered again in `delay` seconds. Until then an ack is taken all the same: so it also says
    how long a lease is."""
    return b'-NAK {"delay": %d}' % max(1, round(delay * 1e9)) if delay > 0 else NAK


class Puller:
    """One queue over one connection; of no use once that is lost."""

    def __init__(self, link: Link, subject: str) -> None:
        """`subject`: where the server is asked for messages."""
        self._link = link
        self._client: Client = link.client
        self._subject = subject
        self._inbox: str = self._client.new_inbox()
        self._number = 0
        self._waiters: deque[_Waiter] = deque()
        self._requests: dict[str, _Waiter] = {}
        self._failed: Exception | None = None
        self._backs: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for answers."""
        self._subscription = await self._link.listen(self._client, f"{self._inbox}.*", self._arrived)

    @property
    def serves(self) -> bool:
        """Whether its connection is the one that stands. Raises `Unavailable` while there is none."""
        return self._failed is None and self._client is self._link.client

    async def stop(self, error: EasybusError) -> None:
        """Fail every take with `error`, and listen no more."""
        self.fail(error)
        if self._subscription is not None and not self._client.is_closed:
            with contextlib.suppress(*FOREIGN):
                await self._subscription.unsubscribe()

    def fail(self, error: EasybusError) -> None:
        """Fail every take, those to come too."""
        self._failed = error
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.end(error)

    # ------------------------------------------------------------------------------------------------- taking

    async def take(self, limit: int, wait: float) -> list[Msg]:
        """Up to `limit` messages, as soon as there is one, or none after `wait` seconds. Raises `Gone`,
        `Unavailable`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        while True:
            left = min(_SLICE, end - loop.time())
            found = await self._take(limit, left if left > 0.005 else 0.0)
            if found or loop.time() >= end - 0.005:
                return found

    async def _take(self, limit: int, wait: float) -> list[Msg]:
        if self._failed is not None:
            raise self._failed
        waiter, taken = _Waiter(limit), False
        self._number += 1
        token = f"{self._inbox}.{self._number}"
        content: dict[str, int | bool] = {"batch": limit, "no_wait": True}
        if wait:
            content["expires"] = round(wait * 1e9)
        self._waiters.append(waiter)
        self._requests[token] = waiter
        try:
            await self._link.send(self._subject, msgspec.json.encode(content), reply=token)
            try:
                async with asyncio.timeout(wait + (_SLACK if wait else self._link.address.timeout)):
                    await waiter.done
            except TimeoutError:
                if not wait and not waiter.got:
                    raise self._link.silent("a fetch") from None
            taken = True
            return waiter.got
        finally:
            self._requests.pop(token, None)
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.done.done() and not waiter.done.cancelled():
                waiter.done.exception()
            if not taken:
                self.back(waiter.got)

    def back(self, messages: Iterable[Msg]) -> None:
        """Put these back, in the background."""
        if messages := list(messages):
            task = asyncio.get_running_loop().create_task(self._back(messages))
            self._backs.add(task)
            task.add_done_callback(self._backs.discard)

    async def _back(self, messages: Iterable[Msg]) -> None:
        with contextlib.suppress(EasybusError):  # their leases end
            for message in messages:
                await self._link.send(message.reply, NAK)

    # ------------------------------------------------------------------------------------------------ arriving

    async def _arrived(self, message: Msg) -> None:
        code = "" if message.reply else status(message)
        if code:
            self._ended(message, code)
            return
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.done.done():
                self._waiters.popleft()
                continue
            waiter.got.append(message)
            if len(waiter.got) >= waiter.limit:
                self._waiters.popleft()
                waiter.end()
            elif len(waiter.got) == 1:
                asyncio.get_running_loop().call_later(_GRACE, self._resolve, waiter)
            return
        await self._back([message])

    def _ended(self, message: Msg, code: str) -> None:
        if code == "100":
            return
        owner = self._requests.pop(message.subject, None)
        said = (message.headers or {}).get("Description", "").lower()
        gone = code == "503" or (code == "409" and any(text in said for text in _DELETED))
        for waiter in list(self._waiters):
            if waiter.got or waiter is owner:
                self._resolve(waiter, Gone() if gone and not waiter.got else None)

    def _resolve(self, waiter: _Waiter, error: Exception | None = None) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        waiter.end(error)

"""Pulling one queue's messages.

Each `take` asks the server for up to so many: what is there comes at once, then a status that ends the request; where
nothing is, the request waits for the first message, or until it expires. All answers of a queue come in on one inbox,
where a message does not tell which request it answers: it goes to whoever has waited longest. A request cannot be
taken back: what comes when nobody waits any more is put back at once.

    take → waiting → got some ─ status, or full, or 20 ms without either → returned
    a request whose end does not come in time (its leader is gone) is asked anew

Whoever several times took all that was asked for, and came back for more at once, finds the next lot here: it is asked
for as the last one is returned. Else a consumer in a backlog would wait for the server's way there and back each time.

    ahead: asked for → here → taken
                         └ nobody takes for half a second, or the end → put back
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import msgspec

from ...errors import EasybusError
from .link import Link
from .wire import Received, ack, description, publication, status

__all__ = ["NAK", "Gone", "Puller", "nak"]

NAK = b"-NAK"
_SLICE = 5.0
"""Seconds that one request waits at the server: what is lost with a leader is asked anew after it."""
_SLACK = 1.0
_GRACE = 0.02
_AT_ONCE = 0.1
"""Seconds in which a lot is handled by whoever is worth asking ahead for."""
_STREAK = 4
"""Lots after which that is believed."""
_LARGE = 1 << 20
"""Bytes of a lot that is not doubled in memory."""
_IDLE = 0.5
_DELETED = ("consumer deleted", "stream deleted", "no responders")


class Gone(Exception):
    """Nobody serves the queue's consumer."""


class _Waiter:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.got: list[Received] = []
        self.full = False
        self.request = b""
        """The subject that its request's end comes on."""
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
        self._wire = link.wire
        self.subject = subject
        self._inbox: str = self._wire.client.new_inbox()
        self._number = 0
        self._waiters: deque[_Waiter] = deque()
        self._requests: dict[bytes, _Waiter] = {}
        self._failed: Exception | None = None
        self._returned = 0.0
        self._streak = 0
        self._ahead: _Waiter | None = None
        self._ahead_until = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._plenty = False
        """Whether the last request was filled: there is more."""
        self._listening = self._wire.listen(f"{self._inbox}.*", self._arrived)

    @property
    def serves(self) -> bool:
        """Whether its connection is the one that stands. Raises `Unavailable` while there is none."""
        return self._failed is None and self._wire is self._link.wire

    def stop(self, error: EasybusError) -> None:
        """Fail every take with `error`, and listen no more."""
        self._forgo()
        self.fail(error)
        self._wire.unlisten(self._listening)

    def fail(self, error: EasybusError) -> None:
        """Fail every take, those to come too."""
        self._failed = error
        self._forgo(back=False)
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.end(error)

    # ------------------------------------------------------------------------------------------------- taking

    async def take(self, limit: int, wait: float, *, ahead: bool = False) -> list[Received]:
        """Up to `limit` messages, as soon as there is one, or none after `wait` seconds. Raises `Gone`,
        `Unavailable`. `ahead`: they may have come up to half a second ago, and their leases have begun then."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        quick = began - self._returned < _AT_ONCE
        end = began + wait
        while not (found := await self._from_ahead(limit)):
            left = min(_SLICE, end - loop.time())
            found = await self._take(limit, left if left > 0.005 else 0.0)
            if found or loop.time() >= end - 0.005:
                break
        self._returned = loop.time()
        self._streak = self._streak + 1 if quick and self._plenty and ahead else 0
        if self._streak >= _STREAK and self._ahead is None and sum(len(one.data) for one in found) < _LARGE:
            self._look_ahead(limit)
        return found

    async def _take(self, limit: int, wait: float) -> list[Received]:
        if self._failed is not None:
            raise self._failed
        waiter, taken = _Waiter(limit), False
        self._ask(waiter, wait)
        try:
            try:
                async with asyncio.timeout(wait + (_SLACK if wait else self._link.address.timeout)):
                    await waiter.done
            except TimeoutError:
                if not wait and not waiter.got:
                    raise self._link.silent("a fetch") from None
            taken = True
            self._plenty = waiter.full
            return waiter.got
        finally:
            self._let_go(waiter)
            if not taken:
                self.back(waiter.got)

    def _let_go(self, waiter: _Waiter) -> None:
        self._requests.pop(waiter.request, None)
        self._resolve(waiter)
        if not waiter.done.cancelled():
            waiter.done.exception()

    # -------------------------------------------------------------------------------------------------- ahead

    def _look_ahead(self, limit: int) -> None:
        if self._failed is None:
            loop = asyncio.get_running_loop()
            self._ahead = _Waiter(limit)
            self._ahead_until = loop.time() + _IDLE
            self._idle = loop.call_later(_IDLE, self._forgo)
            self._ask(self._ahead, 0.0)

    async def _from_ahead(self, limit: int) -> list[Received]:
        """What was asked for ahead, if anything was and comes."""
        while (ahead := self._ahead) is not None:
            if not ahead.done.done():
                await asyncio.wait([ahead.done])  # until it is full, has ended, was put back, or the connection is lost
                continue
            if asyncio.get_running_loop().time() > self._ahead_until:  # this loop stood still
                self._forgo()
                break
            found, ahead.got = ahead.got[:limit], ahead.got[limit:]
            if not ahead.got:
                self._forgo()
            self._plenty = ahead.full
            return found
        return []

    def _forgo(self, *, back: bool = True) -> None:
        """Ask ahead no more, and put back what came, unless its lease may have ended: then it may be another's."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._let_go(ahead)
        if back and ahead.got and asyncio.get_running_loop().time() < self._ahead_until + _IDLE:
            self.back(ahead.got)

    # ------------------------------------------------------------------------------------------ at the server

    def _ask(self, waiter: _Waiter, wait: float) -> None:
        self._number += 1
        token = f"{self._inbox}.{self._number}"
        content: dict[str, int | bool] = {"batch": waiter.limit, "no_wait": True}
        if wait:
            content["expires"] = round(wait * 1e9)
        waiter.request = token.encode()
        self._waiters.append(waiter)
        self._requests[waiter.request] = waiter
        self._wire.write(publication(self.subject, msgspec.json.encode(content), token))

    def back(self, messages: Iterable[Received]) -> None:
        """Put these back."""
        self._wire.write(b"".join([ack(message.reply, NAK) for message in messages]))

    # ------------------------------------------------------------------------------------------------ arriving

    def _arrived(self, message: Received) -> None:
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
                waiter.full = True
                self._waiters.popleft()
                waiter.end()
            elif len(waiter.got) == 1:
                asyncio.get_running_loop().call_later(_GRACE, self._resolve, waiter)
            return
        self.back([message])

    def _ended(self, message: Received, code: str) -> None:
        if code == "100":
            return
        owner = self._requests.pop(message.subject, None)
        said = description(message).lower()
        gone = code == "503" or (code == "409" and any(text in said for text in _DELETED))
        for waiter in list(self._waiters):
            if waiter.got or waiter is owner:
                self._resolve(waiter, Gone() if gone and not waiter.got else None)

    def _resolve(self, waiter: _Waiter, error: Exception | None = None) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        waiter.end(error)

"""The sender's side of a check-back: one `async with` block. The rules stand in `checkback`.

    store ─ block ─┬─ ends ────────────── publish, confirmed ─ stop extending ─ remove
                   ├─ raises Rollback ─── stop extending ─ remove      (made due, where the id is not ours alone)
                   └─ raises otherwise ── stop extending ─ store again, due after the timeout

An extension is a postponement under our token. Where that token is no longer the last one (a checker, or another send
under the same id, has the half) or the half is gone, it is stored again: this takes it back, and from then on the id
counts as not ours alone, since another's work may stand behind it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from msgspec.structs import replace

from .. import points
from ..clock import Clock, wait
from ..connection import Publisher
from ..engines.contract import Half, Publication, TransactionStorage
from ..errors import Rollback, SendError, Unavailable
from ..message import DELAY, Message
from ..shown import described

__all__ = ["Transaction", "half_of", "message_of", "publication_of"]

_TRY_AGAIN = 1.0


def half_of(service: str, topic: str, message: Message, delay: float | None) -> Half:
    """The half of `message`; a delay rides in its header."""
    if delay is not None:
        message = replace(message, headers={**message.headers, DELAY: repr(float(delay))})
    return Half(id=message.id, service=service, topic=topic, body=message.to_bytes())


def message_of(half: Half) -> Message:
    """The message of a half, as the topic's handlers will see it."""
    message = Message.from_bytes(half.body)
    message.headers.pop(DELAY, None)
    return message


def publication_of(half: Half) -> Publication:
    """How a half is published: its delay counts from now."""
    message = Message.from_bytes(half.body)
    delay = message.headers.pop(DELAY, None)
    return Publication(
        True,
        half.topic,
        half.body if delay is None else message.to_bytes(),
        message.route_key,
        None if delay is None else float(delay),
        dedupe_id=half.id,
    )


class Transaction(AbstractAsyncContextManager[Message]):
    """One block: what it ends with decides what becomes of its half."""

    def __init__(
        self,
        half: Half,
        message: Message,
        timeout: float,
        *,
        storage: TransactionStorage,
        publisher: Publisher,
        clock: Clock,
        logger: logging.Logger,
        ending: set[asyncio.Task[None]],
    ) -> None:
        """`ending` holds the tasks of blocks that are being ended, so that a close can wait for them."""
        self._half = half
        self._message = message
        self._timeout = timeout
        self._storage = storage
        self._publisher = publisher
        self._clock = clock
        self._logger = logger
        self._ending = ending
        self._token = ""
        self._ours_alone = True
        self._ended: asyncio.Future[None] | None = None
        self._extender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Message:
        """Store the half.

        Raises:
            SendError: it is not known to be stored; the work has not begun.
        """
        if points.hook is not None:
            await points.reach("half.storing")
        try:
            due = self._clock.time() + self._timeout / 3
            self._token, stood = await self._storage.store(self._half, self._timeout)
            self._ours_alone = not stood
            while self._clock.time() >= due:  # so late a reply that a checker may have discarded it meanwhile
                due = self._clock.time() + self._timeout / 3
                await self._hold()
        except Unavailable as error:
            raise SendError(
                f"the message was not surely stored, and the work has not begun: {error}", [self._message]
            ) from error
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._extender = loop.create_task(self._extend(self._ended, due), name=f"easybus extends {self._half.id}")
        if points.hook is not None:
            try:
                await points.reach("half.stored")
            except BaseException:
                self._extender.cancel()
                raise
        return self._message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # A task of its own: a cancelled caller must not cut short what the block's end owes to the half.
        task = asyncio.get_running_loop().create_task(self._end(error), name=f"easybus ends {self._half.id}")
        self._ending.add(task)
        task.add_done_callback(self._forget)
        await asyncio.shield(task)
        return isinstance(error, Rollback)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # a caller who was cancelled does not look at it, and the half stands

    async def _end(self, error: BaseException | None) -> None:
        try:
            if error is None:
                await self._succeed()
            elif isinstance(error, Rollback):
                await self._roll_back()
            else:
                await self._keep(error)
        finally:
            if self._extender is not None:
                self._extender.cancel()

    # ------------------------------------------------------------------------------------------------ while it lives

    async def _extend(self, ended: asyncio.Future[None], due: float) -> None:
        """`due`: the clock's time of the first extension; a loop that was held up until later extends at once."""
        while not await wait(self._clock, ended, due - self._clock.time()):
            now = self._clock.time()
            try:
                await self._hold()
                due = now + self._timeout / 3
            except Exception as error:
                self._logger.debug("the half %s cannot be extended now: %s", self._half.id, error)
                due = now + min(self._timeout / 3, _TRY_AGAIN)

    async def _hold(self) -> None:
        if not await self._storage.postpone(self._half.id, self._token, self._timeout, checked=False, parked=False):
            self._ours_alone = False
            self._token, _ = await self._storage.store(self._half, self._timeout)

    async def _stop_extending(self) -> None:
        # Not cancelled: an extension under way that lands after the removal would store the half again.
        if self._ended is not None and self._extender is not None:
            if not self._ended.done():
                self._ended.set_result(None)
            await self._extender

    # --------------------------------------------------------------------------------------------------- how it ends

    async def _succeed(self) -> None:
        if points.hook is not None:
            await points.reach("work.done")
        if not await self._publish():
            return
        if points.hook is not None:
            await points.reach("half.published")
        await self._stop_extending()
        try:
            await self._storage.remove(self._half.id, self._token)
        except Unavailable as error:
            self._logger.debug("the half %s is published and still there: %s", self._half.id, error)
            return
        if points.hook is not None:
            await points.reach("half.removed")

    async def _publish(self) -> bool:
        """Whether it is published; else its half is surely there, and due.

        Raises:
            SendError: neither is known.
        """
        held, cause = False, Exception()
        for _ in range(2):
            try:
                await self._publisher.publish(publication_of(self._half))
                return True
            except Exception as error:
                cause = error
            try:
                await self._stop_extending()
                self._token, stood = await self._storage.store(self._half, 0.0)
                held = True
            except Exception as error:
                self._logger.debug("the half %s cannot be made due now: %s", self._half.id, error)
                continue
            if stood:
                break
        if not held:
            raise SendError(
                f"the work is done, and its message was neither surely published nor surely kept: {cause}",
                [self._message],
            ) from cause
        self._logger.warning("message %s waits for its check: it was not published: %s", self._half.id, cause)
        return False

    async def _roll_back(self) -> None:
        await self._stop_extending()
        try:
            if self._ours_alone:
                await self._storage.remove(self._half.id, self._token)
            else:
                await self._storage.postpone(self._half.id, self._token, 0.0, checked=False, parked=False)
        except Unavailable as error:
            self._logger.debug("the half %s is rolled back and still there: %s", self._half.id, error)

    async def _keep(self, reason: BaseException) -> None:
        await self._stop_extending()
        self._half.error = described(reason)
        try:
            await self._storage.store(self._half, self._timeout)
        except Exception as error:  # the block's own exception goes on; the half stands since its last extension
            self._logger.warning("the half %s is asked about as of its last extension: %s", self._half.id, error)

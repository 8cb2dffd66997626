"""Dead letters that an operator marked go back into their queue, by the queue's own handlers.

    fetch(fence) → publish, confirmed → remove(fence)
                   refused for good by what it is → store again: the mark is gone, and why is in the letter

The copy carries the row's fence and begins a new count of attempts and starts. Dying between the last two leaves the
row: it is replayed again under the same id, and the handled copy absorbs it.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from .. import points
from ..clock import Clock, sleep, wait
from ..connection import Publisher
from ..engines.contract import DeadLetter, DeadLetterStorage, Publication
from ..errors import EngineError, EnvelopeError, TooLarge
from ..message import FIRST_FAILED, REPLAY, Message

__all__ = ["Replayer", "replayed"]

_EVERY = 1.0
"""Seconds between two looks for letters that another process marked."""
_LEASE = 30.0
_AT_ONCE = 100
_UNREPLAYED = "; it cannot be replayed: "


class Replayer:
    """Replays one queue's marked dead letters."""

    def __init__(
        self, queue: str, letters: DeadLetterStorage, publisher: Publisher, *, clock: Clock, logger: logging.Logger
    ) -> None:
        self._queue = queue
        self._letters = letters
        self._publisher = publisher
        self._clock = clock
        self._logger = logger
        self._woken: asyncio.Future[None] | None = None
        self._again = False
        self.busy = False

    def wake(self) -> None:
        """Letters were marked in this process: look now."""
        self._again = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def run(self) -> None:
        """Replay until cancelled."""
        pause = _EVERY
        while True:
            self._again = False
            try:
                self.busy = True
                while await self.replay_marked():
                    pass
                pause = _EVERY
            except EngineError as error:
                self._logger.debug("dead letters of queue %r are not looked at now: %s", self._queue, error)
                await sleep(self._clock, pause)
                pause = min(pause * 2, 10.0)
            finally:
                self.busy = False
            if not self._again:
                self._woken = asyncio.get_running_loop().create_future()
                await wait(self._clock, self._woken, _EVERY, poll=True)

    async def replay_marked(self) -> int:
        """One round; returns how many letters were replayed."""
        letters = await self._letters.fetch(self._queue, _AT_ONCE, _LEASE)
        if not letters:
            return 0
        if points.hook is not None:
            await points.reach("replay.fetched")
        await asyncio.gather(*(self._replay(letter) for letter in letters))
        return len(letters)

    async def _replay(self, letter: DeadLetter) -> None:
        body = replayed(letter)
        dedupe_id = f"{letter.message_id or letter.key}/{letter.fence}"
        try:
            await self._publisher.publish(Publication(False, letter.queue, body, "", 0.0, dedupe_id))
        except TooLarge as refused:
            await self._unmark(letter, refused)
            return
        if points.hook is not None:
            await points.reach("replay.published")
        await self._letters.remove(letter.queue, letter.key, letter.fence)
        if points.hook is not None:
            await points.reach("replay.removed")

    async def _unmark(self, letter: DeadLetter, refused: TooLarge) -> None:
        before = letter.reason.partition(_UNREPLAYED)[0]
        await self._letters.store(msgspec.structs.replace(letter, reason=f"{before}{_UNREPLAYED}{refused}"))
        self._logger.error(
            "queue %r: dead letter %s cannot be replayed, and is marked no more: %s",
            letter.queue, letter.message_id or letter.key, refused,
        )  # fmt: skip


def replayed(letter: DeadLetter) -> bytes:
    """A letter's bytes as its replay carries them; bytes that are no message stay as they are."""
    try:
        message = Message.from_bytes(letter.body)
    except EnvelopeError:
        return letter.body
    message.retried = 0
    message.headers.pop(FIRST_FAILED, None)
    message.headers[REPLAY] = letter.fence
    return message.to_bytes()

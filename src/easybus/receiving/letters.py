"""Where one queue's dead letters are kept: whole if they are taken so, else what of them is.

in a storage       the letter → refused → without its details
in `<queue>.dead`  the letter → refused → without its details → refused → the bytes, which the engine took once

What is refused to the last stays in its own queue (see `settle`).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable

import msgspec

from ..connection import Publisher
from ..engines.contract import DeadLetter, DeadLetterStorage, Delivery, Publication
from ..errors import Refused
from ..message import FIRST_FAILED, Message
from ..shown import said, storable

__all__ = ["Letters", "letter_of"]

_LONGEST_REASON = 1_000
_LONGEST_ERROR = 10_000
_LONGEST_CUT = 200
"""Characters."""


class Letters:
    """Keeps dead letters of one queue."""

    def __init__(
        self, queue: str, storage: DeadLetterStorage | None, publisher: Publisher, logger: logging.Logger
    ) -> None:
        """`storage` None: they go to a queue of their own, `<queue>.dead`."""
        self._queue = queue
        self._storage = storage
        self._publisher = publisher
        self._logger = logger

    async def keep(self, letter: DeadLetter) -> None:
        """Keep it, confirmed.

        Raises:
            Refused: it is not taken even without its details.
            Unavailable: it may or may not be kept.
        """
        cut = _cut(letter)
        ways: list[tuple[str, Callable[[], Awaitable[object]]]]
        if (storage := self._storage) is not None:
            ways = [("", lambda: storage.store(letter)), ("without its details", lambda: storage.store(cut))]
        else:
            ways = [
                ("", lambda: self._publish(msgspec.json.encode(letter))),
                ("without its details", lambda: self._publish(msgspec.json.encode(cut))),
                ("as bare as it came", lambda: self._publish(letter.body)),
            ]
        refused: Refused | None = None
        for how, keep in ways:
            try:
                await keep()
            except Refused as error:
                refused = error
                continue
            said = f"{letter.reason} (kept {how}: {refused})" if how else letter.reason
            self._logger.error("queue %r: message %s is a dead letter: %s", self._queue, letter.message_id, said)
            return
        assert refused is not None  # noqa: S101 - there is more than no way
        raise refused

    async def _publish(self, body: bytes) -> None:
        await self._publisher.publish(Publication(False, f"{self._queue}.dead", body, "", 0.0))


def letter_of(
    delivery: Delivery, message: Message | None, reason: str, error: BaseException | None, now: float
) -> DeadLetter:
    """The letter of a delivery that cannot be handled; `message` None: its bytes are none."""
    if message is not None:
        message = Message.from_bytes(delivery.body)  # what was sent, whatever the handler did to its copy
    first = message.headers.get(FIRST_FAILED) if message is not None else None
    return DeadLetter(
        queue=delivery.queue,
        message_id=message.id if message is not None else "",
        body=delivery.body,
        reason=storable(reason)[:_LONGEST_REASON],
        error_type="" if error is None else f"{type(error).__module__}.{type(error).__qualname__}",
        error="" if error is None else said(error)[:_LONGEST_ERROR],
        traceback="" if error is None else storable("".join(traceback.format_exception(error)))[-_LONGEST_ERROR:],
        attempts=message.retried + 1 if message is not None else delivery.attempt,
        first_failed=_seconds(first, now),
        last_failed=now,
    )


def _cut(letter: DeadLetter) -> DeadLetter:
    return msgspec.structs.replace(
        letter, reason=letter.reason[:_LONGEST_CUT], error=letter.error[:_LONGEST_CUT], traceback=""
    )


def _seconds(text: str | None, otherwise: float) -> float:
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise

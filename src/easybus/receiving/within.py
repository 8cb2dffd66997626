"""Exactly once to a database: the handler works in a transaction of the bus, and DONE is its last statement.

begin → handler's statements → DONE under the token (one row, else roll back) → commit → ack
(one engine has the messages and the handler's transaction: the ack goes with DONE)

dies before the commit: nothing happened, another takes it over
dies after it: DONE stands, the redelivery is only acked
taken over meanwhile: DONE changes no row, so the stalled worker cannot commit
the commit's reply lost: read again, DONE → ack, else back
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from .. import points, transactions
from ..engines.contract import Finish, FinishingDriver, IdempotencyStorage
from ..errors import EngineError
from .hand import Hand
from .invoke import Invoker

__all__ = ["ExactlyOnce", "NotTheHolder"]


class NotTheHolder(Exception):
    """DONE is not ours to write, or it is unknown whether it was: look before anything is acked."""


class ExactlyOnce:
    """Calls a queue's handlers in transactions."""

    def __init__(
        self,
        begin: Callable[[], AbstractAsyncContextManager[Any]],
        keys: IdempotencyStorage,
        keep: float,
        complete: Callable[[Any, str, Sequence[Any]], Awaitable[int]] | None = None,
        driver: FinishingDriver | None = None,
    ) -> None:
        """`complete` runs a transaction's last statement, and returns how many rows it changed. `driver`: its messages
        are acked by that statement."""
        self._begin = begin
        self._complete = complete or _complete
        self._driver = driver
        self._keys = keys
        self._keep = keep

    async def call(self, hand: Hand, invoker: Invoker, ending: Callable[[int], None] = lambda _: None) -> Any:
        """Call the handler; when this returns, its work and DONE are committed. `ending` is told 1 when the function
        has returned, and -1 when its transaction has ended.

        Raises:
            NotTheHolder: nothing was committed, or the commit's outcome is unknown.
        """
        committing, ended = False, 0
        result: Any = None
        try:
            async with self._begin() as transaction:
                result = await invoker.call(hand.message, hand.payload, transaction)
                ending(1)
                ended = 1
                if result is False:
                    raise _Failed
                if points.hook is not None:
                    await points.reach("within.effect")
                statement, parameters = self._last_statement(hand)
                if await self._complete(transaction, statement, parameters) != 1:
                    raise NotTheHolder
                if points.hook is not None:
                    await points.reach("within.done")
                committing = True
        except _Failed:
            return False
        except BaseException as error:
            hand.acked = False  # its delivery may be there as before, and is held until it is settled
            if committing and isinstance(error, EngineError):
                raise NotTheHolder from error
            raise
        finally:
            ending(-ended)
        if points.hook is not None:
            await points.reach("within.committed")
        return result

    def _last_statement(self, hand: Hand) -> tuple[str, Sequence[Any]]:
        if self._driver is None or hand.extended:
            return self._keys.completion(hand.token, self._keep)
        hand.acked = True
        return self._driver.finishing(Finish(hand.delivery, hand.token, self._keep))


async def _complete(transaction: Any, statement: str, parameters: Sequence[Any]) -> int:
    caller = transactions.find(transaction)
    complete = getattr(caller, "complete", caller.execute)
    changed = complete(statement, parameters)
    return await changed if caller.is_async else changed


class _Failed(Exception):
    """The handler returned False: roll back."""

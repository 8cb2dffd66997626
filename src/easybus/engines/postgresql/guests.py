"""Handlers' transactions: connections that the bus lends, begins and ends.

    BEGIN and the time limit, one round trip → the handler's statements → DONE and COMMIT, one round trip

DONE fails, and the COMMIT behind it is not run, unless it changes one row: the holder's. A server that hears nothing
for `idle_timeout`, or for the lease where that is shorter, ends the transaction, so that the locks of a dead host, and
of a worker that stands still, go away.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ...errors import EngineError
from .connections import Cut
from .failures import is_foreign, refuses_commit, translated
from .guest import NO_ROW, Guest
from .session import Session

_IDLE = "SET LOCAL idle_in_transaction_session_timeout = {};"
_BEFORE_COMMIT = ("25", "26")
"""Codes of what DONE meets: a statement before it has failed, or the user has deallocated all that was prepared."""


@contextlib.asynccontextmanager
async def transaction(session: Session, lease: float) -> AsyncGenerator[Any]:
    """A `Guest` in a transaction: committed at the end, undone after an error.

    Raises:
        EngineError: `commit_with`'s statement changed no row, or the commit's outcome is unknown.
    """
    guests, location = session.guests, session.location
    connection: Guest = await guests.borrow(None)
    connection.prepares = location.statement_cache_size != 0
    inner = connection.transaction()
    idle = _IDLE.format(int(min(location.idle_timeout, lease) * 1000))

    async def step(work: Callable[[], Awaitable[Any]], definite: Callable[[BaseException], bool]) -> None:
        cut = Cut(connection, location.timeout)
        try:
            await work()
        except Exception as error:
            if definite(error) or not is_foreign(error):
                raise
            if NO_ROW in str(error):
                raise EngineError(f"{location.url}: not committed, the message is another's meanwhile") from error
            if cut.passed:
                guests.distrust()
            raise translated(error, location.url) from error
        finally:
            cut.cancel()

    try:
        await step(lambda: connection.begin(inner, idle), definite=lambda _: False)
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(Exception):  # the handler's own error is what counts; what is cut off is undone
                await step(inner.rollback, definite=lambda _: False)
            raise
        # What the server surely did not commit is the handler's own failure; anything else leaves it unknown.
        await step(inner.commit, definite=_not_committed)
        if connection.owes:
            await step(connection.pay, definite=lambda _: False)
    finally:
        if not connection.is_closed() and connection.is_in_transaction():  # cancelled, or cut off, half way
            connection.terminate()
        connection.forget()
        guests.give_back(connection)


def _not_committed(error: BaseException) -> bool:
    code: str = getattr(error, "sqlstate", None) or ""
    return refuses_commit(error) or code.startswith(_BEFORE_COMMIT)

"""Handlers' transactions: connections that the bus lends, begins and ends.

    BEGIN and the time limit, one round trip → the handler's statements → DONE and COMMIT, one round trip

DONE fails, and the COMMIT behind it is not run, unless it changes one row: the holder's. A server that hears nothing
for `idle_timeout`, or for the lease where that is shorter, ends the transaction, so that the locks of a dead host, and
of a worker that stands still, go away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from ...errors import EngineError
from .completion import NO_ROW
from .failures import is_foreign, refuses_commit, translated
from .guest import Guest
from .session import Session

_IDLE = "SET LOCAL idle_in_transaction_session_timeout = {};"
_BEFORE_COMMIT = ("25", "26")
"""Codes of what DONE meets: a statement before it has failed, or the user has deallocated all that was prepared."""


class transaction:  # noqa: N801 - called as the context manager that it is; a generator's would cost more than it does
    """A `Guest` in a transaction: committed at the end, undone after an error.

    Raises:
        EngineError: `complete`'s statement changed no row, or the commit's outcome is unknown.
    """

    __slots__ = ("_guest", "_idle", "_inner", "_session")

    def __init__(self, session: Session, lease: float) -> None:
        self._session = session
        self._idle = _IDLE.format(int(min(session.location.idle_timeout, lease) * 1000))

    async def __aenter__(self) -> Guest:
        self._guest: Guest = await self._session.guests.borrow(None)
        self._guest.or_fail = self._session.or_fail
        self._guest.prepares = self._session.location.statement_cache_size != 0
        self._inner: Any = self._guest.transaction()
        try:
            await self._step(lambda: self._guest.begin(self._inner, self._idle))
        except BaseException:
            self._leave()
            raise
        return self._guest

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is not None:
                with contextlib.suppress(Exception):  # the handler's own counts; what is cut off is undone
                    await self._step(self._inner.rollback)
                return
            # What the server surely did not commit is the handler's own failure; anything else leaves it unknown.
            await self._step(self._inner.commit, definite=_not_committed)
            if self._guest.owes:
                await self._step(self._guest.pay)
        finally:
            self._leave()

    async def _step(
        self, work: Callable[[], Awaitable[Any]], definite: Callable[[BaseException], bool] = lambda _: False
    ) -> None:
        deadline, location = self._guest.deadline, self._session.location
        deadline.begin(location.timeout)
        try:
            await work()
        except Exception as error:
            if definite(error) or not is_foreign(error):
                raise
            if NO_ROW in str(error):
                raise EngineError(f"{location.url}: not committed, the message is another's meanwhile") from error
            if deadline.passed:
                self._session.guests.distrust()
            raise translated(error, location.url) from error
        finally:
            deadline.end()

    def _leave(self) -> None:
        guest = self._guest
        if not guest.is_closed() and guest.is_in_transaction():  # cancelled, or cut off, half way
            guest.terminate()
        guest.forget()
        self._session.guests.give_back(guest)


def _not_committed(error: BaseException) -> bool:
    code: str = getattr(error, "sqlstate", None) or ""
    return refuses_commit(error) or code.startswith(_BEFORE_COMMIT)

"""Callers' transactions on the bus's own file: one at a time in this process, begun and ended off the event loop.

While one is open nothing else of this process is written to the file, so a plain publish out of its own task would
wait for itself: that raises, and names `within=`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from .writer import Guest, Writer

_open: ContextVar[tuple[Writer, Guest, object] | None] = ContextVar("easybus_sqlite_transaction", default=None)


def inside_transaction(writer: Writer) -> bool:
    """Whether the running code lies inside an open transaction of this file (its threads and sub-tasks too)."""
    there = _open.get()
    return there is not None and there[0] is writer and writer.guest is there[1]


def refuse_in_transaction(writer: Writer) -> None:
    """Raises `ConfigurationError` in the very task that holds the file: it would wait for itself.

    A batcher's task is another one, and carries others' messages: the sender looks with `inside_transaction` first.
    """
    there = _open.get()
    if there is not None and inside_transaction(writer) and there[2] is asyncio.current_task():
        raise would_wait_for_itself()


def would_wait_for_itself() -> ConfigurationError:
    """The error for a plain send inside an open transaction of the same file."""
    return ConfigurationError(
        "a plain send inside an open transaction on the same SQLite file would wait for itself; let it ride in the "
        "transaction: await topic.send(value, within=connection)"
    )


@asynccontextmanager
async def guest_transaction(writer: Writer) -> AsyncGenerator[Any]:
    """A transaction on a connection that may be used on any thread; committed on leaving without an error."""
    guest = await writer.begin()
    reset = _open.set((writer, guest, asyncio.current_task()))
    committed = False
    try:
        yield guest.connection.raw
        committed = True
        if not await writer.end(guest, True):
            raise ConfigurationError(
                "the transaction was ended inside the handler, so it was not the bus that committed: leave out "
                "connection.commit(), rollback(), `with connection:`; the bus commits when the handler returns"
            )
    except BaseException:
        if not committed:
            await asyncio.shield(writer.end(guest, False))
        raise
    finally:
        try:
            _open.reset(reset)
        except ValueError:  # left in another context than entered
            _open.set(None)

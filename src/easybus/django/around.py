"""Django's database connections around each handled message, as around a request: those that are too old, or broken,
are closed before it and after it, and none is left behind when a thread ends.

plain functions     run in threads that keep their connections as long as CONN_MAX_AGE says
async functions     have a thread of their own for Django's ORM, as each request has under ASGI
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, connections, reset_queries

from ..errors import EasybusError
from ..message import Message
from ..receiving.threads import Threads
from .databases import vendor_of
from .project import get_bus

__all__ = ["DjangoThreads", "open_for_request", "orm_apart"]

_log = logging.getLogger("easybus")


class DjangoThreads(Threads):
    """Threads in which Django's connections are looked after."""

    def begin(self) -> None:
        reset_queries()
        close_old_connections()

    def end(self) -> None:
        _close(close_old_connections)

    def leave(self) -> None:
        _close(connections.close_all)


async def orm_apart(message: Message, call_next: Callable[[Message], Awaitable[None]]) -> None:
    """Middleware: what an async handler does by Django's async ORM happens in a thread of this message's own."""
    async with ThreadSensitiveContext() as context:
        try:
            await call_next(message)
        finally:
            if context in SyncToAsync.context_to_thread_executor:  # it was used, and ends now
                await sync_to_async(_close)(connections.close_all)


def open_for_request(**_: Any) -> None:
    """Called before each request: a bus on SQLite declares its queues when it opens, which a view's own open
    transaction on that file would hold up."""
    bus = get_bus()
    try:
        if bus.opened_or_none is None and "sqlite" in map(vendor_of, (bus.url, bus.storage_url or "")):
            bus.blocking.open()
    except EasybusError:
        _log.debug("the bus was not opened before a request", exc_info=True)  # the send says so, if there is one


def _close(how: Callable[[], None]) -> None:
    """What cannot be closed properly is not the message's failure."""
    try:
        how()
    except Exception:
        _log.exception("a database connection could not be closed")

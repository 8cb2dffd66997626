"""Messages that ride in the caller's database transaction: published if, and only if, it commits.

    find the library's module → match the outbox by what its database says of itself → check → write rows → wake

The rows are the caller's own until the commit; a relay publishes them afterwards. Nothing here commits or rolls back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engines.contract import OutboxStorage, Publication
from ..errors import ConfigurationError
from ..transactions import SQLITE, CallerTransaction, check, check_library, check_open, find

__all__ = ["write", "write_async"]


def write(
    tx: object,
    outboxes: Sequence[OutboxStorage],
    service: str,
    publications: Sequence[Publication],
    wake: Callable[[], None],
) -> None:
    """Write `publications` as the next rows of the caller's transaction `tx`, for the relays of `service`.

    `wake` is called after the commit where the library says when that is, else now; it may be called on the caller's
    thread, and before the rows can be seen.

    Raises:
        ConfigurationError: `tx` is of no supported library, closed, outside a transaction, or of a database that none
            of `outboxes` lies in; nothing was written.
    """
    _check_given(outboxes)
    caller = find(tx)
    if caller.is_async:
        raise ConfigurationError(f"within=: a transaction of {caller.library} is async; write: await …send(…)")
    _check_before_asking(caller, outboxes)
    outbox = _of_its_database(caller, outboxes)
    check(caller, outbox)
    for statement, params in outbox.statements(service, publications):
        caller.execute(statement, params)
    if not caller.on_commit(wake):
        wake()


async def write_async(
    tx: object,
    outboxes: Sequence[OutboxStorage],
    service: str,
    publications: Sequence[Publication],
    wake: Callable[[], None],
) -> None:
    """As `write`, and for transactions of async libraries too; those are used on the event loop that runs this."""
    caller = find(tx)
    if not caller.is_async:
        write(tx, outboxes, service, publications, wake)
        return
    _check_given(outboxes)
    _check_before_asking(caller, outboxes)
    outbox = await _of_its_database_async(caller, outboxes)
    for statement, params in outbox.statements(service, publications):
        await caller.execute(statement, params)
    if not caller.on_commit(wake):
        wake()


def _check_given(outboxes: Sequence[OutboxStorage]) -> None:
    if not outboxes:
        raise ConfigurationError(
            "within= needs a database that the bus relays from; write Bus(url, storage='sqlite:///shop.db'), "
            "or Bus(url, databases=['sqlite:///shop.db'])"
        )


def _check_before_asking(caller: CallerTransaction, outboxes: Sequence[OutboxStorage]) -> None:
    """Outside a transaction a question would be one of its own; and the wrong SQLite library must not open a file."""
    if caller.library in SQLITE and not any(getattr(outbox, "library", "") == caller.library for outbox in outboxes):
        for outbox in outboxes:
            check_library(caller, outbox)
    check_open(caller)


def _of_its_database(caller: CallerTransaction, outboxes: Sequence[OutboxStorage]) -> OutboxStorage:
    # By what the database says, not by its URL: two URLs may be one database, and behind a pooler one may be two.
    for outbox in outboxes:
        statement, value = outbox.identity()
        if caller.identity(statement) == value:
            return outbox
    raise _elsewhere(outboxes)


async def _of_its_database_async(caller: CallerTransaction, outboxes: Sequence[OutboxStorage]) -> OutboxStorage:
    for outbox in outboxes:
        statement, value = outbox.identity()
        if await caller.identity(statement) == value:
            return outbox
    raise _elsewhere(outboxes)


def _elsewhere(outboxes: Sequence[OutboxStorage]) -> ConfigurationError:
    known = ", ".join(str(getattr(outbox, "url", "the bus's storage")) for outbox in outboxes)
    return ConfigurationError(
        f"within=: this connection is to another database than those that the bus relays from ({known}); name it: "
        "Bus(url, databases=['URL of that database'])"
    )

"""Messages that ride in the caller's database transaction: published if, and only if, it commits.

    find the library's module → match the outbox by what its database says of itself → check → write rows → wake

The rows are the caller's own until the commit; a relay publishes them afterwards. Nothing here commits or rolls back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engines.contract import OutboxStorage, Publication
from ..errors import ConfigurationError
from ..transactions import CallerTransaction, check, find

__all__ = ["write"]


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
    if not outboxes:
        raise ConfigurationError(
            "within= needs a database that the bus relays from; write Bus(url, storage='sqlite:///shop.db'), "
            "or Bus(url, databases=['sqlite:///shop.db'])"
        )
    caller = find(tx)
    if caller.is_async:
        raise ConfigurationError(f"within=: a transaction of {caller.library} is async; this way of sending is not")
    if caller.closed:
        raise ConfigurationError("within=: this connection is closed; pass the one that your statements run on")
    outbox = _of_its_database(caller, outboxes)
    check(caller, outbox)
    for statement, params in outbox.statements(service, publications):
        caller.execute(statement, params)
    if not caller.on_commit(wake):
        wake()


def _of_its_database(caller: CallerTransaction, outboxes: Sequence[OutboxStorage]) -> OutboxStorage:
    # By what the database says, not by its URL: two URLs may be one database, and behind a pooler one may be two.
    for outbox in outboxes:
        statement, value = outbox.identity()
        if caller.identity(statement) == value:
            return outbox
    known = ", ".join(str(getattr(outbox, "url", "the bus's storage")) for outbox in outboxes)
    raise ConfigurationError(
        f"within=: this connection is to another database than those that the bus relays from ({known}); name it: "
        "Bus(url, databases=['sqlite:///that.db'])"
    )

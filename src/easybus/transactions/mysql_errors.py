"""What MySQL's error codes mean for a transaction, whichever library raised them."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "number", "refuses_commit", "taken_over"]

ELSEWHERE = (1044, 1049, 1142, 1146)
"""No such database or table, or none that this user may see. The transaction that asked lives on."""
_ROLLED_BACK = (1205, 1213)
_CHANGED = (1020,)


def number(error: BaseException) -> int:
    """The server's code; 0: it did not come from a server."""
    found = error.args[0] if error.args else 0
    return found if isinstance(found, int) else 0


def refuses_commit(error: BaseException) -> bool:
    """Whether the server has surely rolled back instead of committing."""
    return number(error) in _ROLLED_BACK


def taken_over(error: BaseException) -> bool:
    """Whether a row was changed since this transaction's first look, where the server is set to say so."""
    return number(error) in _CHANGED

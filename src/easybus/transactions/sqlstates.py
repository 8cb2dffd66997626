"""What PostgreSQL's error codes mean for a transaction, whichever library raised them."""

from __future__ import annotations

__all__ = ["elsewhere", "refuses_commit", "sqlstate", "taken_over"]


def sqlstate(error: BaseException) -> str:
    """The server's code; empty: it did not come from the server."""
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def elsewhere(error: BaseException) -> bool:
    """Whether the tables, or the functions, are not there."""
    return sqlstate(error).startswith(("3F", "42", "0A"))


def refuses_commit(error: BaseException) -> bool:
    """Whether the server has surely rolled back instead of committing: by a rule of the data's, such as a deferred
    constraint, or for another transaction's sake."""
    return sqlstate(error).startswith(("23", "40", "P0")) and sqlstate(error) != "40003"


def taken_over(error: BaseException) -> bool:
    """Whether a row was changed meanwhile: what a stricter isolation says where others find no row."""
    return sqlstate(error) == "40001"

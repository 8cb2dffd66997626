"""Handlers in Django's `transaction.atomic`: the bus enters it, and what leaves it writes DONE last.

All of it runs in one thread, since Django's connections belong to theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, DatabaseError, IntegrityError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, atomic

from ..errors import ConfigurationError, Unavailable
from . import ended
from .django_connection import DjangoTransaction, cause, code
from .sqlite_lock import NO_SUCH_TABLE, WRITE_LOCK
from .sqlstates import refuses_commit, taken_over

_log = logging.getLogger("easybus")

_IDLE_POSTGRESQL = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"
_IDLE_MYSQL = "SET @easybus_wait = @@SESSION.wait_timeout, SESSION wait_timeout = %s"
_AS_BEFORE_MYSQL = "SET SESSION wait_timeout = @easybus_wait"
_CHANGED_MEANWHILE = 1020
"""MariaDB with innodb_snapshot_isolation: the row is another one than this transaction has seen."""
_ROLLED_BACK = (1205, 1213, 1180, 3101)
"""MySQL's refusals of a commit after which nothing of it stands: a lock's, a deadlock's, a cluster's."""


class DjangoHandlerTransaction(DjangoTransaction):
    """One that the bus begins and ends."""

    def __init__(self, connection: Any, block: Atomic) -> None:
        super().__init__(connection)
        self._block = block
        self._begun = False
        self._idles = False

    @property
    def in_transaction(self) -> bool:
        return True  # begun before anything is written

    @property
    def closed(self) -> bool:
        return False

    def start(self, idle: float) -> None:
        if not self._connection.get_autocommit():
            raise ConfigurationError(
                f"DATABASES[{self._connection.alias!r}] has AUTOCOMMIT off, and atomic() does not commit then: leave "
                "that setting out"
            )
        if self._vendor == "mysql":
            self.execute(_IDLE_MYSQL, (max(1, round(idle)),))
            self._idles = True
        self._block.__enter__()
        self._begun = True
        if self._vendor == "sqlite":
            self._lock()
        elif self._vendor == "postgresql":
            self.execute(_IDLE_POSTGRESQL, (str(int(idle * 1000)),))

    def _lock(self) -> None:
        """Be the file's writer: a transaction that read first could not write after others' commits."""
        try:
            self.execute(WRITE_LOCK)
        except DatabaseError as error:
            if getattr(cause(error), "sqlite_errorcode", None) != NO_SUCH_TABLE:  # else it is another file
                raise

    def complete(self, statement: str, params: Sequence[Any]) -> int:
        self._check_whole()
        try:
            return self.execute(statement, params)
        except DatabaseError as error:
            if taken_over(cause(error)) or (self._vendor == "mysql" and code(error) == _CHANGED_MEANWHILE):
                return 0
            raise

    def commit(self) -> None:
        self._check_whole()
        hooks = self._connection.run_on_commit
        self._connection.run_on_commit = []
        self._begun = False
        try:
            self._block.__exit__(None, None, None)
        except DatabaseError as error:
            if isinstance(error, IntegrityError) or refuses_commit(cause(error)):
                raise
            if self._vendor == "mysql" and code(error) in _ROLLED_BACK:
                raise
            raise Unavailable(f"the commit was not confirmed: {error}") from error
        finally:
            self._live_on()
        for _, hook, _ in hooks:
            _call(hook)

    def rollback(self) -> None:
        if self._begun:
            self._begun = False
            undone = RuntimeError("rolled back")
            self._block.__exit__(RuntimeError, undone, None)
        self._live_on()

    def _check_whole(self) -> None:
        """Raises `ConfigurationError`: leaving the block would not commit all that the handler did."""
        if not self._connection.in_atomic_block or self._connection.closed_in_transaction:
            raise ended("connection.close(), commit() and rollback()")

    def _live_on(self) -> None:
        """The connection may outlive the transaction, and is as idle as it likes again."""
        if not self._idles:
            return
        self._idles = False
        try:
            self.execute(_AS_BEFORE_MYSQL)
        except DatabaseError:
            self._connection.close()


class Opening:
    """Opens the calling thread's connection."""

    kind: type[Any] = BaseDatabaseWrapper

    def __init__(self, block: Atomic) -> None:
        self._block = block
        self._alias = block.using or DEFAULT_DB_ALIAS
        self.name = "transaction.atomic" if block.using is None else f"transaction.atomic(using={block.using!r})"

    def open(self) -> tuple[Any, DjangoHandlerTransaction]:
        connection = connections[self._alias]
        return connection, DjangoHandlerTransaction(connection, self._block)


def _call(hook: Callable[[], Any]) -> None:
    """Of what was to follow the commit, each is called: the message is handled, whatever becomes of them."""
    try:
        hook()
    except Exception:
        _log.exception("a function that was given to transaction.on_commit failed; the message is handled")


def opener(within: Any) -> Opening:
    """For `within=transaction.atomic`, or `within=transaction.atomic(using="other")`.

    Raises:
        ConfigurationError: something else of Django's.
    """
    if within is atomic:
        return Opening(Atomic(None, savepoint=True, durable=False))
    if isinstance(within, Atomic):
        return Opening(within)
    raise ConfigurationError(f"within={within!r}: of Django it can be transaction.atomic, or transaction.atomic(...)")

"""Connections to the server: a few, lent for one call each, and every call ends by its deadline.

    call → a free connection, else a new one, else wait for one → work → back among the free
    the deadline passes            → the connection is cut, its call fails: Unavailable
    the caller is cancelled        → the call goes on to its end, its result is handed to `undo`
    deadlock, serialization failure → the work is begun again, a few times
    the connection was lost        → Unavailable at once; the next call opens a new one

A cancelled statement's outcome is unknown, and so is what the next one on its connection would read: nothing here is
ever cancelled half way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import asyncpg

from ...errors import ConfigurationError, EasybusError, NotOpen, Unavailable
from .failures import AGAIN, breaks, is_foreign, translated, wiped
from .location import Location

T = TypeVar("T")
Connection: TypeAlias = Any
"""An `asyncpg.Connection`; the library has no types."""

OLDEST = (13, 0)
_TRIES = 5
_CLOSING = 2.0
_SILENCE = 0.3
"""Seconds after which the next host is tried beside one that says nothing."""

_PLANS = (  # every statement of ours looks up by an index, and is planned so whatever the statistics say
    "SELECT set_config(name, value, false) FROM (VALUES ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), "
    "('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'), ('enable_sort', 'off'), "
    "('enable_material', 'off'), ('jit', 'off'), ('plan_cache_mode', 'force_generic_plan')) AS wanted(name, value)"
)
_IDLE = "SET idle_in_transaction_session_timeout = {}"


class Connections:
    """The connections of one engine on one event loop."""

    def __init__(self, location: Location, limit: int, *, guest: type[Any] | None = None) -> None:
        """`guest`: the class of connections for callers' own statements, which are without settings of ours."""
        self._location = location
        self._guest = guest
        self._slots = asyncio.Semaphore(limit)
        self._free: list[Connection] = []
        self._lent: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.prepare: Callable[[Connection], Awaitable[None]] | None = None
        """Makes the tables; called before the first work, and again where they turn out to be gone."""
        self._prepared = False

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, undo: Callable[[T], None] | None = None) -> T:
        """Do `work` on a connection. It may be done again, so it keeps nothing outside the database.

        `undo` is given the result if the caller was cancelled meanwhile. Raises `Unavailable`, `Refused`, `NotOpen`.
        """
        if self._closed:
            raise NotOpen(f"{self._location.url} is closed; write: async with bus: …")
        task = asyncio.get_running_loop().create_task(self._bounded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: _abandoned(done, undo))
            raise

    async def _bounded(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        for tries in range(1, _TRIES + 1):
            connection = await self.borrow(self._location.timeout)
            cut = Cut(connection, self._location.timeout)
            try:
                if self.prepare is not None and not self._prepared:
                    await self._make_anew(connection)
                return await work(connection)
            except Exception as error:
                if isinstance(error, EasybusError) or not is_foreign(error):
                    raise
                if breaks(error):
                    connection.terminate()
                if wiped(error):
                    self._prepared = False
                if cut.passed:
                    self.distrust()
                    raise Unavailable(
                        f"{self._location.url}: no answer within {self._location.timeout:g} s (timeout=)"
                    ) from error
                if getattr(error, "sqlstate", None) not in AGAIN or tries == _TRIES:
                    raise translated(error, self._location.url) from error
            finally:
                cut.cancel()
                self.give_back(connection)
            await asyncio.sleep(random.uniform(0, 0.01) * tries)
        raise AssertionError("unreachable")

    async def _make_anew(self, connection: Connection) -> None:
        """The tables were there when the engine was opened, and may be again: nobody is to give up for that."""
        assert self.prepare is not None  # noqa: S101 - its caller has looked
        try:
            await self.prepare(connection)
        except ConfigurationError as error:
            raise Unavailable(str(error)) from error
        self._prepared = True

    async def borrow(self, patience: float | None) -> Connection:
        """A connection; whoever borrows gives it back. `patience`: seconds to wait for a free one."""
        if self._slots.locked():
            try:
                async with asyncio.timeout(patience):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise Unavailable(f"{self._location.url}: all connections are at work (connections=)") from error
        else:
            await self._slots.acquire()
        try:
            while self._free:
                connection = self._free.pop()
                if not connection.is_closed():
                    break
            else:
                connection = await connect(self._location, guest=self._guest, plain=self._guest is not None)
        except BaseException:
            self._slots.release()
            raise
        self._lent.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The end of a loan."""
        self._lent.discard(connection)
        self._slots.release()
        if connection.is_closed():
            return
        if self._closed or connection.is_in_transaction():
            connection.terminate()
        else:
            self._free.append(connection)

    def distrust(self) -> None:
        """A server does not answer: its other connections would each be waited for in turn."""
        free, self._free = self._free, []
        for connection in free:
            connection.terminate()

    @property
    def busy(self) -> set[asyncio.Task[Any]]:
        """The calls under way."""
        return self._tasks.copy()

    def adopt(self, connection: Connection) -> None:
        """Take in a connection that has been prepared."""
        self._free.append(connection)
        self._prepared = True

    async def close(self) -> None:
        """Let calls under way end for two seconds, then disconnect."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING)
        for connection in self._lent:
            connection.terminate()
        while self._tasks:
            await asyncio.wait(self._tasks)
        free, self._free = self._free, []
        await asyncio.gather(*(disconnect(connection) for connection in free))


class Cut:
    """A deadline: the connection is cut when it passes."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.passed = False
        self._connection = connection
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        self._connection.terminate()

    def cancel(self) -> None:
        self._timer.cancel()


async def connect(
    location: Location, *, plain: bool = False, first: bool = False, guest: type[Any] | None = None
) -> Connection:
    """A new connection, of the class `guest` where that is given.

    Raises `Unavailable`, or `ConfigurationError` if it is the `first`.
    """
    settings: dict[str, Any] = {}
    if location.statement_cache_size is not None:
        settings["statement_cache_size"] = location.statement_cache_size
    if guest is not None:
        settings["connection_class"] = guest
    try:
        connection = await _connect(location, settings)
        cut = Cut(connection, location.timeout)
        try:
            if not plain:
                # No call takes longer: a transaction that does is of a process that stands still, with its locks.
                await connection.execute(f"{_PLANS};{_IDLE.format(int(location.timeout * 1000))}")
        except BaseException:
            connection.terminate()
            raise
        finally:
            cut.cancel()
    except Exception as error:
        if not is_foreign(error) and not isinstance(error, ValueError):
            raise
        raise translated(error, location.url, first=first) from error
    return connection


async def _connect(location: Location, settings: dict[str, Any]) -> Connection:
    """To the first host that lets us in and takes writes. Each is tried when the one before has failed, or is silent
    for a moment: the client library would wait for a frozen one until no time is left for the others."""
    library: Any = asyncpg
    waiting = list(location.hosts)
    trying: set[asyncio.Task[Connection]] = set()
    failed: list[BaseException] = []
    try:
        while waiting or trying:
            if waiting:
                host, port = waiting.pop(0)
                dial = library.connect(
                    location.dsn, host=host, port=port, timeout=min(5.0, location.timeout), **settings
                )
                trying.add(asyncio.ensure_future(dial))
            patience = _SILENCE if waiting else None
            done, _ = await asyncio.wait(trying, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is None:
                    trying.discard(task)
                    return task.result()
                failed.append(error)
            trying -= done
    finally:
        for task in trying:
            task.add_done_callback(_let_go)
            task.cancel()
    raise next((error for error in failed if not isinstance(error, OSError)), failed[-1])


def _let_go(task: asyncio.Task[Connection]) -> None:
    """Another host was quicker."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


async def disconnect(connection: Connection) -> None:
    """Close in order, or cut."""
    try:
        async with asyncio.timeout(_CLOSING):
            await connection.close()
    except Exception:
        connection.terminate()


async def check_server(connection: Connection, url: str) -> None:
    """Raises `ConfigurationError` for a server that is too old or holds no Unicode, `Unavailable` for a standby."""
    version = connection.get_server_version()
    if (version.major, version.minor) < OLDEST:
        raise ConfigurationError(
            f"{url}: the server is PostgreSQL {version.major}.{version.minor}; easybus needs {OLDEST[0]} or later"
        )
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"{url}: the database's encoding is {encoding}; createdb --encoding=UTF8 one for the bus"
        )
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        raise Unavailable(f"{url}: this server is a standby; name the primary, or several hosts, in the URL")


def _abandoned(task: asyncio.Task[T], undo: Callable[[T], None] | None) -> None:
    if task.cancelled() or task.exception() is not None:
        return  # read, so that nothing is logged: nobody is left to be told
    if undo is not None:
        with contextlib.suppress(NotOpen):
            undo(task.result())

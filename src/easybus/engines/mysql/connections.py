"""Connections to the server: a few, lent for one call each, and every call ends by its deadline.

    call → a free connection, else a new one, else wait for one → work → back among the free
    the deadline passes     → the connection is cut, its call fails: Unavailable
    the caller is cancelled → the call goes on to its end, its result is handed to `undo`
    deadlock, lock timeout  → rolled back, and the work is begun again, a few times
    any other failure       → rolled back, or where that fails the connection is cut
    the connection was lost → Unavailable at once; the next call opens a new one

A cancelled statement's outcome is unknown, and so is what the next one on its connection would read: nothing here is
ever cancelled half way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncmy

from ...errors import ConfigurationError, EasybusError, NotOpen, Unavailable
from .failures import AGAIN, code, is_foreign, translated, wiped
from .link import ROLLBACK, Link
from .location import Location

T = TypeVar("T")

OLDEST_MYSQL, OLDEST_MARIADB = (8, 0, 1), (10, 6, 0)
_TRIES = 6
_CLOSING = 2.0
_FOUND_ROWS = 2
"""A flag of the protocol: an UPDATE counts the rows that it finds, not only those that it changes."""
_STRICT = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION"

_SETTINGS = "SET SESSION innodb_lock_wait_timeout = %s, SESSION wait_timeout = %s, SESSION autocommit = 1"
_ISOLATION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"  # else gaps are locked, and scans lock each row
_SNAPSHOT = "SHOW SESSION VARIABLES WHERE variable_name = 'innodb_snapshot_isolation' AND value = 'ON'"
"""MariaDB from 11.6 on, and others where it is so set: a row that changed since it was read cannot be locked."""
_SERVER = "SELECT VERSION(), @@max_allowed_packet, @@read_only"
_READ_ONLY = "SELECT @@read_only"


class Connections:
    """The connections of one engine on one event loop."""

    def __init__(self, location: Location, limit: int, *, plain: bool = False) -> None:
        """`plain`: without settings of ours, for callers' own statements."""
        self._location = location
        self._plain = plain
        self._slots = asyncio.Semaphore(limit)
        self._free: list[Link] = []
        self._lent: set[Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.largest_packet = 0
        """Bytes that the server takes at once."""
        self.prepare: Callable[[Link], Awaitable[None]] | None = None
        """Makes the tables; called before the first work, and again where they turn out to be gone."""
        self._prepared = False

    async def run(self, work: Callable[[Link], Awaitable[T]], *, undo: Callable[[T], None] | None = None) -> T:
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

    async def _bounded(self, work: Callable[[Link], Awaitable[T]]) -> T:
        end = asyncio.get_running_loop().time() + self._location.timeout
        tries = 0
        while True:
            link = await self.borrow(self._location.timeout)
            cut = Cut(link, self._location.timeout)
            tries += 1
            try:
                if self.prepare is not None and not self._prepared:
                    await self._make_anew(link)
                return await work(link)
            except Exception as error:
                lost = not link.alive  # then the library may raise whatever it stumbles over
                await _roll_back(link)
                if isinstance(error, EasybusError) or not (lost or is_foreign(error)):
                    raise
                if wiped(error):
                    self._prepared = False
                if cut.passed:
                    raise Unavailable(
                        f"{self._location.url}: no answer within {self._location.timeout:g} s (timeout=)"
                    ) from error
                late = asyncio.get_running_loop().time() >= end
                if code(error) not in AGAIN or tries == _TRIES or late:
                    raise translated(error, self._location.url) from error
            finally:
                cut.cancel()
                self.give_back(link)
            await asyncio.sleep(random.uniform(0, 0.01) * tries)

    async def _make_anew(self, link: Link) -> None:
        """The tables were there when the engine was opened, and may be again: nobody is to give up for that."""
        assert self.prepare is not None  # noqa: S101 - its caller has looked
        try:
            await self.prepare(link)
        except ConfigurationError as error:
            raise Unavailable(str(error)) from error
        self._prepared = True

    async def borrow(self, patience: float | None) -> Link:
        """A connection; whoever borrows gives it back. `patience`: seconds to wait for a free one."""
        try:
            async with asyncio.timeout(patience):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Unavailable(f"{self._location.url}: all connections are at work (connections=)") from error
        now = asyncio.get_running_loop().time
        try:
            while self._free:
                link = self._free.pop()
                if link.alive and now() - link.free_since < link.idle / 2:  # else the server may just hang up on it
                    break
                link.cut()
            else:
                link = await connect(self._location, plain=self._plain)
            link.largest_packet = self.largest_packet or link.largest_packet
        except BaseException:
            self._slots.release()
            raise
        self._lent.add(link)
        return link

    def give_back(self, link: Link) -> None:
        """The end of a loan."""
        self._lent.discard(link)
        self._slots.release()
        if self._closed or not link.alive or link.in_transaction:
            link.cut()
        else:
            link.free_since = asyncio.get_running_loop().time()
            self._free.append(link)

    @property
    def busy(self) -> set[asyncio.Task[Any]]:
        """The calls under way."""
        return self._tasks.copy()

    def adopt(self, link: Link) -> None:
        """Take in a connection that has been prepared."""
        link.free_since = asyncio.get_running_loop().time()
        self._free.append(link)
        self._prepared = True

    async def close(self) -> None:
        """Let calls under way end for two seconds, then disconnect."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING)
        for link in self._lent:
            link.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)
        free, self._free = self._free, []
        await asyncio.gather(*(disconnect(link) for link in free))
        await asyncio.sleep(0)  # what was cut is told so by the loop


class Cut:
    """A deadline: the connection is cut when it passes."""

    def __init__(self, link: Link, seconds: float) -> None:
        self.passed = False
        self._link = link
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        self._link.cut()

    def cancel(self) -> None:
        self._timer.cancel()


async def connect(location: Location, *, plain: bool = False, first: bool = False) -> Link:
    """A new connection, to the first host that answers and takes writes.

    Raises `Unavailable`, or `ConfigurationError` if it is the `first`.
    """
    failures: list[EasybusError] = []
    context = location.tls_context()
    for host, port in location.hosts:
        link: Link | None = None
        try:
            async with asyncio.timeout(min(5.0, location.timeout)):
                link = await _connect(location, host, port, context)
                if len(location.hosts) > 1 and await link.value(_READ_ONLY):
                    raise Unavailable(f"{location.url}: {host}:{port} is read-only")
                await _settle(link, location, plain)
            return link
        except BaseException as error:
            if link is not None:
                link.cut()
            if isinstance(error, TimeoutError):
                failures.append(Unavailable(f"{location.url}: {host}:{port} does not answer"))
            elif isinstance(error, Unavailable):
                failures.append(error)
            elif is_foreign(error) or isinstance(error, (ValueError, RuntimeError)):
                failure = translated(error, location.url, first=first)
                failure.__cause__ = error
                failures.append(failure)
            else:
                raise
    raise failures[0]


async def _connect(location: Location, host: str, port: int, context: Any) -> Link:
    library: Any = asyncmy
    connection = await library.connect(
        host=host,
        port=port,
        user=location.user,
        password=location.password.encode(),
        database=location.database,
        charset="utf8mb4",
        autocommit=None,
        client_flag=_FOUND_ROWS,
        ssl=context,
        connect_timeout=min(5.0, location.timeout),
        program_name="easybus",
    )
    return Link(connection, location.names)


async def _settle(link: Link, location: Location, plain: bool) -> None:
    if plain:
        await link.run(("SET SESSION autocommit = 1",))
        await hang_up_after(link, location.idle_timeout)
        return
    patience = max(1, int(location.timeout / 3))
    await link.connection.query(f"SET SESSION sql_mode = '{_STRICT}'")  # before any literal is written
    # No call takes longer: a transaction of ours that does nothing for so long is of a process that stands still, and
    # what it has locked would be passed over by all others.
    link.idle = max(1, math.ceil(location.timeout))
    if (await link.run((_SETTINGS, patience, link.idle), (_ISOLATION,), (_SNAPSHOT,)))[-1].rows:
        await link.run(("SET SESSION innodb_snapshot_isolation = OFF",))


async def hang_up_after(link: Link, seconds: float) -> None:
    """Let the server roll back, and hang up on, a transaction that does nothing for so long: one second at least."""
    wanted = max(1, round(seconds))
    if link.idle != wanted:
        await link.run(("SET SESSION wait_timeout = %s", wanted))
        link.idle = wanted


async def disconnect(link: Link) -> None:
    """Close in order, or cut."""
    try:
        async with asyncio.timeout(_CLOSING):
            await link.connection.ensure_closed()
    except Exception:
        link.cut()


async def check_server(link: Link, url: str) -> tuple[int, bool]:
    """How large a packet the server takes, and whether it is MariaDB.

    Raises `ConfigurationError` for a server that is too old, `Unavailable` for one that takes no writes.
    """
    version, packet, read_only = (await link.one(_SERVER)).rows[0]
    mariadb = "mariadb" in version.lower()
    numbers = version.lower().removeprefix("5.5.5-").partition("-")[0].split(".")
    found = tuple(int(number) for number in numbers if number.isdecimal())
    oldest = OLDEST_MARIADB if mariadb else OLDEST_MYSQL
    if found < oldest:
        raise ConfigurationError(
            f"{url}: the server is {'MariaDB' if mariadb else 'MySQL'} {version}; easybus needs MySQL 8.0.1 or "
            "MariaDB 10.6, or later"
        )
    if read_only:
        raise Unavailable(f"{url}: this server takes no writes; name the primary, or several hosts, in the URL")
    return packet, mariadb


async def _roll_back(link: Link) -> None:
    if not link.alive:
        link.cut()
        return
    try:
        await link.run(ROLLBACK)
    except Exception:
        link.cut()


def _abandoned(task: asyncio.Task[T], undo: Callable[[T], None] | None) -> None:
    if task.cancelled() or task.exception() is not None:
        return  # read, so that nothing is logged: nobody is left to be told
    if undo is not None:
        with contextlib.suppress(NotOpen):
            undo(task.result())

"""The one thread that owns a file's connection in this process, and commits what waits together.

    call → queue → gather ─┬─ reads, and writes with nothing to do: answered without a transaction
                           └─ writes: BEGIN IMMEDIATE … every waiting job … COMMIT → answers, one callback a loop

Rules
- An answer is given only after COMMIT. A job may run twice (a group that fails is rolled back, then run one by one, so
  that a failing job fails alone): it touches nothing but the connection and what a rollback forgets.
- A group with a durable job is committed with synchronous=FULL, any other with NORMAL (a power failure may undo it).
- A guest is a caller's transaction on a second connection. The thread itself begins and ends it, in the order of the
  queue: meanwhile all other writes of this process wait, so that they never fight over the file's one write lock.
- While anyone waits, `PRAGMA data_version` is looked at every few milliseconds: it moves when another connection
  commits.
- The connection is closed before a fork and opened after it, in the parent alone.
- A file that was removed or replaced under us is never closed: SQLite would delete the new file's log by its name.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from ...errors import EasybusError, NotOpen, Unavailable
from . import schema
from .connect import DEADLINE, Connection, connect, log, patiently, translated
from .location import Location
from .reader import Reader
from .topology import Topology
from .waking import Watcher, Watchers

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], T]

WRITE: Any = object()
"""What a `peek` returns when there is something to write."""

_GROUP = 256  # jobs in one transaction
_POLL, _POLL_IDLE = 0.003, 0.005  # seconds between looks at data_version
_LONG = 5.0  # seconds that a guest may hold the file before it is logged
_LOG_LIMIT = 8 << 20  # bytes of write-ahead log before a TRUNCATE checkpoint, where automatic ones are off


class Job(Generic[T]):
    """One call on its way through the thread, and back to its loop."""

    __slots__ = ("control", "durable", "error", "future", "peek", "result", "since", "undo", "work")

    def __init__(
        self,
        future: asyncio.Future[T] | None = None,
        work: Work[T] | None = None,
        durable: bool = False,
        peek: Work[Any] | None = None,
        undo: Callable[[T], Any] | None = None,
        control: Callable[[], T] | None = None,
    ) -> None:
        self.future = future
        self.work = work
        self.durable = durable
        self.peek = peek
        self.undo = undo
        self.control = control
        self.since = time.monotonic()
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future is not None and self.future.cancelled()

    def settle(self) -> None:
        """On the loop: hand the outcome over, or take it back if nobody waits for it any more."""
        if self.future is None:
            return
        if self.future.done():
            if self.undo is not None and self.error is None and self.result is not None:
                self.undo(self.result)
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Guest:
    """A caller's transaction, open on a connection of its own."""

    __slots__ = ("connection", "logged", "since")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.since = time.monotonic()
        self.logged = False


class Writer:
    """The file's thread. Its methods may be called from any event loop."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.topology = Topology()
        self.watchers = Watchers()
        self.reader = Reader(location)
        self.touched: set[str] = set()
        """Names whose watchers are woken when the group commits; jobs add to it."""
        self.identity = ""
        self.guest: Guest | None = None
        self.ready: ThreadFuture[None] = ThreadFuture()
        self._refusal: EasybusError | None = None
        self._queue: SimpleQueue[Job[Any]] = SimpleQueue()
        self._waiting: deque[Job[Any]] = deque()
        self._connection: Connection | None = None
        self._guests: Connection | None = None
        self._inode = 0
        self._lost = False
        self._stopping = False
        self._durable: bool | None = None
        self._version: Any = None
        self._pause = _POLL
        self._thread = threading.Thread(target=self._run, name="easybus-sqlite", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------- from event loops

    def call(
        self,
        work: Work[T],
        *,
        durable: bool = False,
        peek: Work[Any] | None = None,
        undo: Callable[[T], Any] | None = None,
    ) -> asyncio.Future[T]:
        """Run `work` in a transaction. `peek` runs before it, outside: what it returns is the answer, unless `WRITE`.
        `undo` is given a result that nobody waits for any more."""
        return self._put(Job(None, work, durable, peek, undo))

    def read(self, peek: Work[T]) -> asyncio.Future[T]:
        """Run `peek` outside of a transaction."""
        return self._put(Job(peek=peek))

    def begin(self) -> asyncio.Future[Guest]:
        """Begin a guest's transaction when it is its turn."""
        return self._put(Job(control=self._begin_guest, undo=lambda guest: self.end(guest, False)))

    def end(self, guest: Guest, commit: bool) -> asyncio.Future[bool]:
        """Commit or roll back; False: the transaction was no longer open."""
        return self._put(Job(control=lambda: self._end_guest(guest, commit)))

    def stop(self) -> ThreadFuture[None]:
        """Serve what waits, then close the connection. Done when that is done."""
        done: ThreadFuture[None] = ThreadFuture()
        if self._refusal is None:
            self._refusal = NotOpen("this bus is closed; write: async with bus: …")
            self._queue.put(Job(control=lambda: self._stop(done)))
        else:
            done.set_result(None)
        return done

    @property
    def refuses(self) -> bool:
        """Whether every call is refused: stopped, or left behind by a fork."""
        return self._refusal is not None

    def _put(self, job: Job[T]) -> asyncio.Future[T]:
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)
        job.future = asyncio.get_running_loop().create_future()
        self._queue.put(job)
        return job.future

    # ------------------------------------------------------------------------------------------------ around a fork

    def pause(self, resume: threading.Event) -> ThreadFuture[bool]:
        """Close the connections until `resume`; the result says whether that was possible."""
        paused: ThreadFuture[bool] = ThreadFuture()
        self._queue.put(Job(control=lambda: self._pause_here(paused, resume)))
        return paused

    def refuse(self, error: EasybusError) -> None:
        """In a forked child: answer every call with this."""
        self._refusal = error

    def _pause_here(self, paused: ThreadFuture[bool], resume: threading.Event) -> None:
        if self.guest is None and not self._lost:
            self._close()
            paused.set_result(True)
            resume.wait()
        else:
            paused.set_result(False)

    # ---------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            connection = self._open()
            self.identity = connection.rows(schema.IDENTITY)[0][0]
        except BaseException as error:  # whoever opens is told
            self._refusal = self._refusal or NotOpen("this database could not be opened")
            self._close()
            self.ready.set_exception(translated(error) if isinstance(error, Exception) else error)
            return
        del connection
        self.ready.set_result(None)
        while not self._stopping:
            self._gather()
            if self.guest is None:
                self._serve()
        self._close()

    def _open(self) -> Connection:
        """The connection, made if there is none."""
        path = self.location.path
        if self._connection is None:
            connection = connect(path, self.location.library)
            try:
                schema.prepare(connection, path)
                self._inode = os.stat(path).st_ino
            except BaseException:
                connection.close()
                raise
            self._connection, self._durable = connection, None
        return self._connection

    def _check_file(self) -> None:
        try:
            self._lost = self._lost or os.stat(self.location.path).st_ino != self._inode
        except OSError:
            self._lost = True
        if self._lost:
            raise Unavailable(f"the file {self.location.path} was removed or replaced while it was open; start anew")

    def _close(self) -> None:
        for connection in (self._guests, self._connection):
            if connection is not None and not self._lost:
                try:
                    connection.close()
                except Exception as error:
                    log.warning("closing %s: %s", self.location.path, error)
        if not self._lost:
            self.reader.close()
            self._guests = self._connection = None

    def _stop(self, done: ThreadFuture[None]) -> None:
        self._stopping = True
        try:
            if self.guest is not None:
                self._end_guest(self.guest, False)
            while self._waiting:
                self._serve()
            self._close()
            closed = NotOpen("this bus is closed; write: async with bus: …")
            while True:
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
                job.error = closed
                _deliver([job])
            _deliver([], self.watchers.take_all())
        finally:
            done.set_result(None)

    def _gather(self) -> None:
        """Move what was put to `_waiting`, waiting for it if there is nothing to do. What may jump the queue runs."""
        idle = self.guest is not None or not self._waiting
        timeout = self._pause if self.watchers else None
        if self.guest is not None:
            timeout = min(timeout or 1.0, 1.0)
            self._watch_guest(self.guest)
        try:
            job = self._queue.get(idle, timeout)
        except Empty:
            job = None
        if self.watchers:
            self._look_abroad()
        while job is not None:
            if job.control is not None and job.control != self._begin_guest:
                self._control(job)
                if self._stopping:
                    return
            elif self.guest is not None and job.work is None and job.control is None:
                self._run_group([job])  # reading needs nobody's turn
            else:
                self._waiting.append(job)
            try:
                job = self._queue.get_nowait()
            except Empty:
                job = None

    def _control(self, job: Job[Any]) -> None:
        try:
            job.result = job.control and job.control()
        except Exception as error:
            job.error = translated(error)
        _deliver([job])

    def _serve(self) -> None:
        group: list[Job[Any]] = []
        while self._waiting and len(group) < _GROUP and self._waiting[0].control is None:
            job = self._waiting.popleft()
            if not job.abandoned:
                group.append(job)
        if group:
            self._run_group(group)
        elif self._waiting and self._waiting[0].control is not None:
            job = self._waiting.popleft()
            if not job.abandoned:
                self._control(job)

    def _run_group(self, group: list[Job[Any]]) -> None:
        woken: list[Watcher] = []
        writes = [job for job in group if job.peek is None or self._peek(job)]
        if writes:
            self._write(writes, woken)
        _deliver(group, woken)
        if writes and self.location.library == "sqlite3":
            self._truncate_log()

    def _peek(self, job: Job[Any]) -> bool:
        """Run a job's look outside of a transaction; whether it has something to write."""
        peek = job.peek
        assert peek is not None  # noqa: S101 - the caller looked
        try:
            connection = self._open()
            job.result = patiently(lambda: peek(connection))
        except Exception as error:
            job.error = translated(error)
            return False
        return job.result is WRITE

    def _write(self, jobs: list[Job[Any]], woken: list[Watcher]) -> None:
        self.touched.clear()
        try:
            connection = self._begin(any(job.durable for job in jobs))
            for job in jobs:
                job.result = job.work and job.work(connection)
            connection.rows("COMMIT")
        except Exception as error:
            self._roll_back()
            for job in jobs:
                job.result = None
            if len(jobs) == 1 or isinstance(error, Unavailable):
                for job in jobs:
                    job.error = translated(error)
            else:
                for job in jobs:
                    self._write([job], woken)
            return
        if self.touched:
            woken.extend(self.watchers.take(self.touched))

    def _begin(self, durable: bool) -> Connection:
        connection = self._open()
        self._check_file()
        if durable is not self._durable:
            connection.rows("PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL")
            self._durable = durable
        patiently(lambda: connection.rows("BEGIN IMMEDIATE"))
        return connection

    def _roll_back(self) -> None:
        self.topology.forget()  # it may have been read inside what is rolled back
        connection = self._connection
        if connection is not None and connection.in_transaction:
            try:
                connection.rows("ROLLBACK")
            except Exception as error:
                log.warning("rolling back on %s: %s", self.location.path, error)

    def _look_abroad(self) -> None:
        """Wake everyone if another connection has committed since the last look."""
        connection = self._connection
        if connection is None:
            return
        try:
            version = connection.rows("PRAGMA data_version")
        except Exception:  # the next group meets the same trouble, and tells
            return
        if version != self._version:
            self._version, self._pause = version, _POLL
            _deliver([], self.watchers.take_all())
        else:
            self._pause = min(self._pause * 1.02, _POLL_IDLE)

    def _truncate_log(self) -> None:
        try:
            if os.stat(self.location.path + "-wal").st_size > _LOG_LIMIT and self._connection is not None:
                self._connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        except Exception as error:
            log.debug("checkpoint of %s put off: %s", self.location.path, error)

    # --------------------------------------------------------------------------------------------------- the guest

    def _begin_guest(self) -> Guest:
        self._open()
        self._check_file()
        if self._guests is None:
            self._guests = connect(self.location.path, self.location.library)
        connection = self._guests
        patiently(lambda: connection.rows("BEGIN IMMEDIATE"))
        self.guest = Guest(connection)
        return self.guest

    def _end_guest(self, guest: Guest, commit: bool) -> bool:
        if self.guest is not guest:
            return False
        connection = guest.connection
        self.guest, self._guests = None, None
        try:
            if not connection.in_transaction:
                return False
            try:
                connection.rows("COMMIT" if commit else "ROLLBACK")
                self._guests = connection  # what went well is used again
            except BaseException:
                if connection.in_transaction:
                    connection.rows("ROLLBACK")
                raise
            return True
        finally:
            if self._guests is None and not self._lost:
                connection.close()
            _deliver([], self.watchers.take_all())

    def _watch_guest(self, guest: Guest) -> None:
        """Say once that a guest holds the file for long, and let nobody wait for it past the deadline."""
        now = time.monotonic()
        if now - guest.since > _LONG and not guest.logged:
            guest.logged = True
            log.warning(
                "a transaction on %s has been open for over %g s: until it ends, nothing else is written to this file",
                self.location.path,
                _LONG,
            )
        while self._waiting and now - max(self._waiting[0].since, guest.since) > DEADLINE:
            job = self._waiting.popleft()
            job.error = Unavailable(f"a transaction of this process holds the database, for over {DEADLINE:g} s now")
            _deliver([job])


def _deliver(jobs: list[Job[Any]], woken: list[Watcher] | None = None) -> None:
    """Bring outcomes to their event loops, with one call for each loop."""
    loops: dict[asyncio.AbstractEventLoop, tuple[list[Job[Any]], list[Watcher]]] = {}
    for job in jobs:
        if job.future is not None:
            loops.setdefault(job.future.get_loop(), ([], []))[0].append(job)
    for watcher in woken or ():
        loops.setdefault(watcher.get_loop(), ([], []))[1].append(watcher)
    for loop, (settled, watchers) in loops.items():
        try:
            loop.call_soon_threadsafe(_arrive, settled, watchers)
        except RuntimeError:  # that loop is closed: nobody waits any more
            continue


def _arrive(jobs: list[Job[Any]], woken: list[Watcher]) -> None:
    for job in jobs:
        job.settle()
    for watcher in woken:
        if not watcher.done():
            watcher.set_result(None)

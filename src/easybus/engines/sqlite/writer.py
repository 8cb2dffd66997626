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
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ...errors import EasybusError, NotOpen, Unavailable
from . import schema
from .connect import DEADLINE, Connection, log, patiently, translated
from .held import HeldFile
from .jobs import WRITE, Job, Work, deliver
from .location import Location
from .reader import Reader
from .topology import Topology
from .waking import Watcher, Watchers

__all__ = ["WRITE", "Guest", "Writer"]

T = TypeVar("T")

_GROUP = 256  # jobs in one transaction
_POLL, _POLL_IDLE = 0.002, 0.005  # seconds between looks at data_version
_LONG = 5.0  # seconds that a guest may hold the file before it is logged
_CLOSED = "this bus is closed; write: async with bus: …"


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
        self.file = HeldFile(location)
        self.touched: set[str] = set()
        """Names whose watchers are woken when the group commits; jobs add to it."""
        self.identity = ""
        self.guest: Guest | None = None
        self.ready: ThreadFuture[None] = ThreadFuture()
        self._refusal: EasybusError | None = None
        self._queue: SimpleQueue[Job[Any]] = SimpleQueue()
        self._waiting: deque[Job[Any]] = deque()
        self._stopping = False
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
    ) -> asyncio.Future[T]:
        """Run `work` in a transaction.

        `peek` runs before it, outside: what it returns is the answer, but for `WRITE`.
        """
        return self._put(Job(work, durable=durable, peek=peek))

    async def take(
        self, work: Work[T], undo: Callable[[T], Any], *, durable: bool = False, peek: Work[Any] | None = None
    ) -> T:
        """As `call`; where the caller is cancelled, `undo` is given the result that nobody gets."""
        return await self._or_undone(Job(work, durable=durable, peek=peek, undo=undo), undo)

    async def _or_undone(self, job: Job[T], undo: Callable[[T], Any]) -> T:
        future = self._put(job)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the arrival of the result and the task's next step; before that, the job undoes.
            if future.done() and not future.cancelled() and future.exception() is None:
                undo(future.result())
            raise

    def later(self, work: Work[Any], *, durable: bool = False) -> None:
        """Run `work`, of which nobody awaits the end; never, if the writer has stopped."""
        if self._refusal is None:
            self._queue.put(Job(work, durable=durable))

    def read(self, peek: Work[T]) -> asyncio.Future[T]:
        """Run `peek` outside of a transaction."""
        return self._put(Job(peek=peek))

    async def begin(self) -> Guest:
        """Begin a guest's transaction when it is its turn."""
        return await self._or_undone(Job(control=self._begin_guest, undo=self._abandon), self._abandon)

    def _abandon(self, guest: Guest) -> None:
        self._queue.put(Job(control=lambda: self._end_guest(guest, False)))

    def end(self, guest: Guest, commit: bool) -> asyncio.Future[bool]:
        """Commit or roll back; False: the transaction was no longer open."""
        return self._put(Job(control=lambda: self._end_guest(guest, commit)))

    def stop(self) -> ThreadFuture[None]:
        """Serve what waits, then close the connection. Done when that is done."""
        done: ThreadFuture[None] = ThreadFuture()
        if self._refusal is None:
            self._refusal = NotOpen(_CLOSED)
            self._queue.put(Job(control=lambda: self._stop(done)))
        else:
            done.set_result(None)
        return done

    @property
    def reader(self) -> Reader:
        """Reads what is committed, without waiting."""
        return self.file.reader

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
        if self.guest is None and not self.file.lost:
            self.file.close()
            paused.set_result(True)
            resume.wait()
        else:
            paused.set_result(False)

    # ---------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self.identity = self.file.connection().rows(schema.IDENTITY)[0][0]
        except BaseException as error:  # whoever opens is told
            self._refusal = self._refusal or NotOpen("this database could not be opened")
            self.file.close()
            self.ready.set_exception(translated(error) if isinstance(error, Exception) else error)
            return
        self.ready.set_result(None)
        while not self._stopping:
            self._gather()
            if self.guest is None:
                self._serve()
        self.file.close()

    def _stop(self, done: ThreadFuture[None]) -> None:
        self._stopping = True
        try:
            if self.guest is not None:
                self._end_guest(self.guest, False)
            while self._waiting:
                self._serve()
            self.file.close()
            closed = NotOpen(_CLOSED)
            while True:
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
                job.error = closed
                deliver([job])
            deliver([], self.watchers.take_all())
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
        deliver([job])

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
        deliver(group, woken)
        if writes:
            self.file.truncate_log()

    def _peek(self, job: Job[Any]) -> bool:
        """Run a job's look outside of a transaction; whether it has something to write."""
        peek = job.peek
        assert peek is not None  # noqa: S101 - the caller looked
        try:
            connection = self.file.connection()
            job.result = patiently(lambda: peek(connection))
        except Exception as error:
            job.error = translated(error)
            return False
        return job.result is WRITE

    def _write(self, jobs: list[Job[Any]], woken: list[Watcher]) -> None:
        self.touched.clear()
        try:
            connection = self.file.begin(any(job.durable for job in jobs))
            for job in jobs:
                job.result = job.work and job.work(connection)
            connection.rows("COMMIT")
        except Exception as error:
            self.file.roll_back()
            self.topology.forget()  # it may have been read inside what is rolled back
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

    def _look_abroad(self) -> None:
        """Wake everyone if another connection has committed since the last look."""
        version = self.file.data_version()
        if version is None:
            return
        if version != self._version:
            self._version, self._pause = version, _POLL
            deliver([], self.watchers.take_all())
        else:
            self._pause = min(self._pause * 1.02, _POLL_IDLE)

    # --------------------------------------------------------------------------------------------------- the guest

    def _begin_guest(self) -> Guest:
        self.guest = Guest(self.file.begin_guest())
        return self.guest

    def _end_guest(self, guest: Guest, commit: bool) -> bool:
        if self.guest is not guest:
            return False
        self.guest = None
        try:
            return self.file.end_guest(guest.connection, commit)
        finally:
            deliver([], self.watchers.take_all())

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
            deliver([job])

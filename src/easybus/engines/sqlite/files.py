"""The database files that this process has open: one writer and one SQLite library for each.

Two libraries on one file in one process lose rows: closing the one's descriptor drops the other's POSIX locks.
A SQLite connection never crosses a fork: all are closed before, and opened again after, in the parent alone. Where a
transaction is open at that moment, the child is refused this file.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from ...errors import ConfigurationError, NotOpen
from .location import Location
from .writer import Writer

_lock = threading.Lock()
_open: dict[str, _File] = {}
_tainted: dict[str, Writer] = {}
"""In a forked child: files with connections that crossed the fork; kept, since closing them would harm the parent."""

_FORK_PATIENCE = 35.0


@dataclass(slots=True)
class _File:
    writer: Writer
    users: int


def acquire(location: Location) -> Writer:
    """The file's writer in this process; wait for its `ready`, give it back with `give_back`.

    Raises `ConfigurationError` if the process has the file open with the other library.
    """
    with _lock:
        if location.path in _tainted:
            raise ConfigurationError(
                f"this process was forked while a transaction was open on {location.path}, so it cannot open the file; "
                "fork before the bus is opened, or start processes with multiprocessing's method 'spawn'"
            )
        there = _open.get(location.path)
        if there is None:
            _open[location.path] = there = _File(Writer(location), 0)
        elif there.writer.location.library != location.library:
            other = there.writer.location
            raise ConfigurationError(
                f"{location.path} is open in this process with {other.library}, and two SQLite libraries on one file "
                f"lose data; use the same URL for both: {other.url}"
            )
        there.users += 1
        return there.writer


def give_back(writer: Writer) -> bool:
    """One user less; whether it was the last, who then stops the writer."""
    with _lock:
        there = _open.get(writer.location.path)
        if there is None or there.writer is not writer:
            return False
        there.users -= 1
        if there.users == 0:
            del _open[writer.location.path]
        return there.users == 0


def library_of(path: str) -> str | None:
    """The library that this process has the file open with, if it has."""
    with _lock:
        there = _open.get(os.path.realpath(path))
        return None if there is None else there.writer.location.library


class _Fork:
    """What one fork has closed, and what it could not. One begun before this module's import closed nothing."""

    def __init__(self) -> None:
        self.forker: int | None = None
        self.resume = threading.Event()
        self.unclosed: list[Writer] = []

    def before(self) -> None:
        _lock.acquire()
        self.forker, self.resume, self.unclosed = threading.get_ident(), threading.Event(), []
        writers = [file.writer for file in _open.values()]
        paused = [(writer, writer.pause(self.resume)) for writer in writers]
        for writer, done in paused:
            try:
                closed = done.result(_FORK_PATIENCE)
            except TimeoutError:
                closed = False
            if not closed:
                self.unclosed.append(writer)

    def after_in_parent(self) -> None:
        if self.forker == threading.get_ident():
            self.forker = None
            self.resume.set()
            _lock.release()

    def after_in_child(self) -> None:
        ours = self.forker == threading.get_ident()
        unclosed = self.unclosed if ours else [file.writer for file in _open.values()]
        for file in _open.values():
            file.writer.refuse(
                NotOpen("this bus was opened before a fork: open it again in the child: async with bus: …")
            )
        _tainted.update((writer.location.path, writer) for writer in unclosed)
        _open.clear()
        if ours:
            self.forker = None
            _lock.release()


_fork = _Fork()
os.register_at_fork(before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child)

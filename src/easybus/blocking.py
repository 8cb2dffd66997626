"""The bus without await: for Django, Flask, scripts, and handlers that are plain functions.

On a thread and a loop of its own, started at the first call; if the bus is open already on a running loop, calls from
other threads go there. Closed before a fork and reopened after it; closed at exit.

gate      held to open, to close, to begin a call, and from before a fork until after it; never while a call runs
calls     those under way on a loop of our own: closing waits for them with the gate held, and what comes meanwhile
          waits for the gate, and opens the bus again

Who holds the gate waits for others only so long: one of them may wait for the gate, or be the thread that forks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from .errors import NotOpen, Unavailable
from .message import Message
from .outgoing import Outgoing, SendOptions

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["BlockingBus"]

T = TypeVar("T")

_CLOSING = 10.0
"""Seconds that closing waits for what is under way, and a fork for the end of an opening or closing."""
_FORKING = 2.0
"""Seconds that a fork waits for calls. Then the bus stays open, in the parent alone: a fork ends nobody's call."""


class BlockingBus:
    """One bus's blocking face; from any thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._gate = threading.Lock()
        self._calls: set[Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _all.append(weakref.ref(self, _all.remove))

    # ------------------------------------------------------------------------------------------------------ calls

    def send(
        self, target: Any, value: Any, *, within: object = None, require: bool | None = None,
        **options: Unpack[SendOptions],
    ) -> Message:  # fmt: skip
        """As `Bus.send`. With `within`, the rows are written by the calling thread, into its own transaction."""
        if within is not None:
            [message] = self.send_many(target, [Outgoing(value, **options)], within=within, require=require)
            return message
        return self.call(self._bus.send(target, value, require=require, **options))

    def send_many(
        self, target: Any, values: Iterable[Any], *, within: object = None, require: bool | None = None
    ) -> list[Message]:
        """As `Bus.send_many`."""
        if within is None:
            return self.call(self._bus.send_many(target, values, require=require))
        try:
            writing = self._begin(lambda _: Future[None]())
        except Unavailable as error:
            raise Unavailable(
                f"{error}; if that is the transaction of within=, open the bus before it begins: bus.blocking.open()"
            ) from error
        try:
            return self._bus.write_within(self._bus.opened, target, list(values), within, require)
        finally:
            writing.cancel()

    @contextlib.contextmanager
    def transaction(self, target: Any, value: Any, **options: Any) -> Generator[Message, None, None]:
        """As `Bus.transaction`, around plain code."""
        process, begun, ended = os.getpid(), Future[Message](), Future[BaseException | None]()
        call = self._begin_call(self._transaction(target, value, options, begun, ended))
        call.add_done_callback(lambda _: begun.cancel())

        def end(error: BaseException | None) -> bool | None:
            if os.getpid() != process:
                return None  # forked in the block, whose end is the parent's
            with contextlib.suppress(InvalidStateError):  # closed meanwhile, as the call's result says
                ended.set_result(error)
            return _result(call)

        try:
            with contextlib.suppress(CancelledError):
                begun.exception()
            if begun.cancelled():
                _result(call)
            yield begun.result()
        except BaseException as error:
            if not end(error):
                raise
        else:
            end(None)

    async def _transaction(
        self,
        target: Any,
        value: Any,
        options: dict[str, Any],
        begun: Future[Message],
        ended: Future[BaseException | None],
    ) -> bool | None:
        """The whole block is one call, so that the bus is not closed in the middle of it."""
        block = self._bus.transaction(target, value, **options)
        begun.set_result(await block.__aenter__())
        try:
            error = await asyncio.wrap_future(ended)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        return await block.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run any coroutine of the bus, such as `bus.dead_letters.count()`, and return its result.

        Raises:
            NotOpen: called on the bus's own loop, which it would stop: write await there.
            Unavailable: the bus was closed, and this took longer than closing waits.
        """
        return _result(self._begin_call(coroutine))

    def _begin_call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return self._begin(lambda loop: asyncio.run_coroutine_threadsafe(coroutine, loop))
        except BaseException:
            coroutine.close()
            raise

    def _begin(self, start: Callable[[asyncio.AbstractEventLoop], Future[T]]) -> Future[T]:
        """What `start` begins on the loop of the open bus, which is not closed before that is done."""
        opened = self._bus.opened_or_none
        if (running := _running_loop()) and (running is self._loop or (opened and running is opened.loop)):
            raise NotOpen(
                "bus.blocking would stop the event loop that it is called on: write `await bus.send(...)` here"
            )
        with self._gate:
            loop = self._open_loop()
            future = start(loop)
            if loop is self._loop:
                self._calls.add(future)
                future.add_done_callback(self._calls.discard)
            return future

    # ------------------------------------------------------------------------------------------- opening and closing

    def open(self) -> None:
        """Open now, instead of at the first call."""
        self._begin(lambda _: Future[None]()).cancel()

    def close(self) -> None:
        """Finish what is under way and disconnect; the next call opens again.

        Calls that take longer than closing waits end with `Unavailable`.

        Raises:
            NotOpen: called on the loop that it would wait for.
        """
        if self._thread is threading.current_thread():
            raise NotOpen(
                "bus.blocking.close() would wait for the event loop that it is called on: call it from another thread"
            )
        with self._gate:
            for call in self._unfinished(_CLOSING):
                call.cancel()
            self._stop()

    def _unfinished(self, seconds: float) -> list[Future[Any]]:
        """The calls that are still under way after so long."""
        deadline = time.monotonic() + seconds
        calls = list(self._calls)
        for call in calls:
            with contextlib.suppress(TimeoutError, CancelledError):
                call.exception(max(0.0, deadline - time.monotonic()))
        return [call for call in calls if not call.done()]

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        opened = self._bus.opened_or_none
        if opened is not None and opened.pid != os.getpid():
            self._forget()
        elif opened is not None and opened.loop.is_running():
            return opened.loop
        return self._loop or self._start()

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="easybus", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._bus.__aenter__(), loop).result()
        except BaseException:
            self._stop_loop()
            raise
        _hook_forks()
        return loop

    def _stop(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._bus.__aexit__(), self._loop).result(_CLOSING)
            self._stop_loop()

    def _stop_loop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        assert loop is not None and thread is not None  # noqa: S101, PT018 - `_start` made both
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSING)
        if not thread.is_alive():
            loop.close()

    # ----------------------------------------------------------------------------------------------- around a fork

    def hold(self) -> bool:
        """Before a fork: close, and let nobody in until `let_go`. False: the gate could not be had in time.

        What cannot be closed in time, or is the loop that forks, stays open in the parent: a child begins anew anyway.
        """
        forks = self._thread is threading.current_thread()
        if not self._gate.acquire(timeout=0 if forks else _CLOSING):
            return False
        if not forks and not self._unfinished(_FORKING):
            self._stop()
        return True

    def let_go(self) -> None:
        """After the fork, in the parent."""
        self._gate.release()

    def begin_anew(self) -> None:
        """After the fork, in the child: nobody is in, and nothing is open."""
        self._gate, self._calls = threading.Lock(), set()
        self._forget()

    def _forget(self) -> None:
        _parents.append((self._bus.forget(), self._loop))
        self._loop = self._thread = None


_all: list[weakref.ref[BlockingBus]] = []  # appended to, removed from and copied in one step each, from any thread
_parents: list[object] = []
"""In a forked child: what the parent goes on with. Kept, since collecting it could end connections of the parent's."""


def _buses() -> list[BlockingBus]:
    return [bus for ref in list(_all) if (bus := ref()) is not None]


def _result(call: Future[T]) -> T:
    """Raises `Unavailable` where closing the bus ended it."""
    try:
        return call.result()
    except CancelledError as error:
        raise Unavailable(
            "the bus was closed while this call was under way: whether it took effect is not known; sending the same "
            "Message again is safe"
        ) from error


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@atexit.register
def _close_all() -> None:
    for bus in _buses():
        bus.close()


class _Fork:
    """One fork at a time, by whichever thread. Its hooks may be registered more than once: the first of each counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forker: int | None = None
        self._held: list[BlockingBus] = []

    def before(self) -> None:
        if self._forker != threading.get_ident():
            self._lock.acquire()
            self._forker = threading.get_ident()
            for bus in _buses():
                if bus.hold():
                    self._held.append(bus)

    def after_in_parent(self) -> None:
        if self._forker == threading.get_ident():
            while self._held:
                self._held.pop().let_go()
            self._forker = None
            self._lock.release()

    def after_in_child(self) -> None:
        for bus in _buses():
            bus.begin_anew()
        self._lock, self._forker, self._held = threading.Lock(), None, []


_fork = _Fork()
_hooked_after: set[frozenset[str]] = set()


def _hook_forks() -> None:
    """Hooks run latest first, and engines have their own: ours must be registered after an engine is imported."""
    engines = frozenset(name for name in sys.modules if name.startswith("easybus.engines."))
    if engines not in _hooked_after:
        _hooked_after.add(engines)
        os.register_at_fork(
            before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child
        )


_hook_forks()

"""Child processes, kept alive, and stopped together.

    start → running ─ exits on its own ─→ waiting (1, 2, 4 … 30 s; 1 again after a minute of life) → start
                    └ a file changed ───→ stopping: SIGTERM, waited for → start, at once
    SIGTERM or SIGINT to the supervisor: every child gets SIGTERM, none is started any more, all are waited for; for a
    second one they get a second: what a child makes of that is its own affair. Never SIGINT, which would be an error's
    traceback and exit code in a child that has not come to its own handling of signals yet.

Each child is a session of its own, so that a Ctrl-C reaches it once, by the supervisor. Its standard input is a pipe;
when the supervisor is killed the pipe ends, and `stop_with_parent` in the child stops it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import typer

from .output import note

FIRST_PAUSE, LONGEST_PAUSE, LIVED = 1.0, 30.0, 60.0
_LOOK_EVERY = 0.1
_STOPPED = {0, -signal.SIGTERM}


class _Child:
    def __init__(self, number: int, command: Sequence[str], tell: Callable[[str], None]) -> None:
        self.number = number
        self._command = command
        self._tell = tell
        self._pause = FIRST_PAUSE
        self._started = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.due = 0.0
        """When to start it, by the monotonic clock."""
        self._told = False

    def start(self) -> None:
        self._started = time.monotonic()
        self._told = False
        self.process = subprocess.Popen(  # noqa: S603 - this very program
            self._command, stdin=subprocess.PIPE, start_new_session=True
        )
        self._tell(f"worker {self.number} started (process {self.process.pid})")

    def look(self) -> None:
        """Notice an end, and say when it starts again."""
        if self.process is None or self.process.poll() is None:
            return
        ended = self.forget()
        if time.monotonic() - self._started >= LIVED:
            self._pause = FIRST_PAUSE
        self.due = time.monotonic() + self._pause
        how = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
        self._tell(f"worker {self.number} ended ({how}); started again in {self._pause:g} s")
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

    def forget(self) -> int:
        """Its exit code, after it has ended."""
        assert self.process is not None  # noqa: S101 - its callers have seen it
        code = self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None
        return code

    def terminate(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self._told = True

    def stop(self) -> None:
        """Ask it to stop, unless it was asked: a second signal would mean more than the first."""
        if not self._told:
            self.terminate()


class Supervisor:
    """Runs `count` copies of a command until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        changed: Callable[[], bool] | None = None,
        tell: Callable[[str], None] = note,
    ) -> None:
        """`changed` waits a little, and says whether the code is another one now; None: it is never looked at. `tell`
        says what becomes of the children."""
        self._children = [_Child(number + 1, command, tell) for number in range(count)]
        self._changed = changed
        self._tell = tell
        self._stopping = threading.Event()

    def run_or_exit(self) -> None:
        """As `run`; ends the program with its exit code if that is not 0."""
        code = self.run()
        if code:
            raise typer.Exit(code)

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit code: 0, or 1 if a child did not end well at the stop."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stopping.is_set():
                now = time.monotonic()
                for child in self._children:
                    child.look()
                    if child.process is None and child.due <= now and not self._stopping.is_set():
                        child.start()
                if self._changed is None:
                    self._stopping.wait(_LOOK_EVERY)
                elif self._changed():
                    self._restart()
            return self._wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping.set()
        for child in self._children:
            child.terminate()

    def _restart(self) -> None:
        self._tell("the code has changed: the workers start anew")
        for child in self._children:
            child.stop()
        for child in self._children:
            if child.process is not None:
                child.forget()
            child.due = 0.0

    def _wait(self) -> int:
        running = [child for child in self._children if child.process is not None]
        for child in running:
            child.stop()  # one that was started as the signal came has not got it
        codes = [child.forget() for child in running]
        return int(any(code not in _STOPPED for code in codes))


def stop_with_parent() -> None:
    """In a child: stop, as by SIGTERM, when the supervisor is gone."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="easybus-parent", daemon=True).start()

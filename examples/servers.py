"""A private server for an example, of the kind that the tests start: on a free port, gone afterwards."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

ENGINES = {
    "sqlite": "",
    "postgresql": "tests.servers.postgresql:PostgresqlServer",
    "mysql": "tests.servers.mariadb:MariadbServer",
    "redis": "tests.servers.redis:RedisServer",
    "rabbitmq": "tests.servers.rabbitmq:RabbitmqServer",
    "nats": "tests.servers.nats:NatsServer",
}


class PrivateServer(Protocol):
    """What may be done to it."""

    def url(self) -> str:
        """For `Bus`."""
        ...

    def kill(self) -> None:
        """SIGKILL to it and all that it has spawned."""
        ...

    def start(self) -> None:
        """Start it on the data that it has, and wait until it answers."""
        ...

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        ...

    def output(self) -> str:
        """What it has printed."""
        ...


@contextmanager
def private_server(engine: str, of: Collection[str] = ENGINES.keys()) -> Iterator[PrivateServer | None]:
    """A running server that nobody else uses; None for SQLite, which has none.

    Raises:
        SystemExit: no such engine, or its server is not installed.
    """
    if engine not in of:
        raise SystemExit(f"this runs on {', '.join(of)}; not on {engine!r}")
    if not ENGINES[engine]:
        yield None
        return
    module, _, name = ENGINES[engine].partition(":")
    try:
        server = getattr(importlib.import_module(module), name)()
    except BaseException as missing:  # what says "skipped" in a test ends the example
        raise SystemExit(f"no server for {engine}: {missing}") from None
    try:
        server.start()
        yield server
    finally:
        server.remove()

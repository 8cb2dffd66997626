"""A private server for the demo's messages, of the kind that the tests start: on a free port, gone afterwards."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

ENGINES = {
    "sqlite": "",
    "postgresql": "tests.servers.postgresql:PostgresqlServer",
    "mysql": "tests.servers.mariadb:MariadbServer",
    "redis": "tests.servers.redis:RedisServer",
    "rabbitmq": "tests.servers.rabbitmq:RabbitmqServer",
    "nats": "tests.servers.nats:NatsServer",
}


@contextmanager
def engine_url(engine: str, storage: str) -> Iterator[str]:
    """Where the messages go. SQLite: into the service's own database; else to a server that is started for it.

    Raises:
        SystemExit: no such engine, or its server is not installed.
    """
    if engine not in ENGINES:
        raise SystemExit(f"the demo runs on {', '.join(ENGINES)}; not on {engine!r}")
    if not ENGINES[engine]:
        yield storage
        return
    module, _, name = ENGINES[engine].partition(":")
    try:
        server = getattr(importlib.import_module(module), name)()
    except BaseException as missing:  # what says "skipped" in a test ends the demo
        raise SystemExit(f"no server for {engine}: {missing}") from None
    try:
        server.start()
        yield server.url()
    finally:
        server.remove()

"""URLs of the tests' servers, and such as have another address or account in them."""

from __future__ import annotations

import re
from typing import Any

from . import HOST
from .mariadb import MariadbServer
from .nats import NatsServer
from .postgresql import PostgresqlServer
from .rabbitmq import RabbitmqServer
from .redis import RedisServer

__all__ = ["SERVERS", "as_user", "at", "url_of"]

SERVERS = ("rabbitmq", "redis", "nats", "postgresql", "mariadb")
"""Each has a fixture, `<name>_server`."""


def url_of(server: Any) -> str:
    """A place of its own on this server."""
    match server:
        case RabbitmqServer():
            return server.url(settle=0, timeout=3)
        case RedisServer():
            return server.url(timeout="3")
        case NatsServer():
            return server.prefix().replace("timeout=5", "timeout=2")
        case PostgresqlServer():
            return f"{server.schema()}&timeout=3"
        case MariadbServer():
            return f"{server.prefix()}&timeout=3"
        case _:
            raise AssertionError(server)


def at(url: str, place: str) -> str:
    """The URL with another host and port."""
    return re.sub(rf"@{HOST}:\d+", f"@{place}", url)


def as_user(url: str, account: str) -> str:
    """The URL with another `user:password`."""
    return re.sub(r"//[^@]*@", f"//{account}@", url)

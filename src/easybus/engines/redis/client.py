"""The client of one location.

It never tries again by itself: a publish that it sends twice would be there twice. Its pool has no limit, so that it
never refuses; how many calls are under way is limited above it.
"""

from __future__ import annotations

from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff

from .location import Location

_pack: Any = getattr(hiredis, "pack_command")  # noqa: B009 - its result is not typed


class _Packing:
    """Scripts' many arguments are packed by hiredis, as the client's other half does; by itself it takes ten times as
    long."""

    def pack_command(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA":
            return [_pack(args)]
        connection: Any = super()
        packed: list[bytes] = connection.pack_command(*args)
        return packed


class _Plain(_Packing, Connection):
    pass


class _Secure(_Packing, SSLConnection):
    pass


class _Managed(_Packing, SentinelManagedConnection):
    pass


class _ManagedSecure(_Packing, SentinelManagedSSLConnection):
    pass


def connect(location: Location) -> tuple[Redis, list[Redis]]:
    """The client of the server, or of the master that Sentinel names; and Sentinel's own, to be closed with it."""
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": location.timeout,
        "socket_connect_timeout": location.timeout,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
    }
    account = {"username": location.username, "password": location.password, "db": location.database}
    secure, tls = location.tls is not None, location.tls or {}
    if not location.service:
        host, port = location.hosts[0]
        pool = ConnectionPool(
            connection_class=_Secure if secure else _Plain,
            max_connections=2**31,
            host=host,
            port=port,
            **options,
            **account,
            **tls,
        )
        return Redis.from_pool(pool), []
    asking = {"username": location.sentinel_username, "password": location.sentinel_password}
    asked = {**options, **asking, **({"ssl": True, **tls} if secure else {})}
    sentinel = Sentinel(list(location.hosts), sentinel_kwargs=asked)
    master_for: Any = getattr(sentinel, "master_for")  # noqa: B009 - its signature is half unknown
    client: Redis = master_for(
        location.service,
        connection_class=_ManagedSecure if secure else _Managed,
        max_connections=2**31,
        **options,
        **account,
        **tls,
    )
    return client, list(sentinel.sentinels)

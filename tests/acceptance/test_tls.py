"""TLS verifies by default: who signed the certificate, and for which host. Passwords may hold any character."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from tests.servers import HOST, Server
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.rabbitmq import RabbitmqServer
from tests.servers.redis import RedisServer
from tests.servers.secure import SecureMariadb, SecurePostgresql, SecureRedis

from easybus.clock import SystemClock
from easybus.engines.registry import create
from easybus.errors import ConfigurationError
from easybus.testing.driver_base import publish, receive, to_queue, topology

SPECIAL = "p@ss:w/o?r#d%&+ =é'\"\\[1],$"


class Secured(NamedTuple):
    url: Callable[[str, str], str]
    """Of a host, and the authority's file; none: the system's authorities."""
    certificate: Path
    option: str


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.remove()


def postgresql() -> Iterator[Secured]:
    with running(server := SecurePostgresql()):

        def url(host: str, authority: str) -> str:
            return server.url().replace(HOST, host) + (
                f"?sslrootcert={authority}"
                if authority
                else "?sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt"
            )

        yield Secured(url, server.certificate, "sslrootcert")


def mariadb() -> Iterator[Secured]:
    with running(server := SecureMariadb()):

        def url(host: str, authority: str) -> str:
            return server.url().replace(HOST, host) + (
                f"?ssl_ca={authority}" if authority else "?ssl_mode=verify_identity"
            )

        yield Secured(url, server.certificate, "ssl_ca")


def redis() -> Iterator[Secured]:
    with running(server := SecureRedis()):

        def url(host: str, authority: str) -> str:
            place = (
                server.url()
                .replace("redis://", "rediss://")
                .replace(f"{HOST}:{server.port}", f"{host}:{server.tls_port}")
            )
            return place + (f"&ca={authority}" if authority else "")

        yield Secured(url, server.certificate, "ca")


def nats() -> Iterator[Secured]:
    with running(server := NatsServer(tls=True)):

        def url(host: str, authority: str) -> str:
            return server.url().replace(HOST, host) + (f"?tls_ca={authority}" if authority else "")

        yield Secured(url, Path(server.certificate), "tls_ca")


def rabbitmq(server: RabbitmqServer) -> Secured:
    def url(host: str, authority: str) -> str:
        place = server.url(host, server.tls_port, settle=0).replace("amqp://", "amqps://")
        return place + (f"&cafile={authority}" if authority else "")

    return Secured(url, server.certificate, "cafile")


@pytest.fixture(params=[postgresql, mariadb, redis, nats, rabbitmq], ids=lambda make: make.__name__)
def secured(request: pytest.FixtureRequest) -> Iterator[Secured]:
    if request.param is rabbitmq:
        yield rabbitmq(request.getfixturevalue("rabbitmq_server"))
    else:
        yield from request.param()


async def sent_and_received(url: str, body: bytes) -> list[bytes]:
    engine = create(url, SystemClock())
    await engine.open()
    try:
        assert engine.driver is not None
        await topology(engine.driver, ["secured"])
        await publish(engine.driver, [to_queue("secured", body)])
        return [one.body for one in await receive(engine.driver, "secured", 1)]
    finally:
        await engine.close()


async def test_over_tls_the_authority_and_the_host_name_are_verified_and_the_error_says_what_to_write(
    secured: Secured,
) -> None:
    authority = str(secured.certificate)
    assert await sent_and_received(secured.url(HOST, authority), b"x") == [b"x"]
    with pytest.raises(ConfigurationError, match=rf"not trusted .*{secured.option}=/path/ca.pem"):
        await sent_and_received(secured.url(HOST, ""), b"x")
    with pytest.raises(ConfigurationError, match=r"is not for this host .*write a host in the URL that it bears"):
        await sent_and_received(secured.url("localhost", authority), b"x")


async def test_a_password_of_special_characters_lets_in_on_postgresql(postgresql_server: PostgresqlServer) -> None:
    literal = SPECIAL.replace("'", "''")
    postgresql_server.psql(
        f'DROP ROLE IF EXISTS "bus user"; CREATE ROLE "bus user" SUPERUSER LOGIN PASSWORD \'{literal}\''
    )
    place = postgresql_server.schema().partition("@")[2]
    assert await sent_and_received(f"postgresql://{quote('bus user')}:{quote(SPECIAL, safe='')}@{place}", b"x") == [
        b"x"
    ]


async def test_a_password_of_special_characters_lets_in_on_mariadb(mariadb_server: MariadbServer) -> None:
    literal = SPECIAL.replace("\\", "\\\\").replace("'", "''")
    mariadb_server.sql(
        f"CREATE OR REPLACE USER 'bus user'@'%' IDENTIFIED BY '{literal}'; GRANT ALL ON *.* TO 'bus user'@'%'"
    )
    place = mariadb_server.prefix().partition("@")[2]
    assert await sent_and_received(f"mysql://{quote('bus user')}:{quote(SPECIAL, safe='')}@{place}", b"x") == [b"x"]


async def test_a_password_of_special_characters_lets_in_on_redis(redis_server: RedisServer) -> None:
    assert redis_server.ask("ACL", "SETUSER", "bus:user", "on", f">{SPECIAL}", "~*", "&*", "+@all") == "+OK"
    place = redis_server.url().partition("@")[2]
    assert await sent_and_received(f"redis://{quote('bus:user')}:{quote(SPECIAL, safe='')}@{place}", b"x") == [b"x"]


async def test_a_password_of_special_characters_lets_in_on_rabbitmq(rabbitmq_server: RabbitmqServer) -> None:
    rabbitmq_server.control("-q", "add_user", "bus user", SPECIAL)
    try:
        rabbitmq_server.control("-q", "set_permissions", "bus user", ".*", ".*", ".*")
        place = rabbitmq_server.url(settle=0).partition("@")[2]
        url = f"amqp://{quote('bus user')}:{quote(SPECIAL, safe='')}@{place}"
        assert await sent_and_received(url, b"x") == [b"x"]
    finally:
        rabbitmq_server.control("-q", "delete_user", "bus user")


async def test_a_password_of_special_characters_lets_in_on_nats() -> None:
    with running(server := NatsServer(password=SPECIAL)):
        assert await sent_and_received(server.url(quote(SPECIAL, safe="")), b"x") == [b"x"]

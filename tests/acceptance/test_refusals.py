"""What each engine says of a wrong address, login, server or right: a typed error, with what to do, and in time.

What only one engine knows is in its own tests under `tests/unit/engines`; servers without room are in
`test_full_servers.py`, those that are mended meanwhile in `test_mended_servers.py`, passwords in `test_passwords.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from tests.servers import HOST, free_port
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitmqServer
from tests.servers.redis import RedisServer
from tests.servers.urls import SERVERS, as_user, at, url_of

from easybus.clock import SystemClock
from easybus.engines.contract import DeclareQueue, Driver, Publication
from easybus.engines.registry import create
from easybus.errors import ConfigurationError, EasybusError, MissingExtra, Refused, Unavailable
from easybus.testing.driver_base import topology


async def opened(url: str, stack: contextlib.AsyncExitStack) -> Driver:
    engine = create(url, SystemClock())
    await engine.open()
    stack.push_async_callback(engine.close)
    assert engine.driver is not None
    return engine.driver


async def refusal(url: str, kind: type[EasybusError]) -> str:
    """What opening says."""
    engine = create(url, SystemClock())
    async with asyncio.timeout(8.0):
        with pytest.raises(kind) as raised:
            await engine.open()
        await engine.close()
    assert type(raised.value) is kind
    return str(raised.value)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_server")


# ------------------------------------------------------------------------------------------ where, who, with what


async def test_where_nothing_listens_the_error_says_where_and_what_to_do(server: Any) -> None:
    place = f"{HOST}:{free_port()}"
    says = await refusal(at(url_of(server), place), Unavailable)
    assert place in says
    assert "nothing listens there: start the server, or mend host and port in the URL" in says


async def test_where_there_is_no_such_host_the_error_says_so(server: Any) -> None:
    says = await refusal(at(url_of(server), "no-such-host.invalid:99"), Unavailable)
    assert "no-such-host.invalid" in says
    assert "mend the host in the URL" in says


async def test_a_wrong_password_and_an_unknown_user_are_configuration_errors(server: Any) -> None:
    url = url_of(server)
    user = re.search(r"//([^:]*):", url)
    assert user is not None
    for account in (f"{user[1]}:wrong", "nobody-known:wrong"):
        says = await refusal(as_user(url, account), ConfigurationError)
        assert "mend the URL (special characters as %XX)" in says
        assert "wrong" not in says.replace("password is wrong", "")


@pytest.mark.parametrize(
    ("scheme", "extra", "package"),
    [
        ("amqp", "rabbitmq", "pika"),
        ("redis", "redis", "redis"),
        ("nats", "nats", "nats"),
        ("postgresql", "postgresql", "asyncpg"),
        ("mysql", "mysql", "asyncmy"),
    ],
)
def test_a_missing_package_names_the_line_that_installs_it(
    scheme: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith((f"easybus.engines.{extra}", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as raised:
        create(f"{scheme}://user:secret@localhost/shop", SystemClock())
    assert str(raised.value).endswith(f"needs the package {package}: pip install 'easybus[{extra}]'")


@pytest.mark.parametrize(
    ("name", "now", "then", "says"),
    [
        ("rabbitmq", rb"(?<=versionS\0\0\0.)\d\.", b"0.", r"RabbitMQ 0\..* 3\.10 or later is needed: upgrade it"),
        ("redis", rb"redis_version:\d\.", b"redis_version:6.", r"Redis 6\..*; 7\.0 or later, or Valkey, is needed"),
        ("postgresql", rb"server_version\0\d\d", b"server_version\x0012", r"PostgreSQL 12\..* needs 13 or later"),
        ("mariadb", rb"\d\d(?=\.\d+\.\d+-MariaDB)", b"05", r"MariaDB 05\..* MariaDB 10\.6, or later"),
    ],
)
async def test_a_server_that_is_too_old_is_a_configuration_error_with_the_version_that_is_needed(
    name: str, now: bytes, then: bytes, says: str, request: pytest.FixtureRequest
) -> None:
    """The session's server, into whose mouth an older version is put: clients know it only by what it says. (What an
    old NATS cannot do is in its own tests: most of it works.)"""
    server = request.getfixturevalue(f"{name}_server")
    async with Proxy(server.port, says=(now, then)) as proxy:
        assert re.search(says, await refusal(at(url_of(server), f"{HOST}:{proxy.port}"), ConfigurationError))


# --------------------------------------------------------------------------------------------------------- rights

Deed = Callable[[Driver], Any]


class Lacking(NamedTuple):
    """A user who lacks a right, what he does, and what is said."""

    server: str
    lacks: str
    says: str
    kind: type[EasybusError]
    deed: Deed | None
    """None: he cannot even open it."""

    def __repr__(self) -> str:
        return f"{self.server} {self.lacks}"


def sends(driver: Driver) -> Any:
    return driver.publish([Publication(False, "jobs", b"x")])


def sends_later(driver: Driver) -> Any:
    return driver.publish([Publication(False, "jobs", b"x", delay=1.5)])


def declares(driver: Driver) -> Any:
    return driver.declare([DeclareQueue("others")])


def fetches(driver: Driver) -> Any:
    return driver.fetch("jobs", 1, 1.0, 30.0)


SET_PERMISSIONS = "rabbitmqctl set_permissions -p '/' 'poor' '.*' '.*' '.*'"
REDIS_RIGHTS = r"with ACL SETUSER, allow its keys, its channels and \+@all -@admin -@dangerous \+info"
NATS_RIGHTS = "allow the user to publish there, as docs/engines.md says, in the server's configuration"
SQL_SCHEMA = "is printed by: easybus schema --url"
LACKING = [
    Lacking("rabbitmq", "vhost", "allow it: rabbitmqctl set_permissions", ConfigurationError, None),
    Lacking("rabbitmq", "configure", re.escape(SET_PERMISSIONS), Refused, declares),
    Lacking("rabbitmq", "write", re.escape(SET_PERMISSIONS), Refused, sends),
    Lacking("rabbitmq", "read", re.escape(SET_PERMISSIONS), Refused, fetches),
    Lacking("redis", "+evalsha", REDIS_RIGHTS, Refused, declares),
    Lacking("redis", "+xadd", REDIS_RIGHTS, Refused, sends),
    Lacking("redis", "~", REDIS_RIGHTS, Refused, declares),
    Lacking("nats", "bus.q.>", NATS_RIGHTS, Refused, sends),
    Lacking("nats", "bus.d.>", NATS_RIGHTS, Refused, sends_later),
    Lacking("nats", "$KV.bus.>", NATS_RIGHTS, Refused, declares),
    Lacking("nats", "$JS.API.STREAM.CREATE.>", NATS_RIGHTS, Refused, declares),
    Lacking("nats", "$JS.API.CONSUMER.MSG.NEXT.>", NATS_RIGHTS, Refused, fetches),
    Lacking("nats", "$JS.API.INFO", NATS_RIGHTS, ConfigurationError, None),
    Lacking("nats", "_INBOX.>", "allow the user to subscribe to _INBOX.>", ConfigurationError, None),
    Lacking("postgresql", "USAGE", SQL_SCHEMA, ConfigurationError, None),
    Lacking("postgresql", "INSERT", "GRANT it on the bus's schema, its tables and its sequences", Refused, sends),
    Lacking("postgresql", "UPDATE", "GRANT it on the bus's schema, its tables and its sequences", Refused, fetches),
    Lacking("mariadb", "USAGE", "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE", ConfigurationError, None),
    Lacking("mariadb", "INSERT", "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE", Refused, sends),
    Lacking("mariadb", "UPDATE", "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE", Refused, fetches),
]


class Users:
    """A user `poor`, on each server, with all rights but one; and the bus's tables or queues made by another."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    async def without(self, server: str, right: str) -> str:
        """The URL of his."""
        if server == "nats":
            url, full = self._nats(right)
        else:
            at_server = self._request.getfixturevalue(f"{server}_server")
            full = url_of(at_server) if server != "mariadb" else f"{at_server.database()}?timeout=3"
            url = as_user(full, "poor:secret")
        async with contextlib.AsyncExitStack() as stack:
            owner = await opened(full, stack)
            await topology(owner, ["jobs"])
            assert await owner.publish([Publication(False, "jobs", b"there")]) in ([1], [None])
        if server != "nats":
            await asyncio.to_thread(getattr(self, f"_{server}"), at_server, full, right)
        return url

    def _nats(self, right: str) -> tuple[str, str]:
        subscribe = {"allow": ["_INBOX.>"]} if right != "_INBOX.>" else {"deny": ["_INBOX.>"]}
        server = NatsServer(denied={"publish": {"deny": [right]}, "subscribe": subscribe})
        self._request.addfinalizer(server.remove)
        server.start()
        full = f"{server.url()}?timeout=2"
        return as_user(full, "poor:secret"), full

    def _rabbitmq(self, server: RabbitmqServer, _: str, right: str) -> None:
        if "poor" not in server.control("-q", "list_users"):
            server.control("-q", "add_user", "poor", "secret")
            self._request.addfinalizer(lambda: server.control("-q", "delete_user", "poor"))
        if right != "vhost":
            rights = ["^$" if right == each else ".*" for each in ("configure", "write", "read")]
            server.control("-q", "set_permissions", "poor", *rights)

    def _redis(self, server: RedisServer, full: str, right: str) -> None:
        prefix = full.partition("prefix=")[2].partition("&")[0]
        words = [f"~{prefix}:*" if right != "~" else "~other:*", "&*", "+@all", "-@admin", "-@dangerous", "+info"]
        words += [f"-{right[1:]}"] if right.startswith("+") else []
        assert server.ask("ACL", "SETUSER", "poor", "reset", "on", ">secret", *words) == "+OK"
        self._request.addfinalizer(lambda: server.ask("ACL", "DELUSER", "poor"))

    def _postgresql(self, server: PostgresqlServer, full: str, right: str) -> None:
        schema = full.partition("schema=")[2].partition("&")[0]
        server.psql("CREATE ROLE poor LOGIN PASSWORD 'secret'")
        self._request.addfinalizer(lambda: server.psql("DROP OWNED BY poor; DROP ROLE poor"))
        if right != "USAGE":
            rest = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE"} - {right})
            server.psql(f"GRANT USAGE ON SCHEMA {schema} TO poor")
            server.psql(f"GRANT {rest} ON ALL TABLES IN SCHEMA {schema} TO poor")
            server.psql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO poor")

    def _mariadb(self, server: MariadbServer, full: str, right: str) -> None:
        database = full.rpartition("/")[2].partition("?")[0]
        server.sql("CREATE USER poor@'%' IDENTIFIED BY 'secret'")
        self._request.addfinalizer(lambda: server.sql("DROP USER poor@'%'"))
        if right != "USAGE":
            rest = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE"} - {right})
            server.sql(f"GRANT {rest} ON {database}.* TO poor@'%'")


@pytest.fixture
def users(request: pytest.FixtureRequest) -> Users:
    return Users(request)


@pytest.mark.parametrize("case", LACKING, ids=repr)
async def test_a_user_who_lacks_a_right_is_told_which_line_gives_it(case: Lacking, users: Users) -> None:
    url = await users.without(case.server, case.lacks)
    if case.deed is None:
        assert re.search(case.says, await refusal(url, case.kind))
        return
    async with contextlib.AsyncExitStack() as stack:
        driver = await opened(url, stack)
        async with asyncio.timeout(4.0):
            try:
                result = await case.deed(driver)
                error: Any = result[0]
            except EasybusError as raised:
                error = raised
        assert isinstance(error, case.kind), error
        assert re.search(case.says, str(error)), error

"""URLs: what they may say, and that no password comes out of one again."""

from __future__ import annotations

import ssl
import traceback

import pytest
from tests.servers import HOST, free_port
from tests.servers.mariadb import MariadbServer

from easybus import ConfigurationError, EngineError
from easybus.clock import SystemClock
from easybus.engines.mysql import create
from easybus.engines.mysql.location import locate
from easybus.engines.mysql.names import Names
from easybus.engines.registry import create as create_by_scheme

CANARY = "s3cret-canary"


def test_a_url_is_read_and_shown_without_its_password() -> None:
    location = locate(f"mysql://user:{CANARY}%40@db:3307/shop?prefix=a_&connections=5&ssl_mode=required")
    assert location.url == "mysql://user@db:3307/shop?prefix=a_&connections=5&ssl_mode=required"
    assert (location.user, location.password, location.hosts) == ("user", f"{CANARY}@", (("db", 3307),))
    assert (location.names("{message}"), location.connections) == ("`shop`.`a_message`", 5)
    assert CANARY not in repr(location) + repr(location.names) + repr(create(f"mysql://u:{CANARY}@h/d", SystemClock()))


def test_several_hosts_are_tried_in_their_order() -> None:
    assert locate("mysql://a:1,[::1]:2,b/shop").hosts == (("a", 1), ("::1", 2), ("b", 3306))


@pytest.mark.parametrize(
    ("options", "checked"),
    [("", None), ("?ssl_mode=required", (False, ssl.CERT_NONE)), ("?ssl_mode=verify_ca", (False, ssl.CERT_REQUIRED)),
     ("?ssl_mode=verify_identity", (True, ssl.CERT_REQUIRED))],
)  # fmt: skip
def test_how_far_the_server_is_verified(options: str, checked: object) -> None:
    context = locate(f"mysql://h/d{options}").tls_context()
    assert (None if context is None else (context.check_hostname, context.verify_mode)) == checked


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql:///shop", "no host"),
        (f"mysql://u:{CANARY}@host", "the database is missing"),
        (f"mysql://u:{CANARY}@host/shop?shema=bus", "unknown option 'shema'"),
        (f"mysql://u:{CANARY}@host/shop?password={CANARY}", "unknown option 'password'"),
        (f"mysql://u:{CANARY}@host/shop?connections=many", "number from 2 to 1000"),
        (f"mysql://u:{CANARY}@host/shop?timeout=0", "number from 0.1 to 3600"),
        (f"mysql://u:{CANARY}@host/shop?prefix={'x' * 60}", "characters"),
        (f"mysql://u:{CANARY}@host/shop?prefix=a%25s", "characters"),
        (f"mysql://u:{CANARY}@host/shop?ssl_mode=some", "verify_identity"),
        (f"mysql://u:x@{CANARY}@host/shop", "%40"),
        (f"mysql://u:{CANARY}@host:port/shop", "wrong port"),
        (f"mysql://u:{CANARY}@host/shop#x", "%23"),
    ],
)
def test_what_is_wrong_in_a_url_is_said_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_by_scheme(url, SystemClock())
    assert said in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_a_database_that_is_not_there_says_how_to_make_it(mariadb_server: MariadbServer) -> None:
    with pytest.raises(ConfigurationError, match="CREATE DATABASE"):
        await create(mariadb_server.url("nowhere"), SystemClock()).open()


async def test_of_several_hosts_one_that_answers_is_used(mariadb_server: MariadbServer) -> None:
    url = mariadb_server.prefix().replace("@", f"@{HOST}:{free_port()},")
    engine = create(url, SystemClock())
    await engine.open()
    await engine.close()


async def test_encryption_that_the_server_has_not_is_an_error_that_says_so(mariadb_server: MariadbServer) -> None:
    with pytest.raises(EngineError, match=r"SSL|TLS"):
        await create(f"{mariadb_server.prefix()}&ssl_mode=required", SystemClock()).open()


def test_quotes_and_braces_in_names_stay_names() -> None:
    names = Names("odd`data{x}", "pre'fix ")
    assert names("SELECT 1 FROM {queue}") == "SELECT 1 FROM `odd``data{x}`.`pre'fix queue`"


async def test_a_login_that_needs_a_further_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(**_: object) -> None:
        raise RuntimeError("'cryptography' package is required for sha256_password or caching_sha2_password")

    monkeypatch.setattr("asyncmy.connect", connect)
    with pytest.raises(ConfigurationError, match="pip install cryptography, or write ssl_mode=required"):
        await create(f"mysql://u:{CANARY}@{HOST}/shop", SystemClock()).open()

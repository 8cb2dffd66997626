"""URLs: what they may say, and that no password comes out of one again."""

from __future__ import annotations

import traceback

import pytest
from tests.servers.postgresql import PostgresqlServer

from easybus import ConfigurationError
from easybus.clock import SystemClock
from easybus.engines.postgresql import create
from easybus.engines.postgresql.location import locate
from easybus.engines.postgresql.names import Names
from easybus.engines.registry import create as create_by_scheme

CANARY = "s3cret-canary"


def test_a_url_is_read_and_shown_without_its_password() -> None:
    location = locate(f"postgresql://user:{CANARY}@db:5433/shop?schema=bus&prefix=a_&connections=5&sslmode=require")
    assert location.url == "postgresql://user@db:5433/shop?schema=bus&prefix=a_&connections=5&sslmode=require"
    assert location.dsn == f"postgresql://user:{CANARY}@db:5433/shop?sslmode=require"
    assert (location.names("{message}"), location.connections) == ('"bus"."a_message"', 5)
    assert CANARY not in repr(location) + repr(location.names) + repr(
        create(f"postgresql://u:{CANARY}@h/d", SystemClock())
    )


def test_of_several_hosts_the_one_that_takes_writes_is_used() -> None:
    assert locate("postgresql://a:1,b:2/shop").dsn == "postgresql://a:1,b:2/shop?target_session_attrs=read-write"
    assert "any" in locate("postgresql://a,b/shop?target_session_attrs=any").dsn


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql:///shop", "no host"),
        (f"postgresql://u:{CANARY}@host", "the database is missing"),
        (f"postgresql://u:{CANARY}@host/shop?shema=bus", "unknown option 'shema'"),
        (f"postgresql://u:{CANARY}@host/shop?password={CANARY}", "unknown option 'password'"),
        (f"postgresql://u:{CANARY}@host/shop?connections=many", "number from 2 to 1000"),
        (f"postgresql://u:{CANARY}@host/shop?timeout=0", "number from 0.1 to 3600"),
        (f"postgresql://u:{CANARY}@host/shop?schema=", "schema= is empty"),
        (f"postgresql://u:{CANARY}@host/shop?prefix={'x' * 60}", "63 bytes"),
        (f"postgresql://u:x@{CANARY}@host/shop", "%40"),
        (f"postgresql://u:{CANARY}@host:port/shop", "wrong port"),
        (f"postgresql://u:{CANARY}@host/shop#x", "%23"),
    ],
)
def test_what_is_wrong_in_a_url_is_said_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_by_scheme(url, SystemClock())
    assert said in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_a_database_that_is_not_there_says_how_to_make_it(postgresql_server: PostgresqlServer) -> None:
    with pytest.raises(ConfigurationError, match="createdb"):
        await create(postgresql_server.url("nowhere"), SystemClock()).open()


def test_quotes_and_braces_in_names_stay_names() -> None:
    names = Names('odd"schema{x}', "pre'fix ")
    assert names("SELECT 1 FROM {queue}") == 'SELECT 1 FROM "odd""schema{x}"."pre\'fix queue"'

"""EASYBUS_TEST_LOOP=uvloop runs every async test on uvloop; without it they run on asyncio's own loop.

Tests that need a server are marked `server`, by the fixtures that they ask for and by the engines in their parameters.
A run of the long tests alone writes what they came to (`long_table`).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from tests import long_table
from tests.servers import fixtures
from tests.servers.fixtures import *  # noqa: F403 - pytest finds fixtures by name

# No property is about time, and a machine that does other work besides is no counterexample.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

SERVERS = ("mariadb", "mysql", "nats", "postgresql", "rabbitmq", "redis", "asyncmy", "asyncpg", "psycopg", "pymysql")
"""In a parameter that is no URL: a fixture then asks for the server in the test's run, where no collection sees it."""

LOOP = os.environ.get("EASYBUS_TEST_LOOP", "asyncio")

if LOOP == "uvloop":
    import asyncio
    from collections.abc import Callable, Mapping

    import uvloop

    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        return {"uvloop": uvloop.new_event_loop}

elif LOOP != "asyncio":
    raise ValueError(f"EASYBUS_TEST_LOOP is {LOOP!r}; it can be asyncio or uvloop")


def pytest_configure(config: pytest.Config) -> None:
    long_table.register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.id if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
        asked = set(getattr(item, "fixturenames", ())) & set(fixtures.__all__)
        if asked or ("://" not in parameters and any(name in parameters for name in SERVERS)):
            item.add_marker("server")

"""EASYBUS_TEST_LOOP=uvloop runs every async test on uvloop; without it they run on asyncio's own loop."""

from __future__ import annotations

import os

from tests.servers.fixtures import *  # noqa: F403 - pytest finds fixtures by name

LOOP = os.environ.get("EASYBUS_TEST_LOOP", "asyncio")

if LOOP == "uvloop":
    import asyncio
    from collections.abc import Callable, Mapping

    import uvloop

    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        return {"uvloop": uvloop.new_event_loop}

elif LOOP != "asyncio":
    raise ValueError(f"EASYBUS_TEST_LOOP is {LOOP!r}; it can be asyncio or uvloop")

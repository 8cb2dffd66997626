"""A worker that stands still in a handler's transaction, on servers: it holds nobody up for longer than its lease, and
when it goes on it cannot commit. On SQLite a stopped holder stops the file, and the documentation says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.scenarios.own import own_database, own_table
from tests.acceptance.stalled_child import LEASE, Stall, service, worker

CONTEXT = multiprocessing.get_context("spawn")
SERVERS = {"postgresql": ("postgresql_server", "schema"), "mysql": ("mariadb_server", "prefix")}
BUSY = 22.0
"""Seconds that looking again may take, and a busy machine; less than the engines' own bound, 30 s."""
_numbers = itertools.count(1)
pytestmark = [pytest.mark.server, pytest.mark.outages, pytest.mark.timeout(120)]


@pytest.fixture(params=SERVERS)
async def stall(request: pytest.FixtureRequest, tmp_path: Path) -> Stall:
    fixture, fresh = SERVERS[request.param]
    server = request.getfixturevalue(fixture)
    made = Stall(getattr(server, fresh)(), f"{server.url()}#stalled{next(_numbers)}_", tmp_path)
    table = own_table(made.database, "account")
    async with connected(made) as (own, connection):
        await own.execute(connection, f"CREATE TABLE {table} (cents INTEGER, payments INTEGER)")
        await own.execute(connection, f"INSERT INTO {table} VALUES (0, 0)")
    return made


@contextlib.asynccontextmanager
async def connected(stall: Stall) -> AsyncIterator[tuple[Any, Any]]:
    own = own_database(stall.database)
    connection = await own.connect()
    try:
        yield own, connection
    finally:
        await own.close(connection)


async def account(stall: Stall) -> tuple[int, int]:
    """Cents, and payments."""
    async with connected(stall) as (own, connection):
        [(cents, payments)] = await own.fetch(connection, f"SELECT * FROM {own_table(stall.database, 'account')}")
    return cents, payments


async def until(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30.0
    while not there():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def paid(stall: Stall, wanted: tuple[int, int], within: float) -> None:
    deadline = time.monotonic() + within
    while (found := await account(stall)) != wanted:
        assert time.monotonic() < deadline, f"the account holds {found} after {within:g} s"
        await asyncio.sleep(0.05)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("where", ["rows", "within.done"])
async def test_a_worker_stopped_in_its_transaction_holds_nobody_up_past_its_lease_and_cannot_commit(
    stall: Stall, where: str
) -> None:
    bus = service(stall)
    async with bus:
        await bus.send(bus.targets["queue", "payments"], 7)
    stopped = CONTEXT.Process(target=worker, args=(Stall(stall.url, stall.database, stall.folder, where),))
    stopped.start()
    assert stopped.pid is not None
    log = stall.folder / "log"
    try:
        await until(lambda: log.exists() and state(stopped.pid or 0) == "T", "the worker does not stop")
        async with bus.handling():
            await paid(stall, (7, 1), within=LEASE + BUSY)
        os.kill(stopped.pid, signal.SIGCONT)
        # It handles one message at a time: when the next one is paid it is done with the first.
        async with service(stall) as sending:
            await sending.send(sending.targets["queue", "payments"], 100)
        await paid(stall, (107, 2), within=30.0)
        await until(lambda: "within.committed" in log.read_text(), "the second payment was not the worker's")
    finally:
        stopped.kill()
        stopped.join()
    assert log.read_text().split().count("within.committed") == 1, log.read_text()
    assert await account(stall) == (107, 2)


def test_the_documentation_says_that_a_stopped_holder_stops_sqlites_file() -> None:
    assert "A stopped holder stops the file" in (Path(__file__).parents[2] / "docs" / "engines.md").read_text()

"""sqlite:/// passes what every engine passes, on either library, and what is confirmed outlives a killed process."""

import asyncio
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import Busy, Claim, Claimed, Done, Engine
from easybus.engines.registry import create
from easybus.testing.driver_base import drain, receive
from easybus.testing.driver_contract import DriverContract
from easybus.testing.storage_contract import Caller, StorageContract

CHILD = Path(__file__).with_name("sqlite_child.py")


class User:
    """A user's own connection, of the library that the engine runs on: two on one file lose rows."""

    def __init__(self, path: Path, library: str) -> None:
        self.path = path
        self.library = library

    async def run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], *, commit: bool) -> list[int]:
        return await asyncio.to_thread(self._run, statements, commit)

    async def ask(self, statement: str) -> Any:
        return await asyncio.to_thread(self._ask, statement)

    def _connect(self) -> Any:
        if self.library == "sqlite3":
            return sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
        import apsw

        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(10_000)
        return connection

    def _run(self, statements: Sequence[tuple[str, tuple[Any, ...]]], commit: bool) -> list[int]:
        connection = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            changed = []
            for statement, values in statements:
                connection.execute(statement, values)
                changed.append(connection.execute("SELECT changes()").fetchone()[0])
            connection.execute("COMMIT" if commit else "ROLLBACK")
            return changed
        finally:
            connection.close()

    def _ask(self, statement: str) -> Any:
        connection = self._connect()
        try:
            return connection.execute(statement).fetchone()[0]
        finally:
            connection.close()


async def opened(url: str) -> Engine:
    engine = create(url, SystemClock())
    await engine.open()
    return engine


class Apsw:
    library = "apsw"

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "bus.db"

    @pytest.fixture
    def url(self, path: Path) -> str:
        return f"sqlite:///{path}?library={self.library}"

    @pytest.fixture
    async def engine(self, url: str) -> AsyncIterator[Engine]:
        engine = await opened(url)
        yield engine
        await engine.close()

    @pytest.fixture
    def reopen(self, url: str) -> Callable[[], Awaitable[Engine]]:
        return lambda: opened(url)

    @pytest.fixture
    def caller(self, path: Path) -> Caller:
        return User(path, self.library)


@pytest.mark.filterwarnings("ignore:.*sqlite3.*")  # the engine's own warning about an old library
class Sqlite3(Apsw):
    library = "sqlite3"


class TestDriverOnApsw(Apsw, DriverContract):
    pass


class TestStoragesOnApsw(Apsw, StorageContract):
    pass


class TestDriverOnSqlite3(Sqlite3, DriverContract):
    pass


class TestStoragesOnSqlite3(Sqlite3, StorageContract):
    pass


async def child(url: str, deed: str, queue: str, number: int = 1) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), url, deed, queue, str(number), stdout=asyncio.subprocess.PIPE
    )


async def killed(url: str, deed: str, queue: str, number: int = 1) -> list[str]:
    """Let a child do its deed and kill itself; what it said."""
    process = await child(url, deed, queue, number)
    said, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == -signal.SIGKILL
    return said.decode().split()


@pytest.mark.alone
class TestKilled(Apsw):
    async def test_what_was_published_outlives_a_publisher_killed_at_once(self, engine: Engine, url: str) -> None:
        await killed(url, "publish-and-die", "jobs", 100)
        assert await drain(engine.driver, "jobs") == sorted(b"%d" % at for at in range(100))

    async def test_every_confirmed_batch_outlives_a_kill_in_the_middle_of_publishing(
        self, engine: Engine, url: str
    ) -> None:
        process = await child(url, "publish-until-killed", "jobs")
        for _ in range(30):
            await asyncio.wait_for(process.stdout.readline(), 10)
        process.kill()
        said = (await process.communicate())[0].decode().split()
        confirmed = max([28, *(int(word) for word in said)])
        there = set(await drain(engine.driver, "jobs"))
        assert there >= {b"%d/%d" % (at, part) for at in range(confirmed + 1) for part in range(10)}
        assert len(there) % 10 == 0, "half a batch is there"

    async def test_what_a_killed_consumer_held_comes_again_within_its_lease_and_a_second(
        self, engine: Engine, url: str
    ) -> None:
        await killed(url, "publish-and-die", "jobs", 5)
        assert await killed(url, "fetch-and-die", "jobs", 5) == ["5"]
        died = time.monotonic()
        again = await receive(engine.driver, "jobs", 5, within=2.0)
        assert time.monotonic() - died <= 2.0
        assert {one.attempt for one in again} == {2}

    async def test_keys_letters_and_halves_outlive_a_process_killed_at_once(self, engine: Engine, url: str) -> None:
        await killed(url, "store-and-die", "jobs")
        done, held = await engine.idempotency.claim(
            [Claim("jobs", "done", b"d", 60.0), Claim("jobs", "held", b"d", 60.0)]
        )
        assert isinstance(done, Done)
        deadline = time.monotonic() + 2.0
        while isinstance(held, Busy) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            (held,) = await engine.idempotency.claim([Claim("jobs", "held", b"d", 60.0)])
        assert isinstance(held, Claimed)
        assert (held.before, held.starts) == (True, 2)
        assert [letter.body for letter in await engine.dead_letters.find("jobs")] == [b"dead"]
        assert [half.body for half in await engine.transactions.claim_due([("shop", "orders")], 10, 60.0)] == [b"half"]

    async def test_eight_processes_on_one_file_get_each_message_once_and_no_error(
        self, engine: Engine, url: str
    ) -> None:
        processes = await asyncio.gather(*(child(url, "work", "jobs", 50) for _ in range(8)))
        said = await asyncio.gather(*(asyncio.wait_for(process.communicate(), 50) for process in processes))
        assert [process.returncode for process in processes] == [0] * 8
        got = [line.encode() for out, _ in said for line in out.decode().split()] + await drain(engine.driver, "jobs")
        assert sorted(got) == sorted(b"%d.%d" % (process.pid, at) for process in processes for at in range(50))

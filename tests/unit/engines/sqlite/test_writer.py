"""The thread that commits: groups, failures, files, two libraries."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import apsw
import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import DeclareQueue, Publication
from easybus.engines.sqlite import create
from easybus.engines.sqlite.connect import Connection, reset_is_safe
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.errors import ConfigurationError, NotOpen, Refused, Unavailable

from .conftest import Opener

Q = DeclareQueue("q")


async def test_calls_that_wait_together_are_committed_together(engine: SqliteEngine) -> None:
    writer, begun, go = engine.writer(), threading.Event(), threading.Event()
    look = "SELECT count(*) FROM easybus_queue"
    add = "INSERT INTO easybus_queue (name, delay) VALUES (?, 0)"
    seen: list[int] = []

    def work(connection: Connection) -> int:
        seen.append(writer.reader.value(look))  # what is committed so far
        return connection.run(add, (str(len(seen)),))

    def hold_up(_: Connection) -> bool:
        begun.set()
        return go.wait(10)

    blocker = writer.call(hold_up)
    assert await asyncio.to_thread(begun.wait, 10)
    jobs = [writer.call(work) for _ in range(50)]
    go.set()
    await asyncio.gather(blocker, *jobs)
    assert seen == [0] * 50
    assert writer.reader.value(look) == 50


async def test_a_job_that_fails_in_a_group_fails_alone(engine: SqliteEngine) -> None:
    writer = engine.writer()

    def good(connection: Connection) -> int:
        return connection.run("UPDATE easybus_meta SET value = value + 1 WHERE name = 'fence'")

    def bad(connection: Connection) -> int:
        good(connection)
        return connection.run("INSERT INTO easybus_meta VALUES ('fence', 0)")

    jobs = [writer.call(work) for work in (good, bad, good, bad, good)]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(result) for result in results] == [int, Refused, int, Refused, int]
    assert isinstance(results[1], Refused)
    assert isinstance(results[1].__cause__, sqlite3.Error | apsw.Error)
    fence = "SELECT value FROM easybus_meta WHERE name = 'fence'"
    assert await writer.read(lambda connection: connection.rows(fence)) == [(3,)]


async def test_a_declaration_that_is_rolled_back_is_forgotten(engine: SqliteEngine) -> None:
    await engine.driver.declare([Q])
    writer = engine.writer()

    def declare_and_fail(connection: Connection) -> None:
        writer.topology.declare(connection, [DeclareQueue("lost")])
        writer.topology.refresh(connection)
        raise RuntimeError("after the declaration")

    with pytest.raises(RuntimeError):
        await writer.call(declare_and_fail)
    await engine.driver.declare([DeclareQueue("other")])  # the version that was rolled back is given out again
    results = await engine.driver.publish([Publication(False, "lost", b""), Publication(False, "other", b"")])
    assert isinstance(results[0], Exception)
    assert results[1] == 1


async def test_two_engines_of_one_file_share_a_thread_and_close_one_by_one(opened: Opener) -> None:
    first, second = await opened(), await opened()
    assert first.writer() is second.writer()
    await first.driver.declare([Q])
    await first.close()
    await first.close()
    assert await second.driver.publish([Publication(False, "q", b"")]) == [1]
    await first.open()
    assert (await first.driver.stats("q")).ready == 1


async def test_what_was_asked_before_close_is_done_and_what_comes_after_is_refused(opened: Opener) -> None:
    engine = await opened()
    await engine.driver.declare([Q])
    publish = asyncio.create_task(engine.driver.publish([Publication(False, "q", b"")]))
    await asyncio.sleep(0)
    await engine.close()
    assert await publish == [1]
    with pytest.raises(NotOpen):
        await engine.driver.publish([Publication(False, "q", b"")])


async def test_two_libraries_on_one_file_in_one_process_are_refused(opened: Opener, url: str, library: str) -> None:
    await opened()
    other = "sqlite3" if library == "apsw" else "apsw"
    with pytest.raises(ConfigurationError, match="two SQLite libraries"):
        await create(url.replace(library, other), SystemClock()).open()


async def test_a_database_of_a_newer_easybus_is_refused(opened: Opener, url: str) -> None:
    engine = await opened()
    await engine.writer().call(
        lambda connection: connection.run("UPDATE easybus_meta SET value = 99 WHERE name = 'version'")
    )
    await engine.close()
    with pytest.raises(ConfigurationError, match="newer easybus"):
        await create(url, SystemClock()).open()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, library: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, by far, and long enough to be read as a header of one" * 20)
    with pytest.raises(Refused):
        await create(f"sqlite:///{path}?library={library}", SystemClock()).open()


async def test_a_file_that_is_removed_while_open_is_noticed_before_anything_is_confirmed(
    opened: Opener, tmp_path: Path
) -> None:
    engine = await opened()
    await engine.driver.declare([Q])
    os.unlink(tmp_path / "bus.db")
    with pytest.raises(Unavailable, match="removed or replaced"):
        await engine.driver.publish([Publication(False, "q", b"")])
    for name in ("bus.db", "bus.db-wal"):
        (tmp_path / name).write_bytes(b"another's")
    await engine.close()
    assert (tmp_path / "bus.db-wal").read_bytes() == b"another's", "closing the old file deleted the new one's log"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://shop.db", "no host"),
        ("sqlite:///", "path of a file is missing"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///shop.db?mode=ro", "allowed is library=apsw"),
        ("sqlite:///shop.db?library=pysqlite", "allowed is library=apsw"),
        ("sqlite:///shop.db#x", "%23"),
    ],
)
def test_a_url_that_names_no_file_says_what_to_write(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        create(url, SystemClock())


async def test_a_place_that_cannot_hold_a_database_says_why(tmp_path: Path) -> None:
    for url, said in [(f"sqlite:///{tmp_path}", "is a folder"), (f"sqlite:///{tmp_path}/no/such.db", "mkdir -p")]:
        with pytest.raises(ConfigurationError, match=said):
            await create(url, SystemClock()).open()


def test_a_relative_path_lies_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert create("sqlite:///a%20b.db", SystemClock())._location.path == str(tmp_path / "a b.db")


def test_which_sqlite_is_safe_to_checkpoint() -> None:
    safe = [(3, 51, 3), (3, 52, 0), (4, 0, 0), (3, 50, 7), (3, 44, 6)]
    unsafe = [(3, 51, 2), (3, 50, 6), (3, 44, 5), (3, 40, 1), (3, 49, 9)]
    assert [reset_is_safe(version) for version in safe + unsafe] == [True] * 5 + [False] * 5

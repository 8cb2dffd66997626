"""Connections of callers: found by their class, checked before anything is written."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from easybus.clock import SystemClock
from easybus.engines.sqlite import create
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.errors import ConfigurationError
from easybus.transactions import check, find


@pytest.fixture(params=["apsw", "sqlite3"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def engine(tmp_path: Path, library: str) -> AsyncIterator[SqliteEngine]:
    engine = create(f"sqlite:///{tmp_path}/bus.db?library={library}", SystemClock())
    await engine.open()
    yield engine
    await engine.close()


def connect(library: str, path: Path) -> apsw.Connection | sqlite3.Connection:
    return apsw.Connection(str(path)) if library == "apsw" else sqlite3.connect(path, isolation_level=None)


def test_what_is_not_supported_is_named_with_what_is() -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite3\.Connection, apsw\.Connection.*not a builtins\.dict"):
        find({})


def test_a_subclass_is_found() -> None:
    class Mine(sqlite3.Connection):
        pass

    with_factory = sqlite3.connect(":memory:", factory=Mine)
    assert find(with_factory).library == "sqlite3"
    with_factory.close()


def test_no_database_library_is_imported_unasked() -> None:
    code = "import sys, easybus.transactions; print([m for m in ('sqlite3', 'apsw') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_rows_changed_and_rows_read(library: str, tmp_path: Path) -> None:
    connection = connect(library, tmp_path / "own.db")
    connection.execute("CREATE TABLE t (a)").fetchall()
    tx = find(connection)
    assert tx.execute("INSERT INTO t VALUES (?), (2)", (1,)) == 2
    assert tx.execute("UPDATE t SET a = 3 WHERE a = ?", (9,)) == 0
    assert tx.fetch_one("SELECT a FROM t WHERE a = ?", (2,)) == (2,)
    assert tx.fetch_one("SELECT a FROM t WHERE a = ?", (9,)) is None
    assert tx.on_commit(print) is False
    assert tx.is_async is False
    connection.close()
    assert tx.closed


async def test_an_open_transaction_on_the_bus_s_database_passes(
    engine: SqliteEngine, library: str, tmp_path: Path
) -> None:
    connection = connect(library, tmp_path / "bus.db")
    connection.execute("BEGIN")
    check(find(connection), engine.outbox)
    connection.execute("ROLLBACK")
    connection.close()


async def test_autocommit_closed_and_other_databases_are_refused(
    engine: SqliteEngine, library: str, tmp_path: Path
) -> None:
    connection = connect(library, tmp_path / "bus.db")
    with pytest.raises(ConfigurationError, match="BEGIN IMMEDIATE"):
        check(find(connection), engine.outbox)
    connection.close()
    with pytest.raises(ConfigurationError, match="closed"):
        check(find(connection), engine.outbox)
    other = connect(library, tmp_path / "other.db")
    other.execute("BEGIN")
    with pytest.raises(ConfigurationError, match="another database"):
        check(find(other), engine.outbox)
    other.close()


async def test_a_connection_of_the_other_library_is_refused_with_the_url_to_write(
    engine: SqliteEngine, library: str, tmp_path: Path
) -> None:
    other = "sqlite3" if library == "apsw" else "apsw"
    connection = connect(other, tmp_path / "elsewhere.db")
    with pytest.raises(ConfigurationError, match=r"bus\.db\?library=sqlite3" if other == "sqlite3" else r"bus\.db$"):
        check(find(connection), engine.outbox)
    connection.close()


def test_a_connection_that_begins_by_itself_counts_as_in_a_transaction() -> None:
    legacy = sqlite3.connect(":memory:")
    assert find(legacy).in_transaction
    legacy.close()
    plain = sqlite3.connect(":memory:", isolation_level=None)
    assert not find(plain).in_transaction
    plain.close()
    if sys.version_info >= (3, 12):
        for autocommit in (True, False):
            modern = sqlite3.connect(":memory:", autocommit=autocommit)
            assert find(modern).in_transaction is not autocommit
            modern.close()

"""What SQLite's engine tells of the place and the settings that it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from easybus.clock import SystemClock
from easybus.engines.contract import AuditedEngine
from easybus.engines.sqlite import create, location


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
async def test_commits_that_are_not_flushed_and_files_in_memory_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setattr(location, "_file_system", lambda _: "ext4")
    engine = create(f"sqlite:///{tmp_path}/shop.db?library={library}", SystemClock())
    assert isinstance(engine, AuditedEngine)
    await engine.open()
    try:
        assert await engine.durability() == []
        connection = engine.writer().file.connection()
        await engine.writer().read(lambda _: connection.rows("PRAGMA synchronous=OFF"))
        (weak,) = await engine.durability()
        assert "PRAGMA synchronous is 0" in weak
        await engine.writer().read(lambda _: connection.rows("PRAGMA synchronous=FULL"))
        monkeypatch.setattr(location, "_file_system", lambda _: "tmpfs")
        (weak,) = await engine.durability()
        assert "lies in memory (tmpfs)" in weak
    finally:
        await engine.close()

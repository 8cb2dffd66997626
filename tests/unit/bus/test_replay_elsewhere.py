"""A dead letter that another process marks is replayed by the handlers' own, soon."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from easybus import Bus, never


@pytest.mark.alone
async def test_a_letter_marked_in_another_process_is_handled_within_two_seconds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/bus.db"
    bus = Bus(url)
    jobs = bus.queue("jobs", str)
    handled: list[float] = []
    broken = True

    @jobs.handler(retry=never())
    async def handle(word: str) -> None:
        if broken:
            raise ValueError("no")
        handled.append(time.time())

    async with bus.handling():
        await jobs.send("one")
        assert bus.dead_letters is not None
        while not await bus.dead_letters.count():
            await asyncio.sleep(0.01)
        broken = False
        mark = [sys.executable, "-m", "easybus.cli", "dead", "retry", "--queue", "jobs", "--all", "--yes", "--url", url]
        ran = await asyncio.to_thread(subprocess.run, mark, capture_output=True, text=True, timeout=60, check=False)
        marked = time.time()
        assert ran.returncode == 0, ran.stderr
        while not handled:
            assert time.time() < marked + 30, "it was never replayed"
            await asyncio.sleep(0.005)
        assert handled[0] - marked < 2.0
        while await bus.dead_letters.count():
            await asyncio.sleep(0.01)

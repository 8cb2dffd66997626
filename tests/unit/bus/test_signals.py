"""`await bus.run()` in a process of its own, stopped by signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from easybus import Bus

bus = Bus("sqlite:///bus.db")
jobs = bus.queue("jobs", str)

@jobs.handler()
async def handle(word: str) -> None:
    print("began", word, flush=True)
    await asyncio.sleep(float(sys.argv[1]))
    print("ended", word, flush=True)

async def main() -> None:
    async with bus:
        await jobs.send("one")
        print("sent", flush=True)
        await bus.run()
        stats = await bus.driver.stats("jobs")
        print("left", stats.ready, stats.in_flight, flush=True)

asyncio.run(main())
"""


def begin(tmp_path: Path, seconds: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, seconds], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "began one\n":
            return process
    raise AssertionError(f"it ended with {process.wait()}")


def test_sigterm_lets_handlers_end_and_acks_what_has_finished(tmp_path: Path) -> None:
    process = begin(tmp_path, "0.3")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "ended one\nleft 0 0\n"


def test_a_second_signal_cancels_handlers_and_their_messages_go_back(tmp_path: Path) -> None:
    process = begin(tmp_path, "1000")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "left 1 0\n"

"""Several processes on one file, and what outlives them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import statistics
import sys
import time
from pathlib import Path

import apsw
import pytest

from easybus.engines.contract import Ack, DeclareQueue, Publication
from easybus.engines.sqlite.engine import SqliteEngine
from easybus.errors import NotOpen

from .conftest import Opener

CHILD = Path(__file__).with_name("child.py")


async def child(url: str, deed: str, number: int = 1) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), url, deed, str(number),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, errors = await asyncio.wait_for(process.communicate(), 50)
    return process.returncode, errors.decode()[-2000:]


async def test_twenty_processes_open_a_new_file_at_once(url: str, opened: Opener) -> None:
    processes = await asyncio.gather(*(child(url, "open") for _ in range(20)))
    for process in processes:
        assert (await ended(process))[0] == 0
    engine = await opened()
    assert await engine.driver.queues() == [DeclareQueue("q")]


async def test_eight_processes_write_and_no_lock_error_reaches_any(engine: SqliteEngine, url: str) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    processes = await asyncio.gather(*(child(url, "write", 150) for _ in range(8)))
    for process in processes:
        code, errors = await ended(process)
        assert code == 0, errors
    assert (await engine.driver.stats("q")).ready == 8 * 150


async def test_a_process_killed_right_after_publish_returned_loses_nothing(engine: SqliteEngine, url: str) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    code, errors = await ended(await child(url, "publish-and-die", 100))
    assert code == -signal.SIGKILL, errors
    found = await engine.driver.fetch("q", 1000, 1, 30)
    assert [delivery.body for delivery in found] == [b"%d" % at for at in range(100)]


@pytest.mark.alone
async def test_a_message_reaches_another_process_within_5_ms(engine: SqliteEngine, url: str) -> None:
    await engine.driver.declare([DeclareQueue("there"), DeclareQueue("back")])
    process = await child(url, "echo", 75)
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 20)
    medians = []
    for _ in range(5):  # a busy machine is late by itself: the best of five rounds is ours
        delays = []
        for _ in range(15):
            await asyncio.sleep(0.01)  # it is idle again
            await engine.driver.publish([Publication(False, "there", b"")])
            confirmed = time.time()
            (answer,) = await engine.driver.fetch("back", 1, 20, 30)
            await engine.driver.settle("back", [Ack(answer)])
            delays.append(float(answer.body) - confirmed)
        medians.append(statistics.median(delays))
    assert (await ended(process))[0] == 0
    alone = os.getloadavg()[0] <= (os.cpu_count() or 1)
    assert min(medians) < (0.005 if alone else 0.2), medians  # among others' processes: woken at all, by no long poll


async def test_a_transaction_of_another_program_is_waited_for(
    engine: SqliteEngine, library: str, tmp_path: Path
) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    path = str(tmp_path / "bus.db")
    other = apsw.Connection(path) if library == "apsw" else sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    publish = asyncio.create_task(engine.driver.publish([Publication(False, "q", b"")]))
    await asyncio.wait([publish], timeout=0.2)
    assert not publish.done()
    other.execute("COMMIT")
    assert await asyncio.wait_for(publish, 5) == [1]
    other.close()


async def test_a_forked_child_is_refused_until_it_opens_the_bus_again_and_the_parent_goes_on(
    engine: SqliteEngine, url: str
) -> None:
    await engine.driver.declare([DeclareQueue("q")])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:  # no event loop of the parent's may be used here
            try:
                engine.writer().call(lambda connection: None)
            except NotOpen:
                asyncio.events._set_running_loop(None)
                asyncio.set_event_loop(None)
                code = asyncio.new_event_loop().run_until_complete(_publish_in_child(engine))
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    await engine.driver.publish([Publication(False, "q", b"parent")])
    found = await engine.driver.fetch("q", 10, 1, 30)
    assert [delivery.body for delivery in found] == [b"child", b"parent"]


async def _publish_in_child(engine: SqliteEngine) -> int:
    await engine.close()
    await engine.open()
    results = await engine.driver.publish([Publication(False, "q", b"child")])
    await engine.close()
    return 0 if results == [1] else 2

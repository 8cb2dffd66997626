"""`bus.blocking` around a fork: opened again at the next call, on both sides, whatever other threads are at."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.servers.cluster import until

from easybus import Bus

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of 3.12, where threads run


def child(work: Callable[[], object]) -> int:
    """Fork; the child does `work`, and is ended by a signal if that takes over 5 seconds."""
    if process := os.fork():
        return process
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def in_child_too(work: Callable[[], object]) -> None:
    """Do `work`, which forks, and end the child after it."""
    parent, status = os.getpid(), 1
    try:
        work()
        status = 0
    except BaseException:
        if os.getpid() == parent:
            raise
        traceback.print_exc()
    finally:
        if os.getpid() != parent:
            os._exit(status)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("earlier", [False, True])
def test_after_a_fork_both_sides_can_send(tmp_path: Path, earlier: bool) -> None:
    """`earlier`: where a bus on another engine was opened before."""
    bus, other = Bus(f"sqlite:///{tmp_path}/bus.db"), Bus("memory://")
    jobs, others = bus.queue("jobs", int), other.queue("jobs", int)
    if earlier:
        other.blocking.send(others, 1)
    bus.blocking.send(jobs, 1)

    def send_in_child() -> None:
        bus.blocking.send(jobs, 2)
        other.blocking.send(others, 1)
        bus.blocking.close()

    try:
        assert exit_code(child(send_in_child)) == 0
        bus.blocking.send(jobs, 3)
        other.blocking.send(others, 1)
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 3
    finally:
        bus.blocking.close()
        other.blocking.close()


def test_threads_send_while_the_process_forks(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", int)
    sent: list[int] = []
    failures: list[BaseException] = []
    enough = threading.Event()

    def send_on_and_on() -> None:
        while not enough.is_set():
            try:
                sent.append(bus.blocking.send(jobs, 1).retried)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=send_on_and_on, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    codes: list[int] = []
    try:
        for _ in range(10):
            before = len(sent)
            until(lambda before=before: len(sent) > before + 4 or failures, "nothing is sent")
            codes.append(exit_code(child(lambda: bus.blocking.send(jobs, 2))))
    finally:
        enough.set()
        for thread in threads:
            thread.join(5.0)
    try:
        assert failures == []
        assert codes == [0] * 10
        assert not any(thread.is_alive() for thread in threads)
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == len(sent) + 10
    finally:
        bus.blocking.close()


def test_a_fork_does_not_wait_for_ever_for_a_bus_that_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easybus.blocking._CLOSING", 0.2)
    opening, may_open = threading.Event(), threading.Event()

    class Slow(Bus):
        async def __aenter__(self) -> Bus:
            opening.set()
            await asyncio.to_thread(may_open.wait, 20.0)
            return await super().__aenter__()

    bus = Slow("memory://")
    jobs = bus.queue("jobs", int)
    sent: list[str] = []
    sender = threading.Thread(target=lambda: sent.append(bus.blocking.send(jobs, 1).id), daemon=True)
    sender.start()
    assert opening.wait(5.0)

    def send_in_child() -> None:
        may_open.set()
        bus.blocking.send(jobs, 2)

    began = time.monotonic()
    process = child(send_in_child)
    waited = time.monotonic() - began
    may_open.set()
    try:
        assert waited < 5.0
        assert exit_code(process) == 0
        sender.join(5.0)
        assert len(sent) == 1, "the fork was none of its business"
    finally:
        bus.blocking.close()


FIRST_USE = """
import os, sys, threading
from easybus import Bus

opening, forking = threading.Event(), threading.Event()


class Late(Bus):
    async def __aenter__(self):
        opening.set()
        assert forking.wait(5.0)
        return await super().__aenter__()


bus = Late(sys.argv[1])
jobs = bus.queue("jobs", int)
sender = threading.Thread(target=lambda: bus.blocking.send(jobs, 1))
sender.start()
assert opening.wait(5.0)
os.register_at_fork(before=forking.set)
if (child := os.fork()) == 0:
    bus.blocking.send(jobs, 2)
    bus.blocking.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
sender.join(5.0)
bus.blocking.open()
print(bus.blocking.call(bus.driver.stats("jobs")).ready)
"""


def test_a_fork_while_another_thread_uses_the_bus_first_waits_for_it(tmp_path: Path) -> None:
    """In a process of its own: an engine is imported at its first use, and hooks forks then."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FIRST_USE, f"sqlite:///{tmp_path}/bus.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.parametrize("apart", [False, True])
def test_a_call_may_itself_fork_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    """On the bus's own loop, or `apart` in a thread that the call waits for."""
    monkeypatch.setattr("easybus.blocking._FORKING", 0.2)
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", int)

    def fork() -> int:
        return child(lambda: bus.blocking.send(jobs, 2))

    async def call() -> int:
        await bus.send(jobs, 1)
        process = await asyncio.to_thread(fork) if apart else fork()
        await bus.send(jobs, 3)
        return process

    try:
        assert exit_code(bus.blocking.call(call())) == 0
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 3
    finally:
        bus.blocking.close()


@pytest.mark.parametrize("apart", [False, True])
def test_a_fork_inside_a_transaction_leaves_its_end_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """`apart`: the child is forked by another thread, and does something else."""
    monkeypatch.setattr("easybus.blocking._FORKING", 0.2)
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    topic, jobs = bus.topic("events", int), bus.queue("jobs", int)

    @topic.committed
    async def committed(event: int) -> bool | None:
        return None

    @topic.handler("events")
    def handle(event: int) -> None: ...

    processes: list[int] = []

    def fork() -> None:
        processes.append(child(lambda: bus.blocking.send(jobs, 1)))

    def leave() -> None:
        with transaction:
            processes.append(os.fork())
        if processes[0] == 0:
            bus.blocking.send(jobs, 1)

    transaction = bus.blocking.transaction(topic, 1)
    try:
        if apart:
            with transaction:
                thread = threading.Thread(target=fork)
                thread.start()
                thread.join()
        else:
            in_child_too(leave)
        assert exit_code(processes[0]) == 0
        assert bus.blocking.call(bus.driver.stats("events")).ready == 1
        assert bus.blocking.call(bus.driver.stats("jobs")).ready == 1
    finally:
        bus.blocking.close()


@pytest.mark.parametrize("used", [False, True])
def test_a_child_of_an_async_program_opens_the_bus_by_itself(tmp_path: Path, used: bool) -> None:
    """`used`: the parent has used `bus.blocking` already."""
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    jobs = bus.queue("jobs", int)

    async def main() -> None:
        async with bus:
            await bus.send(jobs, 1)
            if used:
                await asyncio.to_thread(bus.blocking.send, jobs, 1)
            before = (await bus.driver.stats("jobs")).ready
            assert exit_code(child(lambda: bus.blocking.send(jobs, 2))) == 0
            await bus.send(jobs, 3)
            assert (await bus.driver.stats("jobs")).ready == before + 2

    asyncio.run(main())

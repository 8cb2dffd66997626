"""easybus under measurement: each function runs in a process of its own and returns figures."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from easybus import Bus

SLOTS = 100
"""Messages at work at once, and tasks that send."""
PAYLOAD = 200
"""Bytes of a payload."""


@dataclass
class Order:
    """A payload; `note` fills it up to PAYLOAD bytes."""

    id: int
    note: str


def order(number: int) -> Order:
    """The payload of this number, PAYLOAD bytes as JSON."""
    return Order(number, "x" * (PAYLOAD - len('{"id":,"note":""}') - len(str(number))))


def throughput(
    url: str, messages: int, uvloop: bool = False, tasks: int = SLOTS, storage: str | None = None
) -> dict[str, float]:
    """Send `messages` from concurrent tasks, each awaiting its own; then handle them all in this process."""
    return _run(_throughput(url, messages, tasks, storage), uvloop)


async def _throughput(url: str, messages: int, tasks: int, storage: str | None) -> dict[str, float]:
    bus = Bus(url, storage=storage)
    queue = bus.queue("orders", Order)
    left = messages
    all_handled = asyncio.Event()

    @queue.handler(concurrency=SLOTS)
    async def handle(_: Order) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_handled.set()

    orders = [order(number) for number in range(messages)]
    async with bus:
        figures = await sent_by_tasks(orders, queue.send, tasks)
        began, used = time.perf_counter(), time.process_time()
        async with bus.handling():
            await all_handled.wait()
        # Leaving waits until the last completion is committed: that belongs to handling.
        return figures | {
            "handled_per_s": messages / (time.perf_counter() - began),
            "handle_cpu_us": (time.process_time() - used) / messages * 1e6,
        }


async def sent_by_tasks(
    orders: Sequence[Order], send: Callable[[Order], Awaitable[object]], tasks: int = SLOTS
) -> dict[str, float]:
    """Send these from concurrent tasks, each awaiting its own, one after the other."""

    async def sender(first: int) -> None:
        for one in orders[first::tasks]:
            await send(one)

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(sender(first) for first in range(tasks)))
    return {
        "sent_per_s": len(orders) / (time.perf_counter() - began),
        "send_cpu_us": (time.process_time() - used) / len(orders) * 1e6,
    }


def _run(main: Coroutine[Any, Any, dict[str, float]], uvloop: bool) -> dict[str, float]:
    if not uvloop:
        return asyncio.run(main)
    import uvloop as faster

    return faster.run(main)


def fill(url: str, messages: int, storage: str | None = None) -> dict[str, float]:
    """Put `messages` into the queue, in large batches."""

    async def main() -> dict[str, float]:
        bus = Bus(url, storage=storage)
        queue = bus.queue("orders", Order)
        async with bus:
            for first in range(0, messages, 5000):
                await queue.send_many([order(number) for number in range(first, min(first + 5000, messages))])
        return {}

    return asyncio.run(main())


def drain(url: str, messages: int, part: int, storage: str | None = None) -> dict[str, Any]:
    """Handle a backlog of `messages`: the time and the memory at the end of each `part` of it."""

    async def main() -> dict[str, Any]:
        bus = Bus(url, storage=storage)
        queue = bus.queue("orders", Order)
        handled = 0
        times, memory = [0.0], [0.0]
        all_handled = asyncio.Event()

        @queue.handler(concurrency=SLOTS)
        async def handle(_: Order) -> None:
            nonlocal handled
            handled += 1
            if handled % part == 0:
                times.append(time.perf_counter())
                memory.append(resident())
            if handled == messages:
                all_handled.set()

        async with bus:
            times[0], memory[0] = time.perf_counter(), resident()
            async with bus.handling():
                await all_handled.wait()
        return {"times": times, "memory_mb": memory, "peak_mb": peak()}

    return asyncio.run(main())


def send_a_few(url: str, messages: int) -> dict[str, float]:
    """A process that only sends: its memory at the most."""

    async def main() -> None:
        bus = Bus(url)
        queue = bus.queue("orders", Order)
        async with bus:
            for number in range(messages):
                await queue.send(order(number))

    asyncio.run(main())
    return {"peak_mb": peak()}


def resident() -> float:
    """This process's memory now, in MB (10^6 bytes)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def peak() -> float:
    """This process's memory at its highest, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6

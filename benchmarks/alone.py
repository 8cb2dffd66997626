"""One message sent alone on sqlite:///, handled in another process: how long that takes."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easybus import Bus

from . import children, machine
from .report import Figure

APART = (0.01, 0.03)
"""Seconds between two messages: at no rhythm that another's polling could fall in with."""
_READY = "ready"


@dataclass
class Stamped:
    """A payload that knows when its send began, by the host's monotonic clock."""

    sent_at: int
    note: str


def handle(url: str, messages: int, ready: str, storage: str | None = None) -> dict[str, list[float]]:
    """The process that handles: milliseconds from before each send to its handler."""

    async def main() -> dict[str, list[float]]:
        bus = Bus(url, storage=storage)
        queue = bus.queue("orders", Stamped)
        took: list[float] = []
        all_handled = asyncio.Event()

        @queue.handler(concurrency=10)
        async def note(message: Stamped) -> None:
            took.append((time.monotonic_ns() - message.sent_at) / 1e6)
            if len(took) == messages:
                all_handled.set()

        async with bus.handling():
            Path(ready).touch()
            await all_handled.wait()
        return {"took_ms": took}

    return asyncio.run(main())


def send(url: str, messages: int, storage: str | None = None) -> dict[str, list[float]]:
    """The process that sends."""

    async def main() -> dict[str, list[float]]:
        bus = Bus(url, storage=storage)
        queue = bus.queue("orders", Stamped)
        async with bus:
            return await one_by_one(messages, queue.send)

    return asyncio.run(main())


def one_round(module: str, directory: Path, messages: int, **place: Any) -> dict[str, float]:
    """Send alone with `benchmarks.<module>.send`, handle with its `handle`; milliseconds."""
    ready = directory / _READY
    handler = children.start(module, "handle", messages=messages, ready=str(ready), **place)
    try:
        while not ready.exists() and handler.poll() is None:
            time.sleep(0.02)
        sent = children.run(module, "send", messages=messages, **place)["took_ms"]
        took = sorted(children.result(handler, 60)["took_ms"])
    finally:
        handler.kill()
        ready.unlink(missing_ok=True)
    return {
        "p50": statistics.median(took),
        "p99": took[min(len(took) - 1, len(took) * 99 // 100)],
        "sent": statistics.median(sent),
    }


async def one_by_one(messages: int, send_one: Callable[[Stamped], Awaitable[object]]) -> dict[str, list[float]]:
    """Send `messages`, each `APART` from the one before."""
    took: list[float] = []
    for _ in range(messages):
        await asyncio.sleep(random.uniform(*APART))
        began = time.monotonic_ns()
        await send_one(Stamped(began, "x" * 160))
        took.append((time.monotonic_ns() - began) / 1e6)
    return {"took_ms": took}


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {"p50": [], "p99": [], "sent": []}
    speeds = [machine.speed(directory)]
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            found = one_round("alone", Path(fresh), messages, url=f"sqlite:///{fresh}/bus.db")
        for name, value in found.items():
            seen[name].append(value)
        speeds.append(machine.speed(directory))
        say(f"round {number + 1} of {rounds}: median {seen['p50'][-1]:.2f} ms, 99 % {seen['p99'][-1]:.2f} ms")
    title = (
        f"One message alone on sqlite:///, from before `send` in one process to the handler in another; {messages} "
        f"messages 10 to 30 ms apart, {rounds} rounds."
    )
    return (
        title,
        [
            Figure("sent alone and handled in another process, median", seen["p50"], "ms", at_most=5),
            Figure("the same, 99th percentile", seen["p99"], "ms", at_most=15),
            Figure("of that, `send` until confirmed, median", seen["sent"], "ms"),
        ],
        speeds,
    )

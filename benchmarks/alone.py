"""One message sent alone on sqlite:///, handled in another process: how long that takes."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from easybus import Bus

from . import children, machine
from .report import Figure

_READY = "ready"


@dataclass
class Stamped:
    """A payload that knows when its send began, by the host's monotonic clock."""

    sent_at: int
    note: str


def handle(url: str, messages: int, ready: str) -> dict[str, list[float]]:
    """The process that handles: milliseconds from before each send to its handler."""

    async def main() -> dict[str, list[float]]:
        bus = Bus(url)
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


def send(url: str, messages: int) -> dict[str, list[float]]:
    """The process that sends, one every 10 to 30 ms, at no rhythm that another's polling could fall in with."""

    async def main() -> dict[str, list[float]]:
        bus = Bus(url)
        queue = bus.queue("orders", Stamped)
        took: list[float] = []
        async with bus:
            for _ in range(messages):
                await asyncio.sleep(random.uniform(0.01, 0.03))
                began = time.monotonic_ns()
                await queue.send(Stamped(began, "x" * 160))
                took.append((time.monotonic_ns() - began) / 1e6)
        return {"took_ms": took}

    return asyncio.run(main())


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {"p50": [], "p99": [], "sent": []}
    speeds = [machine.speed(directory)]
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            url, ready = f"sqlite:///{fresh}/bus.db", Path(fresh) / _READY
            handler = children.start("alone", "handle", url=url, messages=messages, ready=str(ready))
            try:
                while not ready.exists() and handler.poll() is None:
                    time.sleep(0.02)
                sent = children.run("alone", "send", url=url, messages=messages)["took_ms"]
                took = sorted(children.result(handler, 60)["took_ms"])
            finally:
                handler.kill()
        seen["p50"].append(statistics.median(took))
        seen["p99"].append(took[min(len(took) - 1, len(took) * 99 // 100)])
        seen["sent"].append(statistics.median(sent))
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

"""Throughput of one process: memory://, sqlite:/// and other embedded queues, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import children, machine
from .ours import PAYLOAD, SLOTS
from .peers import DURABLE, PEERS
from .report import Figure


@dataclass(frozen=True)
class Sizes:
    """Messages of each measurement: enough for about a second or two."""

    memory: int = 100_000
    sqlite: int = 60_000
    peer: int = 2_000


def measure(
    directory: Path, rounds: int, sizes: Sizes, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; returns a title, the figures, and the machine's speed before each round and at the end."""
    seen: dict[str, list[float]] = {}
    speeds: list[dict[str, float]] = []

    def keep(who: str, figures: dict[str, float]) -> None:
        say(f"  {who}: " + ", ".join(f"{name} {value:,.0f}" for name, value in figures.items()))
        for name, value in figures.items():
            seen.setdefault(f"{who} {name}", []).append(value)

    for number in range(rounds):
        speeds.append(machine.speed(directory))
        say(f"round {number + 1} of {rounds}; {speeds[-1]['python_loops_per_ms']:,.0f} Python loops a millisecond")
        for uvloop in (False, True):
            on = "uvloop" if uvloop else "asyncio"
            keep(
                f"memory {on}",
                children.run("ours", "throughput", url="memory://", messages=sizes.memory, uvloop=uvloop),
            )
            keep(f"pipeline {on}", children.run("pipeline", "cost", messages=sizes.memory, uvloop=uvloop))
            with tempfile.TemporaryDirectory(dir=directory) as fresh:
                url = f"sqlite:///{fresh}/bus.db"
                keep(f"sqlite {on}", children.run("ours", "throughput", url=url, messages=sizes.sqlite, uvloop=uvloop))
        ours = seen["sqlite asyncio handled_per_s"][-1]
        for peer in PEERS:
            with tempfile.TemporaryDirectory(dir=directory) as fresh:
                keep(peer, children.run("peers", peer, directory=fresh, messages=sizes.peer))
        best = max(seen[f"{peer} handled_per_s"][-1] for peer in DURABLE)
        seen.setdefault("ratio", []).append(ours / best)
    speeds.append(machine.speed(directory))
    title = (
        f"Throughput of one process: payloads of {PAYLOAD} bytes, {SLOTS} tasks that send one after the other, then "
        f"{SLOTS} slots that handle with deduplication on; medians of {rounds} interleaved rounds."
    )
    return title, _figures(seen), speeds


def _figures(seen: dict[str, list[float]]) -> list[Figure]:
    figures = [
        Figure("memory://, handled", seen["memory asyncio handled_per_s"], "/s", at_least=80_000),
        Figure("memory:// on uvloop, handled", seen["memory uvloop handled_per_s"], "/s", at_least=100_000),
        Figure("the pipeline's own cost of a message", seen["pipeline asyncio pipeline_us"], "µs", at_most=10),
        Figure("the same on uvloop", seen["pipeline uvloop pipeline_us"], "µs"),
        Figure("sqlite:///, synchronous=FULL, sent", seen["sqlite asyncio sent_per_s"], "/s", at_least=50_000),
        Figure("sqlite:///, synchronous=FULL, handled", seen["sqlite asyncio handled_per_s"], "/s", at_least=30_000),
        Figure("sqlite:/// on uvloop, sent", seen["sqlite uvloop sent_per_s"], "/s"),
        Figure("sqlite:/// on uvloop, handled", seen["sqlite uvloop handled_per_s"], "/s"),
        Figure("sqlite:///, processor time to send one", seen["sqlite asyncio send_cpu_us"], "µs"),
        Figure("sqlite:///, processor time to handle one", seen["sqlite asyncio handle_cpu_us"], "µs"),
        Figure("handled, sqlite:/// over the better of litequeue and persist-queue", seen["ratio"], "×", at_least=8),
    ]
    for peer, note in PEERS.items():
        figures.append(Figure(f"{peer}, sent", seen[f"{peer} sent_per_s"], "/s", note=note))
        figures.append(Figure(f"{peer}, handled", seen[f"{peer} handled_per_s"], "/s"))
    return figures

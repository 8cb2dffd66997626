"""A backlog on sqlite:///: the consumer's memory, and whether it is as fast at the end as at the beginning."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import children, machine
from .report import Figure


def one_round(messages: int, say: Callable[[str], None], **place: Any) -> dict[str, float]:
    """Fill, then handle all of it in one process: memory in MB, rates a second."""
    messages = _tenths(messages)
    part = messages // 10
    children.run("ours", "fill", messages=messages, **place)
    found = children.run("ours", "drain", messages=messages, part=part, **place)
    times, memory = found["times"], found["memory_mb"]
    rates = [part / (after - before) for before, after in itertools.pairwise(times)]
    shown = " ".join(f"{rate:,.0f}" for rate in rates)
    say(f"  backlog: {found['peak_mb']:.1f} MB at most; rates of the tenths: {shown}")
    return {
        "peak": found["peak_mb"],
        "grown": max(memory[1:]) - memory[1],
        "ratio": rates[-1] / rates[0],
        "first": rates[0],
        "last": rates[-1],
    }


def _tenths(messages: int) -> int:
    return max(1, messages // 10) * 10


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Fill, then handle all of it in one process; see `embedded.measure`."""
    messages = _tenths(messages)
    seen: dict[str, list[float]] = {"peak": [], "grown": [], "ratio": [], "first": [], "last": []}
    speeds = [machine.speed(directory)]
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            say(f"round {number + 1} of {rounds}")
            for name, value in one_round(messages, say, url=f"sqlite:///{fresh}/bus.db").items():
                seen[name].append(value)
        speeds.append(machine.speed(directory))
    title = f"A backlog of {messages:,} messages on sqlite:///, handled by one process; {rounds} rounds."
    return (
        title,
        [
            Figure("the consumer's memory at its highest", seen["peak"], "MB", at_most=80),
            Figure("its growth after the first tenth", seen["grown"], "MB", at_most=10),
            Figure("the last tenth's rate over the first's", seen["ratio"], "×", at_least=0.8),
            Figure("handled, first tenth", seen["first"], "/s"),
            Figure("handled, last tenth", seen["last"], "/s"),
        ],
        speeds,
    )

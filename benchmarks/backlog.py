"""A backlog on sqlite:///: the consumer's memory, and whether it is as fast at the end as at the beginning."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import children, machine
from .report import Figure


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Fill, then handle all of it in one process; see `embedded.measure`."""
    part = max(1, messages // 10)
    messages = part * 10
    seen: dict[str, list[float]] = {"peak": [], "grown": [], "ratio": [], "first": [], "last": []}
    speeds = [machine.speed(directory)]
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            url = f"sqlite:///{fresh}/bus.db"
            children.run("ours", "fill", url=url, messages=messages)
            found = children.run("ours", "drain", url=url, messages=messages, part=part)
        times, memory = found["times"], found["memory_mb"]
        rates = [part / (after - before) for before, after in itertools.pairwise(times)]
        seen["peak"].append(found["peak_mb"])
        seen["grown"].append(max(memory[1:]) - memory[1])
        seen["ratio"].append(rates[-1] / rates[0])
        seen["first"].append(rates[0])
        seen["last"].append(rates[-1])
        speeds.append(machine.speed(directory))
        shown = " ".join(f"{rate:,.0f}" for rate in rates)
        say(f"round {number + 1} of {rounds}: {found['peak_mb']:.1f} MB at most; rates of the tenths: {shown}")
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

"""What easybus costs before it does anything: the time of `import easybus`, and the memory of a process that sends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import children, machine
from .report import Figure

_IMPORT = (
    "import time; began, used = time.perf_counter(), time.process_time(); import easybus; "
    "print((time.perf_counter() - began) * 1000, (time.process_time() - used) * 1000)"
)
_ASYNCIO = _IMPORT.replace("import easybus", "import asyncio")


def _took(script: str) -> list[float]:
    """Milliseconds that an import took, and those of the processor."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=children.ROOT)
    return [float(part) for part in done.stdout.split()]


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {"import": [], "import cpu": [], "asyncio cpu": [], "memory": []}
    speeds = [machine.speed(directory)]
    for _ in range(rounds):
        took, used = _took(_IMPORT)
        seen["import"].append(took)
        seen["import cpu"].append(used)
        seen["asyncio cpu"].append(_took(_ASYNCIO)[1])
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            sent = children.run("ours", "send_a_few", url=f"sqlite:///{fresh}/bus.db", messages=messages)
        seen["memory"].append(sent["peak_mb"])
    speeds.append(machine.speed(directory))
    figures = [
        Figure("import easybus", seen["import"], "ms", at_most=150),
        Figure("the same, processor time", seen["import cpu"], "ms"),
        Figure("of that, asyncio", seen["asyncio cpu"], "ms"),
        Figure("memory of a process that sends", seen["memory"], "MB", at_most=40),
    ]
    say("  ".join(f"{figure.name}: {figure.median:.1f} {figure.unit}" for figure in figures))
    title = f"Footprint: a fresh process each; the one that sends has sent {messages:,} messages; {rounds} rounds."
    return title, figures, speeds

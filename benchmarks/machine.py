"""What this machine gives at the moment: the same benchmark moves by a factor of two with it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_ROUNDS = 300_000
_FLUSHES = 60
_IDLE = 0.15


def speed(directory: Path) -> dict[str, float]:
    """A fixed pure-Python loop, how much of a processor it got, and a flush of 4 KiB to the disk."""
    wall, used = time.perf_counter(), time.process_time()
    numbers: dict[int, int] = {}
    total = 0
    for at in range(_ROUNDS):
        numbers[at & 1023] = total
        total = (total + at * 7) & 0xFFFF
    used, wall = time.process_time() - used, time.perf_counter() - wall
    return {
        "python_loops_per_ms": _ROUNDS / used / 1000,
        "share_of_a_processor": min(1.0, used / wall),
        "load": os.getloadavg()[0],
        "flush_us": statistics.median(_flushes(directory)) * 1e6,
    }


def wait_until_idle(patience: float) -> None:
    """Wait until others leave the processors alone, `patience` seconds at most."""
    ends = time.monotonic() + patience
    while time.monotonic() < ends and _busy(0.3) > _IDLE:
        pass


def _busy(seconds: float) -> float:
    """The share of all processors that was at work for so long from now; 0 where it cannot be known."""
    before = _processor_times()
    time.sleep(seconds)
    after = _processor_times()
    if not before or not after:
        return 0.0
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and waiting for the disk


def _processor_times() -> list[int]:
    try:
        return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return []


def _flushes(directory: Path) -> list[float]:
    path = directory / "flush"
    block = os.urandom(4096)
    times: list[float] = []
    with path.open("wb") as file:
        for _ in range(_FLUSHES):
            began = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return times


def description() -> dict[str, Any]:
    """The machine and the versions, for who compares results."""
    import apsw

    packages = ("uvloop", "litequeue", "persist-queue", "huey", "msgspec", "faststream", "pgqueuer", "dramatiq")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "sqlite": apsw.sqlite_lib_version(),
        **{name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

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
        "flush_us": statistics.median(_flushes(directory)) * 1e6,
    }


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

    packages = ("uvloop", "litequeue", "persist-queue", "huey", "msgspec")
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

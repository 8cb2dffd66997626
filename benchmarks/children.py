"""One measurement in a process of its own: `python -m benchmarks.children MODULE FUNCTION '{"arguments": …}'`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import machine

ROOT = Path(__file__).parent.parent
patience = 0.0
"""Seconds that each measurement waits for an idle machine, at most."""


def start(module: str, function: str, **arguments: Any) -> subprocess.Popen[str]:
    """Start `benchmarks.<module>.<function>(**arguments)`; what it returns is printed as its last line."""
    call = [sys.executable, "-m", "benchmarks.children", module, function, json.dumps(arguments)]
    return subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def result(child: subprocess.Popen[str], seconds: float = 900) -> dict[str, Any]:
    """What a child returned. Raises RuntimeError if it failed or took longer."""
    try:
        out, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise RuntimeError(f"{child.args}: no result in {seconds:g} s") from None
    if child.returncode:
        raise RuntimeError(f"{child.args}: ended with {child.returncode}")
    return json.loads(out.splitlines()[-1])


def run(module: str, function: str, **arguments: Any) -> dict[str, Any]:
    """Start when the machine is idle, and wait for the result."""
    machine.wait_until_idle(patience)
    return result(start(module, function, **arguments))


if __name__ == "__main__":
    found = importlib.import_module(f"benchmarks.{sys.argv[1]}")
    print(json.dumps(getattr(found, sys.argv[2])(**json.loads(sys.argv[3]))), flush=True)

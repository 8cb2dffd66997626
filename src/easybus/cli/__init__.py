"""The command line: `easybus`.

    app.py        the commands, put together        target.py     which engines a command speaks to
    run.py        run: one process, or workers      loading.py    `module:bus` → the bus
    supervise.py  child processes, kept alive       output.py     tables, JSON, errors; what is safe to print
    queues.py dead.py tx.py doctor.py send.py relay.py schema.py check.py   one file for each kind of work

It needs the extra `cli`; without it `main` says so in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["load", "main"]


def main() -> None:
    """Run the command line with `sys.argv`, and exit: 0 done, 1 failed (the reason is on stderr), 2 wrong usage."""
    load()(prog_name="easybus")


def load() -> Callable[..., Any]:
    """What runs the command line: called with `args`, `prog_name`, and as `obj` the words that start this program for
    a worker, where they are not `python -m easybus.cli`."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"typer", "rich"}:
            raise
        print(f"easybus: the command line needs {error.name}: pip install 'easybus[cli]'", file=sys.stderr)
        raise SystemExit(1) from None
    return app

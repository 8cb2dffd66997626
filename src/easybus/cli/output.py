"""What a person or a script reads: tables, JSON, errors.

Payloads, names and errors come from anywhere, so all of them pass `visible`: no byte of theirs reaches the terminal
as a control sequence, and none is read as rich's markup.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import difflib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import EasybusError
from ..shown import hidden, visible

P = ParamSpec("P")

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


class Failure(EasybusError):
    """What the command cannot do, in a sentence for the person who typed it."""


class Misused(EasybusError):
    """Wrong usage: exit 2."""


def payload_fields(data: bytes) -> dict[str, Any]:
    """A payload for `--json`: as text where it is UTF-8, else as base64."""
    try:
        return {"payload": data.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(data).decode()}


def close_to(wanted: str, known: Iterable[str], kind: str) -> str:
    """The end of an error's sentence: what there is instead of `wanted`, the closest first."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if not names:
        return f"there are no {kind}"
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"there are the {kind} {shown}"


def counted(number: int, thing: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def when(seconds: float) -> str:
    """A moment, as the reader's clock shows it."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def ago(seconds: float) -> str:
    """How long since this moment (or until it, as `in 5s`), in the largest unit that fits."""
    if not seconds:
        return "-"
    passed = time.time() - seconds
    size = abs(passed)
    text = next(
        (f"{size / unit:.0f}{letter}" for letter, unit in (("d", 86_400), ("h", 3600), ("m", 60)) if size >= unit),
        f"{size:.0f}s",
    )
    return f"{text} ago" if passed >= 0 else f"in {text}"


def duration(text: str) -> float:
    """Seconds of `90`, `30s`, `5m`, `2h`, `7d` or `1.5h`.

    Raises:
        Misused: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d|w|)\s*", text)
    if not found:
        raise Misused(f"{text!r} is no length of time; write 30s, 5m, 2h or 7d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[found[2]]


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], folds: str = "") -> Table:
    """A table: numbers to the right, everything else to the left, None as `-`; the column `folds` gives way first."""
    built = Table(box=None, pad_edge=False, header_style="bold")
    filled = list(rows)
    for column, heading in enumerate(headings):
        numbers = bool(filled) and all(isinstance(row[column], int | float | None) for row in filled)
        built.add_column(
            Text(heading), justify="right" if numbers else "left", overflow="fold", no_wrap=heading != folds
        )
    for row in filled:
        built.add_row(*(Text("-" if cell is None else visible(str(cell))) for cell in row))
    return built


def console(*, stderr: bool = False) -> Console:
    """Where tables go. Not to a terminal: no colours, and lines as long as they need to be."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 10_000
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def show_table(headings: Sequence[str], rows: Sequence[Sequence[object]], nothing: str, folds: str = "") -> None:
    """Print a table, or this sentence if it has no rows."""
    if not rows:
        say(nothing)
        return
    to = console()
    with to.capture() as printed:
        to.print(table(headings, rows, folds))
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def say(text: str) -> None:
    """One line for the person; what is in it from outside is escaped."""
    print(visible(text))


def note(text: str) -> None:
    """A line beside the output, on stderr; lost where that cannot be written to, and what it speaks of goes on."""
    with contextlib.suppress(OSError):
        print(visible(hidden(text)), file=sys.stderr)


def note_json(text: str, **fields: object) -> None:
    """As `note`, as JSON: when it was said, what, and what else is known of it."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"at": at, "message": hidden(text), **fields})
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")  # in one piece: several processes may write there
        sys.stderr.flush()


def show_json(value: object) -> None:
    """One line of JSON, in ASCII, so that it is safe on any terminal."""
    print(json.dumps(value, ensure_ascii=True, default=str))


def fail(error: EasybusError) -> typer.Exit:
    """Say what is wrong on stderr; the exit to raise."""
    print(f"easybus: {visible(hidden(str(error)))}", file=sys.stderr)
    return typer.Exit(WRONG_USAGE if isinstance(error, Misused) else FAILED)


def guarded(function: Callable[P, Coroutine[Any, Any, None] | None]) -> Callable[P, None]:
    """The command with its expected errors as one line on stderr; an async one runs on a loop of its own."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            result = function(*args, **kwargs)
            if result is not None:
                asyncio.run(result)
        except EasybusError as error:
            raise fail(error) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from None

    return command


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless `--yes`; anything but a yes ends the command with 1."""
    if not yes and not typer.confirm(visible(question), err=True):
        raise Failure("nothing was changed")

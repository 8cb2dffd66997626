"""What is seen while an example runs: bars in a terminal, a plain line every other second elsewhere."""

import time
from collections import Counter
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EVERY = 2.0
"""Seconds between two plain lines."""


class Display:
    """Progress towards known goals."""

    def __init__(self, console: Console, goals: Counter[str]) -> None:
        self._console = console
        self._goals = goals
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks = {name: self._progress.add_task(name, total=goal) for name, goal in goals.items()}
        self._began = time.monotonic()
        self._line_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: Counter[str]) -> None:
        """Show how far everything is."""
        for name, task in self._tasks.items():
            self._progress.update(task, completed=done[name])
        now = time.monotonic()
        if not self._console.is_terminal and now - self._line_at >= EVERY:
            self._line_at = now
            self.say("  ".join(f"{name} {done[name]}/{goal}" for name, goal in self._goals.items()))

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(f"{time.monotonic() - self._began:5.1f} s  {text}", soft_wrap=True)

"""The real command line on real SQLite files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner

import easybus
from easybus.cli.app import app
from easybus.clock import SystemClock
from easybus.engines.contract import Binding, DeclareQueue, DeclareTopic, Engine
from easybus.engines.registry import create

R = TypeVar("R")
SOURCE = str(Path(easybus.__file__).parent.parent)


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def _heed_ctrl_c() -> None:
    """A test run in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Shell:
    """A working directory with a database, and the command line in it."""

    def __init__(self, folder: Path, database: str = "shop.db") -> None:
        self.folder = folder
        self.file = folder / database
        self.url = f"sqlite:///{self.file}"

    def run(self, *words: str, input: str | None = None, url: bool = True, **environment: str) -> Done:
        """In this process: as fast as a call."""
        given = [*words, "--url", self.url] if url else list(words)
        result = CliRunner().invoke(app, given, input=input, env={"COLUMNS": "200", **environment})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONPATH": SOURCE, "PYTHONUNBUFFERED": "1", **more}

    def spawn(self, *words: str, output: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
        """As a process of its own, in the folder. `output`: where it writes."""
        return subprocess.Popen(
            [sys.executable, "-m", "easybus.cli", *words],
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - it calls nothing that another thread could hold
        )

    def process(self, *words: str, **environment: str) -> Done:
        """As a process of its own, until it ends."""
        with self.spawn(*words, **environment) as process:
            out, err = process.communicate(timeout=30)
            return Done(process.returncode, out, err)

    def on_engine(self, work: Callable[[Engine], Awaitable[R]]) -> R:
        """Do something on the engine behind the command line's back."""

        async def main() -> R:
            engine = create(self.url, SystemClock())
            await engine.open()
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(main())


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Queues `emails` and `receipts` (a delay of 5 s), the topic `orders` that feeds the latter `paid.#`."""
    for name in ("EASYBUS_APP", "EASYBUS_URL", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    shell = Shell(tmp_path)

    async def declare(engine: Engine) -> None:
        assert engine.driver is not None
        await engine.driver.declare(
            [
                DeclareQueue("emails"),
                DeclareQueue("receipts", delay=5.0),
                DeclareTopic("orders"),
                Binding("orders", "receipts", "paid.#"),
            ]
        )

    shell.on_engine(declare)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # an app's folder goes in front of it
    before = set(sys.modules)
    yield shell
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]

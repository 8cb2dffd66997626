"""`easybus run`: handle messages, in this process, or in workers that are kept alive."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from ..clock import SystemClock
from ..engines.registry import create
from ..errors import EngineError
from ..shown import hidden, visible
from .loading import load_bus
from .output import Failure, Misused, close_to, guarded, note, note_json
from .supervise import Supervisor, stop_with_parent
from .target import AppArgument, FactoryOption, LogJsonOption

_LOGGER = logging.getLogger("easybus")


class _Json(logging.Handler):
    """Log records as JSON, one a line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: who logs is in the middle of something else."""
        try:
            fields: dict[str, object] = {"level": record.levelname, "logger": record.name, "process": record.process}
            if record.exc_info:
                fields["traceback"] = hidden(logging.Formatter().formatException(record.exc_info))
            note_json(record.getMessage(), **fields)
        except Exception:
            self.handleError(record)


class _Visible(logging.Formatter):
    """Log lines that may quote a payload or a URL: what steers a terminal is escaped in them, passwords are hidden."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(visible(line) for line in hidden(super().format(record)).split("\n"))


@guarded
def run(
    context: typer.Context,
    app: AppArgument = None,
    factory: FactoryOption = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; each handles every queue.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="QUEUE", help="Only this queue; again: and this.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="Messages of a queue at once, instead of the handler's own."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start anew when a .py file here changes; to develop with.")
    ] = False,
    as_json: LogJsonOption = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Handle messages until SIGTERM or SIGINT.

    What is in hand is finished first; a second signal ends that. A worker that dies is started again.
    """
    program: list[str] = context.obj or [sys.executable, "-m", "easybus.cli"]
    tell = note_json if as_json else note
    if reload:
        # The code is not loaded here: it would be the old one after the first change, and may be broken now.
        command = _command(program, app, factory, only, concurrency, as_json)
        Supervisor(command, workers, _changes(), tell).run_or_exit()
        return
    bus = load_bus(app, factory=factory)
    if not bus.handlers:
        raise Failure(f"{app} handles nothing: include a router, or import the modules with its handlers")
    handled = {each.queue for each in bus.handlers}
    for queue in only or ():
        if queue not in handled:
            raise Failure(
                f"{app} has no handler for queue {queue!r}; {close_to(queue, handled, 'queues with handlers')}"
            )
    if workers > 1:
        _refuse_unshared(bus.url)
        Supervisor(_command(program, app, factory, only, concurrency, as_json), workers, tell=tell).run_or_exit()
        return
    if supervised:
        stop_with_parent()
    log_to_stderr(as_json=as_json)
    queues = sorted(set(only or handled))
    _LOGGER.info("handling %s of %s", ", ".join(queues), hidden(bus.url))
    asyncio.run(bus.run(only=only or (), concurrency=concurrency))


def log_to_stderr(*, as_json: bool) -> None:
    """Log to stderr, unless the app has set up logging of its own."""
    handler = _Json() if as_json else logging.StreamHandler()
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _command(
    program: list[str], app: str | None, factory: bool, only: list[str] | None, concurrency: int | None, as_json: bool
) -> list[str]:
    if not app:
        load_bus(app)  # says what is missing
        raise Misused("no app")
    words = [*program, "run", app, "--supervised"]
    words += ["--factory"] if factory else []
    words += ["--json"] if as_json else []
    words += [word for queue in only or () for word in ("--only", queue)]
    return words + ([] if concurrency is None else ["--concurrency", str(concurrency)])


def _refuse_unshared(url: str) -> None:
    async def shared() -> bool:
        engine = create(url, SystemClock())
        try:
            await engine.open()
        except EngineError:
            return True  # the workers say so, and try again
        try:
            return engine.driver is None or engine.driver.caps.shared
        finally:
            await engine.close()

    if not asyncio.run(shared()):
        raise Failure(f"{url} lives in one process: several workers would share nothing; leave --workers out")


def _changes() -> Callable[[], bool]:
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise Failure("--reload needs watchfiles: pip install 'easybus[cli]'") from None
    changes = watch(".", watch_filter=PythonFilter(), debounce=300, rust_timeout=300, yield_on_timeout=True)
    return lambda: bool(next(changes))
